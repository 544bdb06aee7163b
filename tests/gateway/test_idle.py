"""protocol.py: one timer does for all rests of a connection. In a time of its own, so nothing is waited for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from deepseek_resilient.gateway.protocol import bounded
from deepseek_resilient.gateway.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

IDLE = 10.0
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Timer:
    """One that the loop below was asked for."""

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """As much of an event loop as the protocol needs; its time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, call))
        return self.timers[-1]

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        return asyncio.ensure_future(work)

    @property
    def armed(self) -> list[float]:
        """When which of them fires."""
        return sorted(timer.at for timer in self.timers if not timer.cancelled)

    def pass_to(self, then: float) -> None:
        """Let what is due until then happen, each at its time."""
        while due := [timer for timer in self.timers if not timer.cancelled and timer.at <= then]:
            first = min(due, key=lambda timer: timer.at)
            self.timers.remove(first)
            self.now = first.at
            first.call()
        self.now = then


class Wire:
    """A transport."""

    closed = False

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        """Nothing comes that the test does not send."""

    resume_reading = pause_reading

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Caller:
    """One connection to an application that answers when `answer` is called."""

    def __init__(self) -> None:
        self.loop, self.wire = Loop(), Wire()
        self.asked: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self._answered: asyncio.Queue[None] = asyncio.Queue()
        config = uvicorn.Config(self._app, interface="asgi3", log_config=None, proxy_headers=False)
        config.timeout_keep_alive = IDLE  # type: ignore[assignment]
        loop: Any = self.loop
        transport: Any = self.wire
        self.protocol = bounded(Limits(header_timeout=1000.0))(config, ServerState(), {}, loop)
        self.protocol.connection_made(transport)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        go = asyncio.Event()
        self.asked.put_nowait(go)
        await go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        self._answered.put_nowait(None)

    async def ask(self, data: bytes = REQUEST) -> asyncio.Event:
        """Send a request; what lets its answer come."""
        self.protocol.data_received(data)
        return await self.asked.get()

    async def answer(self, go: asyncio.Event) -> None:
        """Let it come."""
        go.set()
        await self._answered.get()

    async def call(self) -> None:
        """Both at once: the connection is idle from now on."""
        await self.answer(await self.ask())


def run(scenario: Callable[[Caller], Coroutine[Any, Any, None]]) -> None:
    """It, with a connection."""

    async def work() -> None:
        async with asyncio.timeout(10):
            await scenario(Caller())

    asyncio.run(work())


def test_busy_when_the_timer_fires_and_idle_again() -> None:
    """The time of the second rest is counted from its own beginning."""

    async def scenario(caller: Caller) -> None:
        await caller.call()  # idle from 0 on
        caller.loop.pass_to(9)
        go = await caller.ask()
        caller.loop.pass_to(35)  # fires at 10: an answer is under way
        assert not caller.wire.closed
        assert not caller.loop.armed
        await caller.answer(go)
        assert [45] == caller.loop.armed
        caller.loop.pass_to(44.9)
        assert not caller.wire.closed
        caller.loop.pass_to(45)
        assert caller.wire.closed

    run(scenario)


def test_idle_since_later_than_the_timer_knows() -> None:
    """It fires for the first rest, and waits for what is left of the last one: one timer, however many rests."""

    async def scenario(caller: Caller) -> None:
        for second in range(5):
            caller.loop.pass_to(second)
            await caller.call()
            assert 1 == len(caller.loop.armed)
        caller.loop.pass_to(10)
        assert not caller.wire.closed
        assert [14] == caller.loop.armed
        caller.loop.pass_to(13.9)
        assert not caller.wire.closed
        caller.loop.pass_to(14)
        assert caller.wire.closed

    run(scenario)


@pytest.mark.parametrize("data", [b"\r\n", REQUEST[:9]], ids=["a blank line", "half a head"])
def test_what_has_begun_is_not_idle(data: bytes) -> None:
    """The time of its head runs instead."""

    async def scenario(caller: Caller) -> None:
        await caller.call()
        caller.loop.pass_to(5)
        caller.protocol.data_received(data)
        caller.loop.pass_to(500)
        assert not caller.wire.closed
        caller.loop.pass_to(1005)
        assert caller.wire.closed

    run(scenario)


def test_requests_that_wait_are_not_idle() -> None:
    """An answer with another request behind it is no rest."""

    async def scenario(caller: Caller) -> None:
        await caller.call()
        caller.loop.pass_to(9)
        first = await caller.ask(REQUEST + REQUEST)
        caller.loop.pass_to(50)
        await caller.answer(first)
        second = await caller.asked.get()
        assert not caller.loop.armed
        caller.loop.pass_to(99)
        await caller.answer(second)
        assert [109] == caller.loop.armed
        caller.loop.pass_to(109)
        assert caller.wire.closed

    run(scenario)


def test_a_connection_that_is_gone_has_no_timer() -> None:
    """Idle or not."""

    async def scenario(caller: Caller) -> None:
        await caller.call()
        assert caller.loop.armed
        caller.protocol.connection_lost(ConnectionResetError())
        assert not caller.loop.armed

    run(scenario)
