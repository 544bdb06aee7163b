"""How much work the simulated DeepSeek can do: slots, a queue before them, and what becomes of abandoned work.

Throughput is `slots / service_time` requests per second (Little's law with all slots busy); requests in the system are
arrival rate times time spent. Overload is what happens above that: the queue grows, clients leave, and where their work
is carried out all the same the useful part of the throughput falls although every slot stays busy.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from deepseek_resilient.drivers.scheduler import Handle, Scheduler

Distribution = Literal["fixed", "exponential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacitySettings:
    """A server's size.

    `slots` requests are worked on at once, each for `service_time` seconds (mean) drawn from `distribution`. At most
    `queue_limit` more wait (None: endless). With `wasted`, work whose client has gone keeps its place and its slot and
    is done for nobody; without, it leaves at once. Above `concurrency_limit` requests in the system (waiting and
    worked on; None: no limit) the account is refused.
    """

    slots: int = 16
    service_time: float = 0.02
    distribution: Distribution = "fixed"
    queue_limit: int | None = None
    wasted: bool = True
    concurrency_limit: int | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, not {self.slots!r}")
        if not (self.service_time >= 0 and math.isfinite(self.service_time)):
            raise ValueError(f"service_time must be seconds from 0 up, not {self.service_time!r}")
        if self.distribution not in ("fixed", "exponential"):
            raise ValueError(f"distribution must be 'fixed' or 'exponential', not {self.distribution!r}")
        if self.queue_limit is not None and self.queue_limit < 0:
            raise ValueError(f"queue_limit must be None or at least 0, not {self.queue_limit!r}")
        if self.concurrency_limit is not None and self.concurrency_limit < 0:
            raise ValueError(f"concurrency_limit must be None or at least 0, not {self.concurrency_limit!r}")

    @property
    def rate(self) -> float:
        """Requests per second with every slot busy."""
        return self.slots / self.service_time if self.service_time else math.inf

    @staticmethod
    def slots_for(rate: float, service_time: float) -> tuple[int, float]:
        """Slots, and the service time near `service_time` seconds, that together give `rate` requests per second."""
        if not (rate > 0 and service_time > 0 and math.isfinite(rate * service_time)):
            raise ValueError(f"rate and service_time must be above 0, not {rate!r} and {service_time!r}")
        slots = max(1, round(rate * service_time))
        return slots, slots / rate


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that got no place: the queue is "full", or the account is over its concurrency "limit"."""

    reason: Literal["full", "limit"]
    current: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityStatistics:
    """Counts since the start; `waited` and `busy` in seconds, summed over requests and over slots."""

    submitted: int
    served: int
    wasted: int
    left: int
    refused_full: int
    refused_limit: int
    in_service: int
    queued: int
    peak_in_service: int
    peak_queued: int
    waited: float
    busy: float


class Ticket:
    """One request's place in the queue or slot."""

    __slots__ = ("_capacity", "_due", "_on_done", "_on_start", "_since", "_state", "_timer", "_work", "abandoned")

    def __init__(
        self,
        capacity: Capacity,
        on_start: Callable[[float], object],
        on_done: Callable[[], object],
        work: float,
        since: float,
    ) -> None:
        self._capacity = capacity
        self._on_start = on_start
        self._on_done = on_done
        self._work = work
        self._since = since
        self._due = since
        self._state: Literal["waiting", "running", "over"] = "waiting"
        self._timer: Handle | None = None
        self.abandoned = False

    @property
    def waiting(self) -> bool:
        """True while it waits for a slot."""
        return self._state == "waiting"

    def abandon(self) -> None:
        """Nobody wants the answer any more: no callback of this ticket runs from here on. Safe to repeat."""
        if not self.abandoned and self._state != "over":
            self.abandoned = True
            self._capacity._abandoned(self)


class Capacity:
    """The slots and the queue, first come first served. Not thread-safe; all calls from the scheduler's thread.

    `pace` gives the factor on the service time for work that starts at a given time (brown-outs).
    """

    def __init__(
        self,
        scheduler: Scheduler,
        settings: CapacitySettings,
        rng: Random,
        pace: Callable[[float], float] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._rng = rng
        self._pace = pace
        self._queue: deque[Ticket] = deque()
        self._queued = self._in_service = 0
        self._submitted = self._served = self._wasted = self._left = 0
        self._refused_full = self._refused_limit = 0
        self._peak_in_service = self._peak_queued = 0
        self._waited = self._busy = 0.0

    @property
    def settings(self) -> CapacitySettings:
        """The settings in force."""
        return self._settings

    def submit(
        self, on_start: Callable[[float], object], on_done: Callable[[], object], work: float = 1.0
    ) -> Ticket | Refusal:
        """Ask for `work` times the service time of one slot.

        `on_start(seconds)` is called when a slot takes it on, with the time it will take: at once, before this returns,
        when a slot is free. `on_done()` is called when the work is done.
        """
        settings = self._settings
        self._submitted += 1
        current = self._in_service + self._queued
        if settings.concurrency_limit is not None and current >= settings.concurrency_limit:
            self._refused_limit += 1
            return Refusal("limit", current + 1, settings.concurrency_limit)
        free = self._in_service < settings.slots
        if not free and settings.queue_limit is not None and self._queued >= settings.queue_limit:
            self._refused_full += 1
            return Refusal("full", current + 1, settings.slots + settings.queue_limit)
        ticket = Ticket(self, on_start, on_done, work, self._scheduler.time())
        if free:
            self._start(ticket)
        else:
            self._queue.append(ticket)
            self._queued += 1
            self._peak_queued = max(self._peak_queued, self._queued)
        return ticket

    def update(self, settings: CapacitySettings) -> None:
        """Put other settings in force: new slots take on waiting work now, surplus ones close when theirs is done."""
        self._settings = settings
        self._fill()

    def statistics(self) -> CapacityStatistics:
        """The counts so far."""
        return CapacityStatistics(
            submitted=self._submitted,
            served=self._served,
            wasted=self._wasted,
            left=self._left,
            refused_full=self._refused_full,
            refused_limit=self._refused_limit,
            in_service=self._in_service,
            queued=self._queued,
            peak_in_service=self._peak_in_service,
            peak_queued=self._peak_queued,
            waited=self._waited,
            busy=self._busy,
        )

    def _start(self, ticket: Ticket, late: float = 0.0) -> None:
        settings = self._settings
        now = self._scheduler.time()
        duration = settings.service_time * ticket._work
        if self._pace is not None:
            duration *= self._pace(now)
        if settings.distribution == "exponential":
            duration *= self._rng.expovariate(1.0)
        self._waited += now - ticket._since
        ticket._since = now
        ticket._state = "running"
        self._in_service += 1
        self._peak_in_service = max(self._peak_in_service, self._in_service)
        delay = duration - min(late, duration)
        ticket._due = now + delay
        ticket._timer = self._scheduler.call_later(delay, self._done, ticket)
        if not ticket.abandoned:
            ticket._on_start(duration)

    def _done(self, ticket: Ticket) -> None:
        self._free(ticket)
        if ticket.abandoned:
            self._wasted += 1
        else:
            self._served += 1
            ticket._on_done()
        # a real timer fires late: work that was waiting for this slot starts when it was due, so that rate stays exact
        self._fill(self._scheduler.time() - ticket._due)

    def _abandoned(self, ticket: Ticket) -> None:
        if self._settings.wasted:
            return
        self._left += 1
        if ticket._state == "waiting":
            ticket._state = "over"
            self._queued -= 1
            self._sweep()
        else:
            if ticket._timer is not None:
                ticket._timer.cancel()
            self._free(ticket)
            self._fill()

    def _free(self, ticket: Ticket) -> None:
        ticket._state = "over"
        self._in_service -= 1
        self._busy += self._scheduler.time() - ticket._since

    def _fill(self, late: float = 0.0) -> None:
        queue = self._queue
        while queue and self._in_service < self._settings.slots:
            ticket = queue.popleft()
            if ticket._state == "waiting":
                self._queued -= 1
                self._start(ticket, late)
                late = 0.0

    def _sweep(self) -> None:
        # those that left stay in the deque until their turn; keep that from growing without bound
        if len(self._queue) > 64 and len(self._queue) > 2 * self._queued:
            self._queue = deque(ticket for ticket in self._queue if ticket._state == "waiting")
