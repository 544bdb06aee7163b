"""The virtual driver: answers effects on a virtual clock, so that thousands of calls of a storm run in a second.

Time is whatever the scheduler says; randomness is the engine's seeded `Random`. The same seed gives the same run, event
for event. Nothing here blocks or awaits: a call that waits is a callback in the scheduler's queue.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from deepseek_resilient.core.effects import (
    Discard,
    Do,
    Effect,
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
from deepseek_resilient.core.messages import Failure, FailureKind, RawHeaders, Reply, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.core.effects import CallCoroutine
    from deepseek_resilient.core.messages import Request
    from deepseek_resilient.drivers.scheduler import Handle, Scheduler

_TIMED_OUT = Failure(FailureKind.TIMEOUT, "a time limit passed")


class VirtualSender(Protocol):
    """A world that requests are sent into."""

    def open(self, request: Request, inbox: Inbox) -> Callable[[], None]:
        """Begin to answer `request` into `inbox`, now or at later virtual times; returns how to hang up."""


class Inbox:
    """What has arrived of one reply, and who waits for it. The world calls `head`, `data`, `end` and `fail`."""

    __slots__ = ("_arrived", "_closed", "_waiting", "hang_up")

    def __init__(self) -> None:
        self._arrived: deque[Reply | bytes | Failure] = deque()
        self._waiting: Callable[[Reply | bytes | Failure], object] | None = None
        self._closed = False
        self.hang_up: Callable[[], None] | None = None

    def head(self, status: int, headers: RawHeaders) -> None:
        """The head of the reply arrives."""
        self._put(Reply(status, headers, self))

    def data(self, chunk: bytes) -> None:
        """Bytes of the body arrive."""
        if chunk:
            self._put(chunk)

    def end(self) -> None:
        """The body ends as it should."""
        self._put(b"")

    def fail(self, failure: Failure) -> None:
        """The connection fails."""
        self._put(failure)

    def take(self, waiting: Callable[[Reply | bytes | Failure], object]) -> None:
        """Call `waiting` with the next thing, at once if it is there."""
        if self._arrived:
            waiting(self._arrived.popleft())
        else:
            self._waiting = waiting

    def forget(self) -> None:
        """Nobody waits any more (a time limit passed)."""
        self._waiting = None

    def close(self) -> None:
        """Hang up; what arrives later is dropped."""
        if not self._closed:
            self._closed = True
            self._waiting = None
            self._arrived.clear()
            if self.hang_up is not None:
                self.hang_up()

    def _put(self, thing: Reply | bytes | Failure) -> None:
        if self._closed:
            return
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting(thing)
        else:
            self._arrived.append(thing)


class SimulatedCall:
    """One call in virtual time. `on_end` gets the outcome once; `response` and `received` show what the caller got."""

    __slots__ = (
        "_coroutine", "_ended", "_inbox", "_on_end", "_scheduler", "_sender", "_timer", "_turn",
        "outcome", "received", "response",
    )  # fmt: skip

    def __init__(
        self,
        coroutine: CallCoroutine,
        sender: VirtualSender,
        scheduler: Scheduler,
        on_end: Callable[[SimulatedCall], None] | None = None,
    ) -> None:
        self._coroutine = coroutine
        self._sender = sender
        self._scheduler = scheduler
        self._on_end = on_end
        self._inbox: Inbox | None = None
        self._timer: Handle | None = None
        self._turn = 0
        self._ended = False
        self.outcome: Response | Failure | BaseException | None = None
        self.response: Response | None = None
        self.received: list[bytes] = []

    def start(self) -> None:
        """Run until the call waits for the first time."""
        if not self._ended:
            self._run(self._coroutine.send, None)

    def cancel(self, error: BaseException | None = None) -> None:
        """The caller goes away: throw `error` into the call, or close it."""
        if self._ended:
            return
        self._turn += 1
        self._clear_timer()
        if error is None:
            self._coroutine.close()
            self._finish(GeneratorExit())
        else:
            self._run(self._coroutine.throw, error)

    def _run(self, resume: Callable[[Any], object], answer: object) -> None:
        """Go on until the coroutine waits or ends."""
        while True:
            try:
                effect = resume(answer)
            except StopIteration as stop:
                self._finish(stop.value)
                return
            except BaseException as error:
                if not isinstance(error, Exception):
                    self._finish(error)
                    return
                raise
            resume, answer = self._coroutine.send, None
            if isinstance(effect, Emit):
                self.received.append(effect.chunk)
                effect = effect.ask(self._scheduler.time())
            if isinstance(effect, Respond):
                self.response = effect.response
            elif isinstance(effect, Discard):
                self._hang_up()
            elif isinstance(effect, Spawn):
                beside = SimulatedCall(effect.coroutine, self._sender, self._scheduler, _ignoring(effect.ended))
                self._scheduler.call_later(0.0, beside.start)
                answer = beside.cancel
            elif isinstance(effect, Do):
                answer = effect.work()
            elif isinstance(effect, Ready):
                continue
            elif isinstance(effect, Effect):
                self._wait_for(effect)
                return
            else:
                resume, answer = self._coroutine.throw, refuse_foreign(effect)

    def _wait_for(self, effect: Effect[Any]) -> None:
        self._turn += 1
        turn = self._turn
        if isinstance(effect, Sleep):
            self._scheduler.call_later(effect.delay, self._answer, turn, None)
            return
        if isinstance(effect, Wait):
            if effect.until is not None:
                delay = max(effect.until - self._scheduler.time(), 0.0)
                self._timer = self._scheduler.call_later(delay, self._answer, turn, None)
            effect.bell.attach(lambda: self._scheduler.call_later(0.0, self._answer, turn, None))
            return
        if isinstance(effect, Send):
            self._inbox = Inbox()
            self._limit(effect.until, turn)
            self._inbox.hang_up = self._sender.open(effect.request, self._inbox)
        elif isinstance(effect, Read):
            self._limit(effect.until, turn)
        inbox = self._inbox
        if inbox is not None:
            inbox.take(lambda thing: self._scheduler.call_later(0.0, self._answer, turn, thing))

    def _limit(self, until: float | None, turn: int) -> None:
        if until is not None:
            delay = max(until - self._scheduler.time(), 0.0)
            self._timer = self._scheduler.call_later(delay, self._time_out, turn)

    def _time_out(self, turn: int) -> None:
        if turn == self._turn:
            self._hang_up()
            self._answer(turn, _TIMED_OUT)

    def _answer(self, turn: int, answer: object) -> None:
        if turn == self._turn:
            self._turn += 1
            self._clear_timer()
            self._run(self._coroutine.send, answer)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            inbox.close()

    def _finish(self, outcome: Response | Failure | BaseException | None) -> None:
        self._hang_up()
        self._ended = True
        self.outcome = outcome
        if isinstance(outcome, Response):
            self.response = outcome
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)


def _ignoring(ended: Callable[[], None]) -> Callable[[SimulatedCall], None]:
    return lambda _: ended()
