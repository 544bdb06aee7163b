"""A second attempt beside one that is late, so that a few slow answers are not the slow percentiles of everybody.

    first   ── sent ──────────── late ───────────── x    cancelled
    second                        └── sent ── answer     handed over

Late is what takes a tenth longer to its first content than the policy's quantile of the calls of its kind took, learnt
from the last thousand of them. A first attempt that lost counts as slow as it was when it was cancelled: without it
each hedge would make the tail look shorter, and the next one come sooner.

Hedges are a share of the calls (a token bucket like the retry budget's) and are paid from the retry budget too; there
is one per call, of an attempt that was sent, at load level 0 only. With several upstreams the second goes to another.

Sources: Dean and Barroso, "The Tail at Scale" (2013), hedged requests; Finagle's BackupRequestFilter (a percentile, a
bound on the extra load).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import LRUCache

from deepseek_resilient.config.resilience import BudgetPolicy
from deepseek_resilient.core.budget import RetryBudget
from deepseek_resilient.core.effects import Wait
from deepseek_resilient.core.flight import Flight, Flights, Recorded, is_failure, ride, take_off
from deepseek_resilient.core.messages import Failure, FailureKind, Response
from deepseek_resilient.core.waiting import Bell
from deepseek_resilient.events import HedgeStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractContextManager
    from typing import Any

    from deepseek_resilient.config import HedgePolicy
    from deepseek_resilient.core.effects import Effect
    from deepseek_resilient.core.runtime import Call, Runtime

    Outcome = Response | Failure | None
    Lead = Callable[[Call], Coroutine[Effect[Any], Any, Outcome]]

_WINDOW = 1000
_KINDS = 200
_BURST = 10.0
_SLACK = 1.1
"""Where all answers take the same time nobody is late: ties are not worth a request."""


@dataclass(frozen=True, slots=True)
class HedgeStatistics:
    """Second attempts that were `sent`, how many of them answered first (`won`), and late calls that got none because
    of the load or the budgets (`refused`)."""

    sent: int
    won: int
    refused: int


class Latencies:
    """The last thousand times to first content. Not thread-safe: its owner holds the lock."""

    __slots__ = ("_recent", "_sorted")

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """One more; the oldest makes room."""
        if len(self._recent) == _WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(seconds)
        insort(self._sorted, seconds)

    def quantile(self, share: float, fewest: int) -> float | None:
        """What `share` of them did not exceed; None for fewer than `fewest`."""
        count = len(self._sorted)
        return self._sorted[int(share * count)] if count >= fewest else None


class Hedges:
    """What one engine knows of latencies, and what it may still spend. Thread-safe."""

    def __init__(
        self, policy: HedgePolicy, make_lock: Callable[[], AbstractContextManager[object]], now: float
    ) -> None:
        self._policy = policy
        self._lock = make_lock()
        self._kinds: LRUCache[tuple[object, ...], Latencies] = LRUCache(_KINDS)
        allowed = BudgetPolicy(ratio=policy.ratio, reserve=_BURST, per_second=0.0)
        self._allowance = RetryBudget(allowed, make_lock(), now)
        self._sent = self._won = self._refused = 0
        self.flights = Flights(make_lock())

    def delay(self, call: Call) -> float | None:
        """Seconds after which an attempt of that call is late; None where it is not hedged."""
        self._allowance.deposit()
        if call.max_retries == 0 or not call.request.replayable or not call.info.dialect.is_inference:
            return None
        with self._lock:
            known = self._kinds.get(_kind_of(call))
            late = None if known is None else known.quantile(self._policy.quantile, self._policy.minimum_samples)
        return None if late is None else late * _SLACK

    def learn(self, call: Call, seconds: float) -> None:
        """An attempt of that call had its first content after so many seconds, or not yet."""
        if call.simplified:
            return
        kind = _kind_of(call)
        with self._lock:
            known = self._kinds.get(kind)
            if known is None:
                known = self._kinds[kind] = Latencies()
            known.add(seconds)

    def pay(self, runtime: Runtime, call: Call, now: float, *, loaded: bool) -> bool:
        """Whether a second attempt may be sent now."""
        affordable = runtime.ledger is None or runtime.ledger.affords(call)
        paid = affordable and not loaded and self._allowance.try_withdraw(now)
        if paid and not runtime.budget.try_withdraw(now):
            self._allowance.refund()
            paid = False
        with self._lock:
            if paid:
                self._sent += 1
            else:
                self._refused += 1
        return paid

    def count_won(self) -> None:
        """The second attempt was the better one."""
        with self._lock:
            self._won += 1

    def statistics(self) -> HedgeStatistics:
        """The counts since the start."""
        with self._lock:
            return HedgeStatistics(self._sent, self._won, self._refused)


def _kind_of(call: Call) -> tuple[object, ...]:
    info = call.info
    return info.dialect, info.model, info.stream, len(call.request.body).bit_length()


async def hedged(runtime: Runtime, call: Call, hedges: Hedges, delay: float, lead: Lead) -> Outcome:
    """The outcome of `lead`, or that of a second one begun `delay` seconds after its attempt was sent."""
    flights = hedges.flights
    first = Flight(b"", call.twin())
    flying, boarded = [first], [first]
    before = 0
    try:
        await take_off(flights, first, _fly(runtime, flights, first, lead))
        if await _is_late(runtime, flights, first, delay) and _may_hedge(runtime, hedges, call, first):
            second = Flight(b"", first.call.twin())
            before = second.call.attempts
            second.call.second = True
            second.call.request = call.request.apart()  # the native one is still with the driver of the first
            flying.append(second)
            boarded.append(second)
            await take_off(flights, second, _fly(runtime, flights, second, lead))
        winner = await _decide(flights, flying)
        if winner is not first:
            hedges.count_won()
            late = first.call.attempt
            if late is not None:
                hedges.learn(first.call, runtime.clock() - late.started)
        _adopt(call, flying, winner, before)
        if runtime.ledger is not None and call.record is not None and len(flying) > 1:
            runtime.ledger.lose(call.record, hedge=winner is first)
        boarded = [winner]
        for flight in flying:
            if flight is not winner:
                flights.leave(flight)
        head = winner.response
        if head is not None:
            outcome = await ride(flights, winner, _marked(call, head, flying, winner))
            _adopt(call, flying, winner, before)
            return outcome
        if winner.error is not None:
            raise winner.error
        if winner.lost:
            return Failure(FailureKind.BROKEN, "the call was stopped: its event loop was closed")
        outcome = winner.outcome
        return _marked(call, outcome, flying, winner) if isinstance(outcome, Response) else outcome
    finally:
        for flight in boarded:
            flights.leave(flight)


async def _fly(runtime: Runtime, flights: Flights, flight: Flight, lead: Lead) -> None:
    try:
        outcome = await Recorded(flights, flight, lead(flight.call), runtime.clock)
    except Exception as error:
        flights.land(flight, error=error)
        return
    flights.land(flight, outcome)


async def _is_late(runtime: Runtime, flights: Flights, flight: Flight, delay: float) -> bool:
    """Wait until the attempt in flight is late, or there is something of it."""
    due = runtime.clock() + delay
    while True:
        bell = flights.listen(flight, -1)
        await Wait(bell, until=due)
        if bell.rung:
            return False
        now, attempt = runtime.clock(), flight.call.attempt
        since = now if attempt is None else attempt.started  # else it waits for a place, or to be repeated
        due = since + delay
        if now >= due:
            return True


def _may_hedge(runtime: Runtime, hedges: Hedges, call: Call, first: Flight) -> bool:
    """Whether there is an attempt to be hedged, no load, and the budgets pay."""
    attempt, now = first.call.attempt, runtime.clock()
    if attempt is None:
        return False
    admission = None if attempt.entry.target is None else attempt.entry.target.admission
    loaded = admission is not None and admission.meter.look(now)[0] > 0
    if not hedges.pay(runtime, first.call, now, loaded=loaded):
        return False
    runtime.listeners.emit(HedgeStarted(now, call.number, first.call.target, now - attempt.started))
    return True


async def _decide(flights: Flights, flying: list[Flight]) -> Flight:
    """The first that has something good; where none has, the first that began."""
    while True:
        for flight in flying:
            if flight.response is not None or (flight.landed and _is_good(flight, may_refuse=flight is flying[0])):
                return flight
        pending = [flight for flight in flying if not flight.landed]
        if not pending:
            return flying[0]
        bell = Bell()
        for flight in pending:
            flights.listen(flight, -1, bell)
        await Wait(bell, until=None)


def _is_good(flight: Flight, *, may_refuse: bool) -> bool:
    """Whether a flight that landed decides the call. That the caller is at fault, only the first may say: the second
    may have been at another upstream, with another key and other models."""
    outcome = flight.outcome
    if flight.lost or flight.error is not None or is_failure(outcome):
        return False
    return may_refuse or (isinstance(outcome, Response) and outcome.status < 400)


def _adopt(call: Call, flying: list[Flight], winner: Flight, before: int) -> None:
    """What came of it is what the call tells of itself; there were so many attempts before the second one."""
    own = winner.call
    call.target, call.simplified, call.waited, call.verdicts = own.target, own.simplified, own.waited, own.verdicts
    call.seam = own.seam
    call.attempts = flying[0].call.attempts + sum(second.call.attempts - before for second in flying[1:])


def _marked(call: Call, response: Response, flying: list[Flight], winner: Flight) -> Response:
    """The response, with all attempts, and the word which of two it is."""
    if len(flying) > 1:
        word = b"first" if winner is flying[0] else b"second"
        kept = [pair for pair in response.headers if pair[0] != b"x-resilient-attempts"]
        response.headers = [*kept, (b"x-resilient-attempts", b"%d" % call.attempts), (b"x-resilient-hedge", word)]
    return response
