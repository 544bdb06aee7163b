"""Cancelled, out of time or interrupted at any point: the caller learns of it, and everything is given back."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import httpx2
import openai
import pytest

from deepseek_resilient import AsyncDeepSeek, DeepSeek

from .faces import ASK, always, policy
from .leaks import asynchronous, idle, in_a_call, in_a_stream, sockets, still

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from deepseek_resilient.lab import LabProcess


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
                    with pytest.raises(openai.APITimeoutError):
                        await task
                assert client.engine.statistics().in_flight == 0
                await still()

        runner.run(connect())
        runner.close()
        for one in crowd:
            one.close()
    assert sockets() == before


def test_timeouts_leave_the_task_uncancelled(lab: LabProcess, runner: asyncio.Runner) -> None:
    """A limit of ours cancels only the wait it guards: the task goes on, also inside `asyncio.timeout`."""
    lab.script(windows=[always("hang")])

    async def limits() -> None:
        async with asynchronous(lab) as client:
            for _ in range(3):
                with pytest.raises(openai.APITimeoutError):
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
