"""Kept and shared answers over real HTTP: threads and event loops together."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from deepseek_resilient import AsyncDeepSeek, AsyncResilientTransport, CachePolicy, DeepSeek, Engine, Policy
from deepseek_resilient.transport import ResilientTransport

from .faces import always
from .leaks import idle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

    from .faces import Face

SHARING = Policy(cache=CachePolicy())


def ask(*, stream: bool = False, **fields: Any) -> bytes:
    body = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    return json.dumps(body | {"stream": stream} | fields).encode()


def sync_client(engine: Engine) -> httpx2.Client:
    return httpx2.Client(transport=ResilientTransport(engine=engine), headers={"authorization": "Bearer k"}, timeout=60)


def async_client(engine: Engine) -> httpx2.AsyncClient:
    transport = AsyncResilientTransport(engine=engine)
    return httpx2.AsyncClient(transport=transport, headers={"authorization": "Bearer k"}, timeout=60)


def attempts(lab: LabProcess) -> int:
    return int(lab.statistics()["attempts"])


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        pass


@pytest.mark.parametrize("stream", [False, True])
def test_a_thousand_identical_calls_are_one_request(lab: LabProcess, stream: bool) -> None:
    """On 100 threads and two event loops at once; all get the same bytes."""
    lab.script(next=["slow_first_token;delay=0.5"])
    engine = Engine(SHARING)
    url = lab.base_url + "/chat/completions"

    def on_a_thread(_: int) -> list[bytes]:
        with sync_client(engine) as client:
            return [client.post(url, content=ask(stream=stream)).content]

    def on_a_loop(_: int) -> list[bytes]:
        async def many() -> list[bytes]:
            async with async_client(engine) as client:
                replies = await asyncio.gather(*(client.post(url, content=ask(stream=stream)) for _ in range(450)))
                return [reply.content for reply in replies]

        return asyncio.run(many())

    with ThreadPoolExecutor(102) as pool:
        work = [pool.submit(on_a_loop if number in (30, 60) else on_a_thread, number) for number in range(102)]
        bodies = [body for one in work for body in one.result()]
    assert (1000, 1, 1) == (len(bodies), len(set(bodies)), attempts(lab))
    assert bodies[0]


def test_a_thread_that_began_it_may_leave(lab: LabProcess) -> None:
    """A stream is read on by who joined it, on an event loop, to the last byte."""
    lab.script(next=["slow_drip;interval=0.002;size=40"])
    engine = Engine(SHARING)
    url = lab.base_url + "/chat/completions"
    began, left, over = threading.Event(), threading.Event(), threading.Event()

    def leader() -> None:
        with sync_client(engine) as client:
            with client.stream("POST", url, content=ask(stream=True)) as reply:
                chunks = reply.iter_raw()
                next(chunks)
                began.set()
                assert left.wait(20)
            assert over.wait(20)

    async def follower() -> bytes:
        async with async_client(engine) as client, client.stream("POST", url, content=ask(stream=True)) as reply:
            assert "joined" == reply.headers["x-resilient-cache"]
            left.set()
            return b"".join([chunk async for chunk in reply.aiter_raw()])

    thread = threading.Thread(target=leader)
    thread.start()
    assert began.wait(20)
    body = asyncio.run(follower())
    over.set()
    thread.join()
    assert 1 == attempts(lab)
    assert body.endswith(b"data: [DONE]\n\n")
    with sync_client(engine) as client:
        again = client.post(url, content=ask(stream=True))
    assert ("hit", body) == (again.headers["x-resilient-cache"], again.content)


def test_an_event_loop_that_ends_takes_nobody_with_it(lab: LabProcess) -> None:
    """Its flight is lost; a thread that waited for it begins another one."""
    lab.script(next=["hang"])
    engine = Engine(SHARING)
    url = lab.base_url + "/chat/completions"
    flying, done = threading.Event(), []

    def follower() -> None:
        flying.wait(20)
        with sync_client(engine) as client:
            done.append(client.post(url, content=ask()).status_code)

    async def leader() -> None:
        async with async_client(engine) as client:
            call = asyncio.ensure_future(client.post(url, content=ask()))
            await asyncio.to_thread(until, lambda: attempts(lab) > 0)
            flying.set()
            await asyncio.to_thread(until, lambda: engine.statistics().calls > 1)
            call.add_done_callback(lambda _: None)

    thread = threading.Thread(target=follower)
    thread.start()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_and_then_cancel(leader()))
    thread.join()
    assert ([200], 2) == (done, attempts(lab))


async def _and_then_cancel(work: Any) -> None:
    await work
    raise asyncio.CancelledError


@pytest.mark.parametrize("how", ["thread", "loop"])
def test_the_last_one_to_leave_hangs_up(lab: LabProcess, how: str) -> None:
    """Nobody reads on: the server learns of it."""
    lab.script(windows=[always("slow_drip;interval=0.01;size=1")])
    engine = Engine(SHARING)
    url = lab.base_url + "/chat/completions"
    if how == "thread":
        with sync_client(engine) as client, client.stream("POST", url, content=ask(stream=True)) as reply:
            chunks = reply.iter_raw()
            next(chunks)
    else:

        async def once() -> None:
            async with async_client(engine) as client, client.stream("POST", url, content=ask(stream=True)) as reply:
                chunks = reply.aiter_raw()
                await anext(chunks)

        asyncio.run(once())
    assert idle(lab)


def test_our_clients_say_what_was_reused(lab: LabProcess) -> None:
    """The SDK's clients, by the raw response's headers; the answers are equal."""
    with DeepSeek(base_url=lab.base_url, api_key="k", policy=SHARING) as client:
        asked: dict[str, Any] = {
            "model": "deepseek-flash",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0,
        }
        first = client.chat.completions.create(**asked)
        raw = client.chat.completions.with_raw_response.create(**asked)
        assert ("hit", first) == (raw.headers["x-resilient-cache"], raw.parse())
        streamed = ["".join(_words(client, asked)) for _ in range(2)]
        assert streamed[0] == streamed[1] == first.choices[0].message.content
        cache = client.engine.statistics().cache
    assert cache is not None
    assert (2, 2, 2) == (cache.hits, cache.misses, attempts(lab))


def _words(client: DeepSeek, asked: dict[str, Any]) -> list[str]:
    stream = client.chat.completions.create(**asked, stream=True)
    return [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]


async def _ask_twice(lab: LabProcess, path: Path) -> list[str | None]:
    policy = Policy(cache=CachePolicy(path=str(path)))
    seen = []
    for _ in range(2):
        async with AsyncDeepSeek(base_url=lab.base_url, api_key="k", policy=policy) as client:
            raw = await client.chat.completions.with_raw_response.create(
                model="deepseek-flash", messages=[{"role": "user", "content": "hi"}], temperature=0
            )
            seen.append(raw.headers.get("x-resilient-cache"))
    return seen


def test_answers_outlive_the_client_on_disk(lab: LabProcess, tmp_path: Path) -> None:
    """Another client, another engine, the same file: a hit."""
    assert [None, "hit"] == asyncio.run(_ask_twice(lab, tmp_path / "answers.db"))
    assert 1 == attempts(lab)


def test_who_closes_a_client_closes_its_file(face: Face, tmp_path: Path) -> None:
    """The log is in the file then; an engine that is shared keeps it open for the others."""
    cached = Policy(cache=CachePolicy(path=str(tmp_path / "answers.db")))

    def files() -> list[str]:
        return sorted(file.name for file in tmp_path.iterdir())

    client = face.new(policy=cached)
    face.text(temperature=0)
    assert ["answers.db", "answers.db-shm", "answers.db-wal"] == files()
    face.close(client)
    assert ["answers.db"] == files()
    engine = Engine(cached)
    client = face.new(engine=engine)
    face.text(temperature=0)
    face.close(client)
    assert 3 == len(files())
    engine.close()
    assert ["answers.db"] == files()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_who_closes_a_transport_closes_its_file(lab: LabProcess, tmp_path: Path, asynchronous: bool) -> None:
    """Where the engine is its own."""
    cached = Policy(cache=CachePolicy(path=str(tmp_path / "answers.db")))
    headers, url = {"authorization": "Bearer k"}, lab.base_url + "/chat/completions"

    async def one() -> None:
        transport = AsyncResilientTransport(policy=cached)
        async with httpx2.AsyncClient(transport=transport, headers=headers, timeout=60) as client:
            await client.post(url, content=ask())

    if asynchronous:
        asyncio.run(one())
    else:
        with httpx2.Client(transport=ResilientTransport(policy=cached), headers=headers, timeout=60) as client:
            client.post(url, content=ask())
    assert ["answers.db"] == [file.name for file in tmp_path.iterdir()]
