"""Flights: one upstream call that several callers share, whoever of them began it.

The call is driven beside all of them (`effects.Spawn`): what it hands over is kept in the flight, and every caller, the
one that began it too, reads it there at its own speed. A caller that joins late gets what has come so far, then the
rest as it comes. So a caller's cancellation touches nobody else; when the last one has left, the call is cancelled.

A flight is *lost* when its driver was stopped under it (its event loop ended). Who got nothing of it yet begins anew.

(Go's singleflight and nginx' proxy_cache_lock share buffered answers only, and fail everybody when the first one goes.)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from deepseek_resilient.core.effects import Emit, Respond, Spawn, Wait
from deepseek_resilient.core.messages import Failure, FailureKind, Response
from deepseek_resilient.core.waiting import Bell

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextlib import AbstractContextManager

    from deepseek_resilient.core.answer import Answer
    from deepseek_resilient.core.effects import Effect
    from deepseek_resilient.core.runtime import Call

_ENOUGH = 0.5
"""A flight must have this share of the newcomer's time left, or the newcomer begins its own."""


class Flight:
    """One shared call. Read by its passengers, written by the call through `Flights`.

    `response` is the head of a stream, from its commit point on; `outcome`, once `landed`, is the call's own. `error`
    is what it raised, a mistake of somebody's. `reused` is the answer, if it came from the store. `whole` is how many
    chunks of the stream had come when it had shown its end, 0 before.
    """

    __slots__ = (
        "call", "cancel", "chunks", "error", "key", "landed", "lost", "outcome", "passengers", "response", "reused",
        "stale", "waiting", "whole",
    )  # fmt: skip

    def __init__(self, key: bytes, call: Call) -> None:
        self.key = key
        self.call = call
        self.response: Response | None = None
        self.chunks: list[bytes] = []
        self.outcome: Response | Failure | None = None
        self.reused: Answer | None = None
        self.stale: Answer | None = None
        self.error: Exception | None = None
        self.landed = self.lost = False
        self.cancel: Callable[[], None] | None = None
        self.passengers = 1
        self.whole = 0
        self.waiting: list[Bell] = []

    def is_shared(self) -> bool:
        """Whether it has more passengers than one."""
        return self.passengers > 1


class Flights:
    """The flights of one engine that may still be joined. Thread-safe."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._flights: dict[bytes, Flight] = {}

    def board(self, key: bytes, call: Call, now: float) -> tuple[Flight, bool]:
        """A seat in the flight of that key, and whether this call has to make it."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and _is_good_for(flight.call, call, now):
                flight.passengers += 1
                return flight, False
            flight = self._flights[key] = Flight(key, call)
            return flight, True

    def open(self, key: bytes, call: Call) -> Flight | None:
        """A flight of that key, made by `call`; None if there is one."""
        with self._lock:
            if key in self._flights:
                return None
            flight = self._flights[key] = Flight(key, call)
            return flight

    def leave(self, flight: Flight) -> None:
        """Give the seat back; the call is cancelled when it was the last one and there is more to come."""
        with self._lock:
            flight.passengers -= 1
            if flight.passengers or flight.landed:
                return
            self._forget(flight)
        if flight.cancel is not None:
            flight.cancel()

    def listen(self, flight: Flight, seen: int, bell: Bell | None = None) -> Bell:
        """What rings when more has come than `seen` chunks (-1: than nothing, not even a head); rung if it has."""
        bell = bell or Bell()
        with self._lock:
            come = flight.landed or (flight.response is not None if seen < 0 else len(flight.chunks) > seen)
            if not come:
                flight.waiting.append(bell)
        if come:
            bell.ring()
        return bell

    def begin(self, flight: Flight, response: Response) -> None:
        """The head of a stream."""
        flight.response = response
        self._ring(flight)

    def feed(self, flight: Flight, chunk: bytes) -> None:
        """More of the stream."""
        flight.chunks.append(chunk)
        self._ring(flight)

    def land(
        self, flight: Flight, outcome: Response | Failure | None = None, *,
        reused: Answer | None = None, error: Exception | None = None, lost: bool = False,
    ) -> None:  # fmt: skip
        """The end of it; the first one counts. Nobody joins it any more."""
        with self._lock:
            if flight.landed:
                return
            flight.outcome, flight.reused, flight.error, flight.lost = outcome, reused, error, lost
            flight.landed = True
            self._forget(flight)
        self._ring(flight)

    def _forget(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _ring(self, flight: Flight) -> None:
        with self._lock:
            waiting, flight.waiting = flight.waiting, []
        for bell in waiting:
            bell.ring()


class Recorded:
    """Awaits `coroutine`, a call; what it would hand to its caller goes into `flight` instead.

    `keep` is awaited with the bytes by which a stream has shown its end, before any passenger gets them: whoever has
    seen the end leaves, and the call is cancelled behind them.
    """

    __slots__ = ("_clock", "_coroutine", "_flight", "_flights", "_keep")

    def __init__(
        self,
        flights: Flights,
        flight: Flight,
        coroutine: Coroutine[Effect[Any], Any, Any],
        clock: Callable[[], float],
        keep: Callable[[bytes], Coroutine[Effect[Any], Any, object]] | None = None,
    ) -> None:
        self._flights = flights
        self._flight = flight
        self._coroutine = coroutine
        self._clock = clock
        self._keep = keep

    def __await__(self) -> Generator[Effect[Any], Any, Response | Failure | None]:
        coroutine = self._coroutine
        resume: Callable[[Any], Any] = coroutine.send
        answer: object = None
        while True:
            try:
                effect = resume(answer)
            except StopIteration as stop:
                outcome: Response | Failure | None = stop.value
                return outcome
            resume, answer = coroutine.send, None
            if effect.__class__ is Respond:
                self._flights.begin(self._flight, effect.response)
                continue
            try:
                if effect.__class__ is Emit:
                    if effect.whole and not self._flight.whole:
                        if self._keep is not None:
                            yield from self._keep(effect.chunk).__await__()
                        self._flight.whole = len(self._flight.chunks) + 1
                    self._flights.feed(self._flight, effect.chunk)
                    effect = effect.ask(self._clock())
                answer = yield effect
            except BaseException as error:
                resume, answer = coroutine.throw, error


async def take_off(
    flights: Flights,
    flight: Flight,
    flying: Coroutine[Effect[Any], Any, None],
    awaited: Callable[[], bool] | None = None,
) -> None:
    """Drive `flying`, which makes the call of that flight, beside this one; `awaited` as in `Spawn`."""
    lost = partial(flights.land, flight, lost=True)
    try:
        flight.cancel = await Spawn(flying, lost, awaited)
    except BaseException:
        flying.close()
        lost()
        raise


async def ride(flights: Flights, flight: Flight, head: Response) -> Response | Failure | None:
    """Hand the flight's stream to this caller, as fast as it is taken; what the flight came to."""
    await Respond(head)
    seen, emit, chunks = 0, Emit(b"", None, patience=None), flight.chunks
    while True:
        while seen < len(chunks):
            emit.chunk = chunks[seen]
            seen += 1
            emit.whole = 0 < flight.whole <= seen
            await emit
        if flight.landed and seen == len(chunks):
            break
        await Wait(flights.listen(flight, seen), until=None)
    if flight.error is not None:
        raise flight.error
    if flight.lost:
        return Failure(FailureKind.CUT, "the stream was cut: the event loop that read it was closed")
    return flight.outcome


def is_failure(outcome: Response | Failure | None) -> bool:
    """Whether a call failed for a reason that is not its own, before anything was handed over."""
    if isinstance(outcome, Response):
        status = outcome.status
        return status >= 500 or status in (402, 408, 429)
    return outcome is not None and outcome.kind not in (FailureKind.CUT, FailureKind.SILENT, FailureKind.UNUSABLE)


def _is_good_for(flying: Call, call: Call, now: float) -> bool:
    """Whether `call` is served as well by that flight: it matters no less, and has time enough."""
    if flying.priority < call.priority:
        return False
    if flying.deadline is None:
        return True
    if call.deadline is None:
        return False
    return flying.deadline - now >= _ENOUGH * (call.deadline - now)
