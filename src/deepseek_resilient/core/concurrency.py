"""Places: who may be in flight to a target, who waits, and who is refused.

`core/limit.py` says how many; this module gives the places out. A call that finds none waits in a bounded queue, higher
priorities first. Within a priority the oldest goes first, until the oldest has waited for half of what it can, or for
ten times what an answer usually takes: then the queue is overloaded, and the newest goes first. In turn, they would
all be answered late or too late, and a queue that an overload left behind would delay everybody who comes after it.
(Facebook's adaptive LIFO; the switch by the time spent waiting is CoDel's idea.)

Nobody waits longer than is of use: `until` is when an attempt would no longer end within the call's deadline. A full
queue refuses: the newcomer, or, if that one matters more, the least and oldest of those who wait.
`Retry-After` is the time in which the queue would empty: `queued * latency / limit`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_resilient.core.limit import AdaptiveLimit, Sample
from deepseek_resilient.core.waiting import Bell

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deepseek_resilient.config import ConcurrencyPolicy


_CALM = 10.0


@dataclass(frozen=True, slots=True)
class ConcurrencyStatistics:
    """A look at the places: the limit in force, calls in flight and waiting, refusals so far, and the load seen by
    latency (1 = no queue at the server)."""

    limit: float
    in_flight: int
    queued: int
    refused: int
    load: float


class Waiter(Bell):
    """A call that waits for a place. Read `granted` and `refused` when its bell has rung."""

    __slots__ = ("granted", "hurries_at", "left", "priority", "refused")

    def __init__(self, priority: int, hurries_at: float) -> None:
        super().__init__()
        self.priority = priority
        self.hurries_at = hurries_at
        self.granted = self.refused = self.left = False


class Places:
    """The places of one target. Thread-safe; bells are rung without its lock.

    A higher number is a higher priority.
    """

    def __init__(self, policy: ConcurrencyPolicy, lock: AbstractContextManager[object], now: float) -> None:
        self._policy = policy
        self._lock = lock
        self._limit = AdaptiveLimit(policy, now)
        self._queues: dict[int, deque[Waiter]] = {}
        self._queued = 0
        self._refused = 0

    def try_enter(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        with self._lock:
            if self._queued or self._limit.in_flight >= self._limit.value:
                return False
            self._limit.entered()
            return True

    def queue(self, now: float, priority: int, until: float | None) -> Waiter | float:
        """A place in the queue for a call that can wait until then (None: for ever); or, when it is full, the seconds
        in which it would empty."""
        with self._lock:
            waiter = Waiter(priority, now + self._calm(math.inf if until is None else until - now))
            self._queues.setdefault(priority, deque()).append(waiter)
            self._queued += 1
            admitted = self._admit(now)
            loser = None
            if self._queued > self._policy.queue:
                least = self._queues[min(self._queues)]
                loser = waiter if least[0].priority >= priority else least[0]
                self._remove(loser)
                loser.refused = True
                self._refused += 1
                if loser is waiter:
                    return self._seconds_to_empty()
        if loser is not None:
            loser.ring()
        for one in admitted:
            one.ring()
        return waiter

    def leave(self, waiter: Waiter, now: float) -> None:
        """Wait no longer, whatever became of it; gives back a place that was granted meanwhile. Safe to repeat."""
        with self._lock:
            if waiter.left:
                return
            waiter.left = True
            if waiter.granted:
                self._limit.left(now)
            elif not waiter.refused:
                self._remove(waiter)
            admitted = self._admit(now)
        for one in admitted:
            one.ring()

    def exit(self, now: float, started: float) -> None:
        """Give the place back that was used since then."""
        with self._lock:
            self._limit.left(started)
            admitted = self._admit(now)
        for one in admitted:
            one.ring()

    def answered(self, now: float, sample: Sample) -> None:
        """An attempt that held a place was answered well."""
        with self._lock:
            self._limit.answered(now, sample)
            admitted = self._admit(now) if self._queued else []
        for one in admitted:
            one.ring()

    def timed_out(self, now: float, sample: Sample) -> None:
        """An attempt that held a place ran into its time limit."""
        with self._lock:
            self._limit.timed_out(now, sample)

    def overloaded(self, now: float, started: float, stated: int | None = None) -> None:
        """An attempt that held a place met a 429 or 503; the server may have stated its limit."""
        with self._lock:
            if stated is not None:
                self._limit.state(now, stated)
            else:
                self._limit.overloaded(now, started)

    def expected(self, *, stream: bool) -> float:
        """Seconds until the first content of a stream, or until the end of another answer, as of late; 0 at first."""
        with self._lock:
            return self._limit.expected(stream=stream)

    def pressure(self) -> tuple[float, float | None, float]:
        """Calls in flight, the limit (None until the server was once found full), and the seconds of a full queue."""
        with self._lock:
            limit = self._limit.value
            if not self._limit.known:
                return self._limit.in_flight, None, self._seconds_to_empty()
            return min(self._limit.in_flight, limit), limit, self._seconds_to_empty()

    def seconds_to_empty(self) -> float:
        """Seconds in which the queue would empty as things stand."""
        with self._lock:
            return self._seconds_to_empty()

    def statistics(self) -> ConcurrencyStatistics:
        """How it stands."""
        with self._lock:
            limit = self._limit
            return ConcurrencyStatistics(limit.value, limit.in_flight, self._queued, self._refused, limit.load)

    def _admit(self, now: float) -> list[Waiter]:
        admitted: list[Waiter] = []
        while self._queued and self._limit.in_flight < self._limit.value:
            queue = self._queues[max(self._queues)]
            waiter = queue.pop() if now > queue[0].hurries_at else queue.popleft()
            self._forget_empty(waiter.priority)
            self._queued -= 1
            self._limit.entered()
            waiter.granted = True
            admitted.append(waiter)
        return admitted

    def _calm(self, patience: float) -> float:
        """Seconds that a call may wait before the queue counts as overloaded."""
        limit = self._limit
        usual = max(limit.expected(stream=True), limit.expected(stream=False))
        return min(patience / 2, _CALM * usual) if usual else patience / 2

    def _remove(self, waiter: Waiter) -> None:
        self._queues[waiter.priority].remove(waiter)
        self._forget_empty(waiter.priority)
        self._queued -= 1

    def _forget_empty(self, priority: int) -> None:
        if not self._queues[priority]:
            del self._queues[priority]

    def _seconds_to_empty(self) -> float:
        limit = self._limit
        return self._queued * max(limit.expected(stream=True), limit.expected(stream=False)) / limit.value
