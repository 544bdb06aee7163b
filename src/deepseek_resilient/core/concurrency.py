"""Places: who may be in flight to a target, who waits, and who is refused.

`core/limit.py` says how many; this module gives the places out. A call that finds none waits in a bounded queue, higher
priorities first. Within a priority the oldest goes first, until the oldest has waited for half of what it can, or for
ten times what an answer usually takes: then the queue is overloaded, and the newest goes first. In turn, they would
all be answered late or too late, and a queue that an overload left behind would delay everybody who comes after it.
(Facebook's adaptive LIFO; the switch by the time spent waiting is CoDel's idea.) How long a call can wait is what its
deadline says, and what callers show who leave the queue before that: `patience`, a moving average of the waits that
they gave up, and of those of others that were longer.

Nobody waits longer than is of use: `until` is when an attempt would no longer end within the call's deadline. A full
queue refuses: the newcomer, or, if that one matters more, the least and oldest of those who wait.
`Retry-After` is the time in which the queue would empty: `queued * latency / limit`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_resilient.core.abandoned import AbandonedWork
from deepseek_resilient.core.limit import AdaptiveLimit, Sample
from deepseek_resilient.core.waiting import Bell

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deepseek_resilient.config import ConcurrencyPolicy


_CALM = 10.0
_PATIENCE_GAIN = 0.1
_UNKNOWN = 1.0


@dataclass(frozen=True, slots=True)
class ConcurrencyStatistics:
    """A look at the places: the limit in force, places taken (by calls in flight, and by work that callers gave up) and
    calls waiting, refusals so far, and the load seen by latency (1 = no queue at the server)."""

    limit: float
    in_flight: int
    queued: int
    refused: int
    load: float


class Waiter(Bell):
    """A call that waits for a place. Read `granted` and `refused` when its bell has rung."""

    __slots__ = ("came", "granted", "hurries_at", "left", "priority", "refused", "until")

    def __init__(self, priority: int, came: float, until: float, hurries_at: float) -> None:
        super().__init__()
        self.priority = priority
        self.came = came
        self.until = until
        self.hurries_at = hurries_at
        self.granted = self.refused = self.left = False

    @property
    def is_over(self) -> bool:
        """Whether it waits no longer."""
        return self.granted or self.refused or self.left


class Places:
    """The places of one target. Thread-safe; bells are rung without its lock.

    A higher number is a higher priority.
    """

    def __init__(self, policy: ConcurrencyPolicy, lock: AbstractContextManager[object], now: float) -> None:
        self._policy = policy
        self._lock = lock
        self._limit = AdaptiveLimit(policy, now)
        self._abandoned = AbandonedWork()
        self._patience = math.inf
        self._lookout: Waiter | None = None
        self._queues: dict[int, deque[Waiter]] = {}
        self._queued = 0
        self._refused = 0

    def try_enter(self, now: float) -> bool:
        """Take a place if one is free and nobody waits for it."""
        with self._lock:
            if self._queued:
                return False
            self._free(self._abandoned.over(now))
            if not self._limit.has_room(now):
                return False
            self._limit.entered(now)
            return True

    def queue(self, now: float, priority: int, until: float | None) -> Waiter | float:
        """A place in the queue for a call that can wait until then (None: for ever); or, when it is full, the seconds
        in which it would empty."""
        with self._lock:
            until = math.inf if until is None else until
            waiter = Waiter(priority, now, until, now + self._calm(until - now))
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
            if waiter.left or waiter.refused:
                return
            waiter.left = True
            if waiter.granted:
                self._limit.left(now)
            else:
                self._remove(waiter)
                if now < waiter.until:
                    self._learn_patience(now - waiter.came)
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

    def abandon(self, now: float, sample: Sample) -> None:
        """The caller of an attempt that holds a place gave it up before its answer began: the place stays taken while
        the server may be at it. An overload, unless answers are known to take more time than that."""
        with self._lock:
            self._limit.timed_out(now, sample._replace(allowed=sample.latency))
            self._abandoned.add(now, sample.started, self._limit.expected(stream=sample.size[0]))
            admitted = self._admit(now)
        for one in admitted:
            one.ring()

    def look_again(self, now: float, waiter: Waiter) -> float:
        """Give out the places of work that is over by now; when a call that still waits does well to come back.

        Nothing else may wake it then. One of those who wait comes back when more of that work is over; the others after
        the usual time, then after twice as long each time: the one may have left.
        """
        with self._lock:
            admitted = self._admit(now)
            end = self._abandoned.next_end()
            if self._lookout is None or self._lookout.is_over:
                self._lookout = waiter
            if end is None or self._lookout is not waiter:
                end = now + max(now - waiter.came, self._usual() or _UNKNOWN)
        for one in admitted:
            one.ring()
        return end

    def answered(self, now: float, sample: Sample) -> None:
        """An attempt that held a place was answered well."""
        with self._lock:
            self._limit.answered(now, sample)
            self._free(self._abandoned.overtaken(sample.started))
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
                self._limit.state(now, started, stated)
            else:
                self._limit.overloaded(now, started)

    def pause(self) -> None:
        """For a time nothing will be sent: the target asked for it."""
        with self._lock:
            self._limit.pause()

    def resume(self, now: float) -> None:
        """The target works again after an outage."""
        with self._lock:
            self._limit.resume(now)
            admitted = self._admit(now)
        for one in admitted:
            one.ring()

    def expected(self, *, stream: bool) -> float:
        """Seconds until the first content of a stream, or until the end of another answer, as of late; 0 at first."""
        with self._lock:
            return self._limit.expected(stream=stream)

    def pressure(self, now: float) -> tuple[float, float | None, float]:
        """Places taken, the limit (None until the server was once found full), and the seconds of a full queue."""
        with self._lock:
            limit, taken = self._limit.value, self._taken(now)
            if not self._limit.known:
                return taken, None, self._seconds_to_empty()
            return min(taken, limit), limit, self._seconds_to_empty()

    def seconds_to_empty(self) -> float:
        """Seconds in which the queue would empty as things stand."""
        with self._lock:
            return self._seconds_to_empty()

    def statistics(self, now: float) -> ConcurrencyStatistics:
        """How it stands."""
        with self._lock:
            limit = self._limit
            return ConcurrencyStatistics(limit.value, self._taken(now), self._queued, self._refused, limit.load)

    def _taken(self, now: float) -> int:
        return self._limit.in_flight - self._abandoned.count_over(now)

    def _free(self, beginnings: list[float]) -> None:
        for started in beginnings:
            self._limit.left(started)

    def _learn_patience(self, waited: float) -> None:
        before = self._patience
        self._patience = waited if before == math.inf else before + _PATIENCE_GAIN * (waited - before)

    def _admit(self, now: float) -> list[Waiter]:
        self._free(self._abandoned.over(now))
        admitted: list[Waiter] = []
        while self._queued and self._limit.has_room(now):
            queue = self._queues[max(self._queues)]
            waiter = queue.pop() if now > queue[0].hurries_at else queue.popleft()
            self._forget_empty(waiter.priority)
            self._queued -= 1
            self._limit.entered(now)
            waiter.granted = True
            if now - waiter.came > self._patience:
                self._learn_patience(now - waiter.came)
            admitted.append(waiter)
        return admitted

    def _calm(self, patience: float) -> float:
        """Seconds that a call may wait before the queue counts as overloaded."""
        shown = min(patience, self._patience) / 2
        usual = self._usual()
        return min(shown, _CALM * usual) if usual else shown

    def _usual(self) -> float:
        return max(self._limit.expected(stream=True), self._limit.expected(stream=False))

    def _remove(self, waiter: Waiter) -> None:
        self._queues[waiter.priority].remove(waiter)
        self._forget_empty(waiter.priority)
        self._queued -= 1

    def _forget_empty(self, priority: int) -> None:
        if not self._queues[priority]:
            del self._queues[priority]

    def _seconds_to_empty(self) -> float:
        return self._queued * self._usual() / self._limit.value if self._queued else 0.0
