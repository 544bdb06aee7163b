"""A caller that leaves by saying so: what it began is driven in its own task, and goes on while others want it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient import CachePolicy, ConcurrencyPolicy, Engine, Policy
from deepseek_resilient.core.messages import Failure, Reply, Request, Response
from deepseek_resilient.drivers.aio import AioCall

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from deepseek_resilient.core.effects import Read, Send

ASKED = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
SHARED = CachePolicy(calls="all", lifetime=0, stale_if_error=0)
ANSWER = json.dumps({"model": "m", "choices": [{"message": {"content": "ho"}, "finish_reason": "stop"}]}).encode()


class Upstream:
    """Answers once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.sent = self.given_up = 0

    async def send(self, _: Send) -> Reply | Failure:
        self.sent += 1
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        reply = Reply(200, [(b"content-type", b"application/json")], None)
        reply.body, reply.ended = ANSWER, True
        return reply

    async def read(self, effect: Read) -> bytes | Failure:
        raise AssertionError(effect)

    async def close(self, reply: Reply) -> None:
        assert reply.ended

    def abandon(self, reply: Reply) -> None:
        raise AssertionError(reply)


class Caller:
    """One call, in a task that is left and never cancelled."""

    def __init__(self, engine: Engine, upstream: Upstream, asked: bytes = ASKED) -> None:
        self._engine = engine
        self._upstream = upstream
        self._asked = asked
        self.call: AioCall | None = None
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> Response:
        request = Request(method="POST", origin="http://x", path="/chat/completions", body=self._asked)
        self.call = AioCall(
            self._engine.call(request), self._upstream, clock=self._engine.clock, raise_as=lambda _: ValueError(),
            leaves=asyncio.current_task(),
        )  # fmt: skip
        return await self.call.start()

    def leave(self) -> None:
        assert self.call is not None
        self.call.leave()


def run(work: Coroutine[Any, Any, None]) -> None:
    """With a limit that no test reaches."""
    asyncio.run(asyncio.wait_for(work, 30))


async def begin(callers: int) -> tuple[Engine, Upstream, list[Caller]]:
    """So many identical calls, whose answer is on its way."""
    engine, upstream = Engine(Policy(cache=SHARED)), Upstream()
    made = [Caller(engine, upstream) for _ in range(callers)]
    await asyncio.sleep(0.01)
    assert 1 == upstream.sent
    assert callers == engine.statistics().in_flight
    return engine, upstream, made


def test_the_call_is_driven_in_the_task_of_who_began_it() -> None:
    """No task is made for it."""

    async def work() -> None:
        before = len(asyncio.all_tasks())
        _, upstream, (caller,) = await begin(1)
        assert before + 1 == len(asyncio.all_tasks())
        upstream.may.set()
        assert ANSWER == (await caller.task).body

    run(work())


def test_who_is_alone_ends_the_call() -> None:
    """At once, and nothing is left of it."""

    async def work() -> None:
        engine, upstream, (caller,) = await begin(1)
        caller.leave()
        with pytest.raises(asyncio.CancelledError):
            await caller.task
        assert (1, 0) == (upstream.given_up, engine.statistics().in_flight)
        again = Caller(engine, upstream)
        upstream.may.set()
        assert ANSWER == (await again.task).body

    run(work())


def test_an_end_that_comes_after_the_answer_ends_nothing() -> None:
    """The task that drove the shared answer does other things by then."""

    async def work() -> None:
        _, upstream, (caller,) = await begin(1)
        assert caller.call is not None
        upstream.may.set()
        assert ANSWER == (await caller.task).body
        other = asyncio.create_task(asyncio.sleep(0.01))
        caller.call._leaves = other
        caller.call._soon(caller.call._end_flight)
        await other

    run(work())


def test_what_others_want_goes_on() -> None:
    """Who began it is counted as gone; the others get the one answer."""

    async def work() -> None:
        engine, upstream, (first, *others) = await begin(3)
        first.leave()
        assert 2 == engine.statistics().in_flight
        upstream.may.set()
        assert [ANSWER, ANSWER] == [(await other.task).body for other in others]
        with pytest.raises(asyncio.CancelledError):
            await first.task
        assert (1, 0, 0) == (upstream.sent, upstream.given_up, engine.statistics().in_flight)

    run(work())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_one_to_leave_ends_it(order: tuple[int, int]) -> None:
    """Whoever that is."""

    async def work() -> None:
        engine, upstream, callers = await begin(2)
        for number in order:
            callers[number].leave()
            await asyncio.sleep(0.01)
        for caller in callers:
            with pytest.raises(asyncio.CancelledError):
                await caller.task
        assert (1, 1, 0) == (upstream.sent, upstream.given_up, engine.statistics().in_flight)

    run(work())


def test_a_call_that_waits_for_its_turn_is_driven_to_its_end() -> None:
    """It waits itself while it is waited for."""

    async def work() -> None:
        engine = Engine(Policy(cache=SHARED, concurrency=ConcurrencyPolicy(minimum=1, initial=1, maximum=1)))
        upstream = Upstream()
        first = Caller(engine, upstream)
        second = Caller(engine, upstream, ASKED.replace(b"hi", b"ho"))
        await asyncio.sleep(0.01)
        assert 1 == upstream.sent
        upstream.may.set()
        assert [ANSWER, ANSWER] == [(await each.task).body for each in (first, second)]
        assert 2 == upstream.sent

    run(work())


def test_who_is_cancelled_instead_takes_the_call_along() -> None:
    """The others begin another one."""

    async def work() -> None:
        engine, upstream, (first, other) = await begin(2)
        first.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first.task
        upstream.may.set()
        assert ANSWER == (await other.task).body
        assert (2, 1, 0) == (upstream.sent, upstream.given_up, engine.statistics().in_flight)

    run(work())
