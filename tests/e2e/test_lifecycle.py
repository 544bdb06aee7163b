"""Nothing is left behind: no thread, no task, no socket, no permit, however a call ends."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import uvloop

from deepseek_resilient import AsyncDeepSeek, DeepSeek, Engine, ResilientTransport

from .faces import ANSWER, ASK, AsyncFace, SyncFace, always, inner, policy

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Iterator

    from deepseek_resilient.lab import LabProcess

    from .faces import Face


def sockets() -> int:
    """How many sockets this process holds."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += str(entry.readlink()).startswith("socket:")
        except OSError:
            continue
    return found


def idle(lab: LabProcess) -> bool:
    """Whether the server comes to see no request in flight any more."""
    return eventually(lambda: lab.statistics()["in_flight"] == 0)


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something becomes true within two seconds."""
    until = time.monotonic() + 2
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture
def before() -> int:
    """Sockets at the start, without those of earlier tests' garbage."""
    gc.collect()
    return sockets()


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """An event loop of either kind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as made:
        yield made


def asynchronous(lab: LabProcess, **options: Any) -> AsyncDeepSeek:
    """An `AsyncDeepSeek` of the lab."""
    if "engine" not in options:
        options.setdefault("policy", policy())
    return AsyncDeepSeek(**{"api_key": "k", "base_url": lab.base_url, "transport": inner(), **options})


async def still() -> None:
    """Let what was cancelled or closed come to its end; no task but this one is left then."""
    for _ in range(200):
        if len(asyncio.all_tasks()) == 1:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"tasks left: {asyncio.all_tasks()}")


def test_stream_closed_early(before: int, face: Face, lab: LabProcess) -> None:
    """A stream that is closed early frees its permit and its connection, and the server sees that nobody listens."""
    lab.script(next=["stall;after=3"])
    client = face.new()
    stream = face.stream()
    face.next(stream)
    face.close(stream)

    assert client.engine.statistics().in_flight == 0
    assert idle(lab)
    assert face.text() == ANSWER
    face.close(client)
    assert sockets() - before <= (3 if face.is_async else 0)  # a loop's own


@pytest.mark.parametrize("read", [False, True])
def test_stream_dropped(before: int, face: Face, lab: LabProcess, read: bool) -> None:
    """Streams that are dropped without being closed give everything back once they are collected."""
    lab.script(next=["stall;after=3"] * 5)
    client = face.new()
    for _ in range(5):
        raw = face.get(client.chat.completions.with_raw_response.create(**ASK, stream=True)).http_response
        if read:
            face.next(raw.aiter_raw() if face.is_async else raw.iter_raw())
        del raw
    gc.collect()

    assert client.engine.statistics().in_flight == 0
    assert face.text() == ANSWER  # what is left is closed at the next call
    assert idle(lab)
    assert sockets() - before <= (4 if face.is_async else 1)


def test_client_dropped(
    before: int, lab: LabProcess, caplog: pytest.LogCaptureFixture, runner: asyncio.Runner
) -> None:
    """A client that is dropped without being closed leaves no socket, and nothing is logged or warned about."""

    async def use() -> None:
        client = asynchronous(lab, transport=None)
        await client.chat.completions.create(**ASK)  # type: ignore[call-overload]
        del client
        gc.collect()
        await asyncio.sleep(0)
        await still()

    runner.run(use())
    client = DeepSeek(api_key="k", base_url=lab.base_url)
    client.chat.completions.create(**ASK)  # type: ignore[call-overload]
    del client
    gc.collect()

    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    runner.close()
    assert sockets() == before


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_interpreter_exit(lab: LabProcess, is_async: bool) -> None:
    """A program that never closes its client ends quietly."""
    program = f"""
import asyncio
from deepseek_resilient import AsyncDeepSeek, DeepSeek
ask = {ASK!r}
if {is_async}:
    client = AsyncDeepSeek(api_key="k", base_url={lab.base_url!r})
    async def main():
        print((await client.chat.completions.create(**ask)).choices[0].message.content)
    asyncio.run(main())
    asyncio.run(main())
else:
    client = DeepSeek(api_key="k", base_url={lab.base_url!r})
    print(client.chat.completions.create(**ask).choices[0].message.content)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)  # noqa: S603

    assert done.stdout.splitlines() == [ANSWER] * (2 if is_async else 1)
    assert (done.stderr, done.returncode) == ("", 0)


async def in_a_stream(client: AsyncDeepSeek) -> None:
    async for _ in await client.chat.completions.create(**ASK, stream=True):  # type: ignore[call-overload]
        pass


async def in_a_call(client: AsyncDeepSeek) -> None:
    await client.chat.completions.create(**ASK)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("fault", "work"),
    [
        ("hang", in_a_call),
        ("hang", in_a_stream),
        ("keep_alive_forever;interval=0.01", in_a_call),
        ("keep_alive_forever;interval=0.01", in_a_stream),
        ("stall;after=3", in_a_call),
        ("stall;after=3", in_a_stream),
        ("outage_503;retry_after=30", in_a_call),
        ("outage_503;retry_after=30", in_a_stream),
    ],
)
def test_cancelled(
    before: int,
    lab: LabProcess,
    runner: asyncio.Runner,
    fault: str,
    work: Callable[[AsyncDeepSeek], Awaitable[None]],
) -> None:
    """Cancelled anywhere (head, body, stream, backoff): CancelledError, and everything is given back."""
    lab.script(windows=[always(fault)])

    async def cancelled() -> None:
        async with asynchronous(lab, timeout=100) as client:
            task = asyncio.ensure_future(work(client))
            await asyncio.sleep(0.06)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client.engine.statistics().in_flight == 0
            await still()

    runner.run(cancelled())
    assert idle(lab)
    runner.close()
    assert sockets() == before


@pytest.mark.parametrize("how", ["cancel", "limit"])
def test_cancelled_while_connecting(before: int, lab: LabProcess, runner: asyncio.Runner, how: str) -> None:
    """Cancelled, or out of time, while a connection is being made: nothing is left of it."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        crowd = [socket.socket() for _ in range(4)]
        for one in crowd:  # the queue of a listener that never accepts is full now
            one.setblocking(False)
            one.connect_ex(address)

        async def connect() -> None:
            async with asynchronous(lab, base_url=f"http://127.0.0.1:{address[1]}", timeout=0.2) as client:
                task = asyncio.ensure_future(in_a_call(client))
                if how == "cancel":
                    await asyncio.sleep(0.05)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    with pytest.raises(httpx2_timeout()):
                        await task
                assert client.engine.statistics().in_flight == 0
                await still()

        runner.run(connect())
        runner.close()
        for one in crowd:
            one.close()
    assert sockets() == before


def httpx2_timeout() -> type[Exception]:
    import openai

    return openai.APITimeoutError


def test_timeouts_leave_the_task_uncancelled(lab: LabProcess, runner: asyncio.Runner) -> None:
    """A limit of ours cancels only the wait it guards: the task goes on, also inside `asyncio.timeout`."""
    lab.script(windows=[always("hang")])

    async def limits() -> None:
        async with asynchronous(lab) as client:
            for _ in range(3):
                with pytest.raises(httpx2_timeout()):
                    await client.chat.completions.create(**ASK, timeout=0.05)  # type: ignore[call-overload]
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.chat.completions.create(**ASK, timeout=10)  # type: ignore[call-overload]
            assert task.cancelling() == 0
            await still()

    runner.run(limits())


class Interrupted(httpx2.BaseTransport):
    """Lets Ctrl-C arrive in the head or in the body."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.closed = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.where == "head":
            raise KeyboardInterrupt
        outer = self

        class Body(httpx2.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                yield b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
                raise KeyboardInterrupt

            def close(self) -> None:
                outer.closed += 1

        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())


@pytest.mark.parametrize("where", ["head", "body"])
def test_keyboard_interrupt(where: str) -> None:
    """Ctrl-C in the middle of a blocking call leaves nothing open, and the client usable."""
    transport = Interrupted(where)
    with DeepSeek(api_key="k", transport=transport, policy=policy()) as client:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                list(client.chat.completions.create(**ASK, stream=True))  # type: ignore[call-overload]
            assert client.engine.statistics().in_flight == 0

    assert transport.closed == (2 if where == "body" else 0)


def test_many_threads_one_engine(before: int, lab: LabProcess) -> None:
    """100 threads share one client, five calls each: every answer is right and nothing is left."""
    threads = threading.active_count()
    with SyncFace(lab.base_url) as face:
        client = face.new(policy=policy(deadline=60.0))

        def five() -> list[str]:
            return [face.text(messages=[{"role": "user", "content": "How are you?"}]) for _ in range(5)]

        assert face.together([five] * 100) == [[ANSWER] * 5] * 100
        found = client.engine.statistics()

    assert (found.calls, found.in_flight, found.verdicts) == (500, 0, {"ok": 500})
    assert eventually(lambda: threading.active_count() == threads)
    assert sockets() == before


def test_many_connections(before: int, lab: LabProcess, runner: asyncio.Runner) -> None:
    """200 calls at once are 200 connections, half of them streams."""
    lab.script(settings={"service_time": 0.8, "slots": 1000})

    async def all_at_once() -> None:
        async with asynchronous(lab, timeout=60) as client:

            async def stream() -> str:
                chunks = await client.chat.completions.create(**ASK, stream=True)  # type: ignore[call-overload]
                return "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])

            async def call() -> str:
                return (await client.chat.completions.create(**ASK)).choices[0].message.content  # type: ignore

            assert await asyncio.gather(*(work() for work in [stream, call] * 100)) == [ANSWER] * 200
            assert client.engine.statistics().attempts == 200

    runner.run(all_at_once())
    assert lab.statistics()["capacity"]["peak_in_service"] == 200
    runner.close()
    assert sockets() == before


def test_two_event_loops_one_engine(before: int, lab: LabProcess) -> None:
    """Two event loops in two threads share an engine: both get their answers, and the engine counts them all."""
    engine = Engine(policy())
    failed: list[BaseException] = []

    def work() -> None:
        async def calls() -> None:
            async with asynchronous(lab, engine=engine) as client:
                await asyncio.gather(*(in_a_call(client) for _ in range(30)))

        try:
            asyncio.run(calls())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert (engine.statistics().calls, engine.statistics().in_flight) == (60, 0)
    assert sockets() == before


def test_one_client_on_loops_after_each_other(lab: LabProcess) -> None:
    """A client made at import time works in one `asyncio.run` after the other."""
    if inner() is not None:
        pytest.skip("of the default inner transport only")
    client = asynchronous(lab, transport=None)

    async def use() -> None:
        await in_a_call(client)
        await client._client._transport._inners.take()[0].aclose()  # type: ignore[attr-defined]

    for _ in range(3):
        asyncio.run(use())
    assert client.engine.statistics().verdicts == {"ok": 3}


def test_fork(lab: LabProcess) -> None:
    """A forked child starts clean on connections of its own; the parent's go on working."""
    with DeepSeek(api_key="k", base_url=lab.base_url, policy=policy()) as client:
        client.chat.completions.create(**ASK)  # type: ignore[call-overload]
        child = os.fork()
        if child == 0:
            code = 1
            try:
                clean = client.engine.statistics().calls == 0
                answer = client.chat.completions.create(**ASK)  # type: ignore[call-overload]
                code = 0 if clean and answer.choices[0].message.content == ANSWER else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert client.chat.completions.create(**ASK).choices[0].message.content == ANSWER  # type: ignore[call-overload]
        assert client.engine.statistics().calls == 2


@pytest.mark.parametrize("kind", [SyncFace, AsyncFace], ids=["sync", "async"])
def test_failed_calls_leave_nothing(before: int, lab: LabProcess, kind: type[Face]) -> None:
    """Attempts that fail in every way leave no connection open."""
    for fault in ("reset", "refuse", "garbage;after=0", "html_502", "blank_200", "cut;how=abort", "outage_503"):
        lab.script(windows=[always(fault)])
        with kind(lab.base_url) as face:
            face.new()
            face.together([face.client.chat.completions.create] if False else [lambda: None] if not face.is_async else [])
            with pytest.raises(Exception, match=""):
                face.chat()
    assert idle(lab)
    assert sockets() == before


def test_transports_close_twice(lab: LabProcess) -> None:
    """Closing is safe to repeat, and a closed transport of ours opens again when it is used."""
    transport = ResilientTransport()
    with httpx2.Client(transport=transport, headers={"authorization": "Bearer k"}) as client:
        assert client.post(f"{lab.base_url}/chat/completions", json=ASK).status_code == 200
        transport.close()
        transport.close()
        assert client.post(f"{lab.base_url}/chat/completions", json=ASK).status_code == 200


if TYPE_CHECKING:
    _ = logging
