"""Nothing is left behind: no thread, no task, no socket, no permit, however a call ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import httpx2
import openai
import pytest

from deepseek_resilient import DeepSeek, Engine, ResilientTransport

from .faces import ANSWER, ASK, AsyncFace, SyncFace, always, policy
from .leaks import asynchronous, eventually, idle, in_a_call, sockets, still

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

    from .faces import Face


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

    assert face.text() == ANSWER  # what is left is closed at the next call, or by the loop
    assert client.engine.statistics().in_flight == 0
    assert idle(lab)
    assert sockets() - before <= (4 if face.is_async else 1)


def test_client_closed_before_its_stream(before: int, face: Face, lab: LabProcess) -> None:
    """Closing a client closes what is still open of it; the stream that was being read ends in an error."""
    lab.script(next=["stall;after=3"])
    client = face.new()
    stream = face.stream()
    face.next(stream)
    face.close(client)

    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        face.all(stream)
    assert client.engine.statistics().in_flight == 0
    del stream
    gc.collect()
    assert sockets() - before <= (3 if face.is_async else 0)


def test_client_dropped(before: int, lab: LabProcess, caplog: pytest.LogCaptureFixture, runner: asyncio.Runner) -> None:
    """A client that is dropped without being closed leaves no socket, and nothing is logged or warned about."""

    async def use() -> None:
        client = asynchronous(lab)
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
        async with asynchronous(lab, timeout=60, policy=policy(concurrency=None)) as client:

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
    client = asynchronous(lab)

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
            with pytest.raises(openai.APIError):
                face.chat()
            with contextlib.suppress(openai.APIError):
                face.all(face.stream())
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
