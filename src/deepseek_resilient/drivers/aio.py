"""The asyncio driver (uvloop too): answers effects by awaiting.

Time limits: one timer per call, moved lazily. Setting a limit writes one number; the timer looks at it when it fires
and goes back to sleep if the limit has moved on. So a stream of 8,000 chunks costs no 8,000 timers. A limit that has
passed cancels the await it guards, and only that; a cancellation from outside is passed on as it is (`Task.uncancel`,
as in `asyncio.timeout`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

from deepseek_resilient.core.effects import (
    Discard,
    Do,
    Emit,
    Read,
    Ready,
    Respond,
    Send,
    Sleep,
    Spawn,
    Wait,
    refuse_foreign,
)
from deepseek_resilient.core.messages import Failure, FailureKind, Reply, Response
from deepseek_resilient.drivers.threads import cause_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from deepseek_resilient.core.effects import CallCoroutine
    from deepseek_resilient.core.waiting import Bell

Resume = Any
"""`send` or `throw` of the call's coroutine."""

_TIMED_OUT = Failure(FailureKind.TIMEOUT, "a time limit passed")


class AsyncSender(Protocol):
    """What moves the bytes. It turns its library's errors into `Failure`s and closes a reply that failed or ended."""

    async def send(self, effect: Send) -> Reply | Failure:
        """Send the request, return the head of the reply."""

    async def read(self, effect: Read) -> bytes | Failure:
        """The next bytes of the body; `b""` at its end."""

    async def close(self, reply: Reply) -> None:
        """Give up the rest of a reply. Safe to repeat."""

    def abandon(self, reply: Reply) -> None:
        """As `close`, soon, for a reply that was dropped. Called on its loop."""


class AioCall:
    """One call on an event loop: `start`, then `chunks` if the response has no body, then `aclose`.

    Whoever says `leave` instead of cancelling its task says so by `leaves`: what the call only waits for (`Spawn`) is
    driven in that task then, and not in one of its own.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_coroutine",
        "_fired",
        "_flying",
        "_leaves",
        "_left",
        "_loop",
        "_raise_as",
        "_reply",
        "_rings_at",
        "_sender",
        "_spawned",
        "_task",
        "_timer",
        "_until",
        "_waiting",
    )

    def __init__(
        self,
        coroutine: CallCoroutine,
        sender: AsyncSender,
        *,
        clock: Callable[[], float],
        raise_as: Callable[[Failure], BaseException],
        loop: asyncio.AbstractEventLoop | None = None,
        leaves: asyncio.Task[Any] | None = None,
    ) -> None:
        self._coroutine = coroutine
        self._sender = sender
        self._clock = clock
        self._raise_as = raise_as
        self._loop = loop or asyncio.get_running_loop()
        self._leaves = leaves
        self._left = False
        self._spawned: Spawn | None = None
        self._flying: Spawn | None = None
        self._waiting = coroutine
        self._reply: Reply | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._until = 0.0
        self._rings_at = math.inf
        self._fired = False

    async def start(self) -> Response:
        """Run until the response is there (whole, or its head). Raises what `raise_as` makes of a failure."""
        resume: Resume = self._coroutine.send
        answer: object = None
        try:
            while True:
                effect = resume(answer)
                if effect.__class__ is Respond:
                    return effect.response
                resume, answer = await self._answer(effect)
                if self._left:
                    raise asyncio.CancelledError
        except StopIteration as stop:
            outcome = stop.value
            await self.aclose()
        except BaseException:
            await self.aclose()
            raise
        if isinstance(outcome, Response):
            return outcome
        if outcome is None:
            raise RuntimeError("the call ended without a response")
        error = self._raise_as(outcome)
        raise error from cause_of(error, outcome)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body after `start`, chunk by chunk. Raises what `raise_as` makes of a failure."""
        resume: Resume = self._coroutine.send
        answer: object = None
        outcome: object = None
        try:
            while True:
                effect = resume(answer)
                if effect.__class__ is Emit:
                    yield effect.chunk
                    effect = effect.ask(self._clock())
                resume, answer = await self._answer(effect)
        except StopIteration as stop:
            outcome = stop.value
        finally:
            await self.aclose()
        if isinstance(outcome, Failure):
            error = self._raise_as(outcome)
            raise error from cause_of(error, outcome)

    async def run(self) -> None:
        """Run a coroutine that hands nothing to a caller, to its end."""
        resume: Resume = self._coroutine.send
        answer: object = None
        try:
            while True:
                resume, answer = await self._answer(resume(answer))
        except StopIteration:
            pass
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End the call now; gives back everything it holds. Safe to repeat."""
        try:  # noqa: SIM105 -- suppress() would cost more than the rest
            self._coroutine.close()
        except ValueError:  # another task is inside; losing its reply below wakes it
            pass
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        reply, self._reply = self._reply, None
        if reply is not None:
            await self._sender.close(reply)

    def __del__(self) -> None:
        # on its loop and not here: the collector may run on any thread and inside any lock
        if self._coroutine.cr_frame is not None:  # type: ignore[attr-defined]
            with contextlib.suppress(RuntimeError):  # the loop is closed: so is everything on it
                self._loop.call_soon_threadsafe(_bury, self._coroutine, self._timer, self._sender, self._reply)

    async def _answer(self, effect: Any) -> tuple[Resume, object]:
        """How to go on: `send` with what the effect came to, or `throw` with what happened instead."""
        try:
            kind = effect.__class__
            if kind is Read:
                work: Awaitable[Any] = self._sender.read(effect)
            elif kind is Send:
                work = self._sender.send(effect)
            elif kind is Wait:
                spawned, self._spawned = self._spawned, None
                work = _rung(self._loop, effect.bell) if spawned is None else self._fly(spawned)
            elif kind is Spawn:
                return self._coroutine.send, self._spawn(effect)
            else:
                return self._coroutine.send, await self._perform(effect)
            answer = await (work if effect.until is None else self._within(work, effect.until))
            if kind is Send:
                if answer.__class__ is Reply and not answer.ended:
                    self._reply = answer
            elif kind is Read and (not answer or answer.__class__ is Failure or effect.reply.ended):
                reply, self._reply = self._reply, None
                if answer is _TIMED_OUT and reply is not None:
                    await self._sender.close(reply)
        except BaseException as error:
            return self._coroutine.throw, error
        return self._coroutine.send, None if kind is Wait else answer

    async def _perform(self, effect: object) -> object:
        if isinstance(effect, Sleep):
            await asyncio.sleep(effect.delay)
            return None
        if isinstance(effect, Discard):
            self._reply = None
            await self._sender.close(effect.reply)
            return None
        if isinstance(effect, Ready):
            return None
        if isinstance(effect, Do):
            return await self._loop.run_in_executor(None, effect.work)
        raise refuse_foreign(effect)

    def leave(self) -> None:
        """For the `leaves` task: nobody wants the answer any more. It ends as one that is cancelled, at once, or once
        nobody else needs what it drives."""
        if self._flying is not None and self._flying.awaited is not None and self._flying.awaited():
            self._left = True
            self._waiting.close()
        elif self._leaves is not None:
            self._leaves.cancel()

    def _spawn(self, effect: Spawn) -> Callable[[], None]:
        if effect.awaited is not None and self._leaves is not None and self._flying is None:
            self._spawned = effect
            return partial(self._soon, self._end_flight)
        beside = AioCall(effect.coroutine, self._sender, clock=self._clock, raise_as=self._raise_as, loop=self._loop)
        task = self._loop.create_task(beside.run())
        _beside.add(task)

        def over(_: object) -> None:
            _beside.discard(task)
            effect.ended()

        task.add_done_callback(over)
        return partial(self._soon, task.cancel)

    def _soon(self, end: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is everything on it
            self._loop.call_soon_threadsafe(end)

    def _end_flight(self) -> None:
        if self._flying is not None and self._leaves is not None:  # else it has ended, and the task does other things
            self._leaves.cancel()

    async def _fly(self, effect: Spawn) -> None:
        """Drive it in the place of the call, which only waits for it."""
        self._flying, self._coroutine = effect, effect.coroutine
        resume: Resume = effect.coroutine.send
        answer: object = None
        try:
            while True:
                resume, answer = await self._answer(resume(answer))
        except StopIteration:
            pass
        finally:
            self._flying, self._coroutine = None, self._waiting
            effect.ended()

    async def _within(self, work: Awaitable[Any], until: float) -> Any:
        """Await `work`, at the longest until the instant `until`; `_TIMED_OUT` when that passed."""
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 -- for the type checker; a coroutine always runs in a task
        self._task, self._until, self._fired = task, until, False
        before = task.cancelling()
        if until < self._rings_at:
            self._set_timer(until)
        try:
            answer = await work
        except asyncio.CancelledError:
            if self._fired and task.uncancel() <= before:
                return _TIMED_OUT
            raise
        finally:
            self._task = None
        if self._fired:  # it was cancelled and ended all the same
            task.uncancel()
        return answer

    def _set_timer(self, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = instant
        # weakly, so that a response that was dropped is collected at once and not when its limit passes
        delay = max(instant - self._clock(), 0.0)
        self._timer = self._loop.call_later(delay, _ring, weakref.ref(self))

    def _ring(self) -> None:
        self._timer, self._rings_at = None, math.inf
        if self._task is None:
            return
        if self._until - self._clock() > 0.0005:
            self._set_timer(self._until)
        else:
            self._fired = True
            self._task.cancel()


_beside: set[asyncio.Task[None]] = set()
"""The loop itself holds its tasks weakly."""


def _rung(loop: asyncio.AbstractEventLoop, bell: Bell) -> asyncio.Future[None]:
    """Done once the bell has rung, on whatever thread."""
    rung, home = loop.create_future(), get_ident()

    def wake() -> None:
        try:
            if get_ident() == home:
                _set(rung)
            else:
                loop.call_soon_threadsafe(_set, rung)
        except RuntimeError:  # its loop is closed: nobody waits any more
            pass

    bell.attach(wake)
    return rung


def _set(rung: asyncio.Future[None]) -> None:
    if not rung.done():
        rung.set_result(None)


def _bury(
    coroutine: CallCoroutine, timer: asyncio.TimerHandle | None, sender: AsyncSender, reply: Reply | None
) -> None:
    coroutine.close()
    if timer is not None:
        timer.cancel()
    if reply is not None:
        sender.abandon(reply)


def _ring(reference: weakref.ref[AioCall]) -> None:
    call = reference()
    if call is not None:
        call._ring()
