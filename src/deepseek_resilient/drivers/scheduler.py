"""Time as the simulator and the lab know it: a clock and timers, real or virtual.

Everything that waits there asks a `Scheduler`. An asyncio event loop is one as it stands; `VirtualScheduler` is
one whose clock jumps from event to event, so a day of simulated load takes as long as its callbacks do.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Protocol, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable

Ts = TypeVarTuple("Ts")


class Handle(Protocol):
    """A timer that can be taken back; cancelling one that has run or was cancelled does nothing."""

    def cancel(self) -> None: ...


class Scheduler(Protocol):
    """A monotonic clock in seconds, and timers on it. Any asyncio event loop satisfies it."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[*Ts], object], /, *args: *Ts) -> Handle: ...


class VirtualTimer:
    """One pending event of a `VirtualScheduler`: when it is due (seconds) and what it calls."""

    __slots__ = ("_args", "_callback", "_owner", "when")

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[object, ...], owner: VirtualScheduler
    ) -> None:
        self.when = when
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._owner = owner

    @property
    def pending(self) -> bool:
        """True until it has run or was cancelled."""
        return self._callback is not None

    def cancel(self) -> None:
        """Take the event back; what it held is let go at once."""
        if self._callback is not None:
            self._callback = None
            self._args = ()
            self._owner._forget_one()


class VirtualScheduler:
    """A clock that stands still while callbacks run and jumps to the next event between them.

    Deterministic: events due at the same time run in the order they were asked for. A delay below zero counts as zero.
    An exception in a callback leaves through `step`, `run_until` or `run`; the scheduler stays usable. Not thread-safe.
    """

    __slots__ = ("_cancelled", "_heap", "_now", "_sequence")

    _SWEEP_FROM = 256

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._sequence = 0
        self._cancelled = 0
        self._heap: list[tuple[float, int, VirtualTimer]] = []

    def time(self) -> float:
        """The virtual time in seconds."""
        return self._now

    def call_later(self, delay: float, callback: Callable[[*Ts], object], /, *args: *Ts) -> VirtualTimer:
        """Call `callback(*args)` once, `delay` seconds from now."""
        return self._add(self._now + delay, callback, args)

    def call_at(self, when: float, callback: Callable[[*Ts], object], /, *args: *Ts) -> VirtualTimer:
        """Call `callback(*args)` once at the time `when`; a time that has passed means now. NaN is a `ValueError`."""
        return self._add(when, callback, args)

    def step(self) -> bool:
        """Advance to the next event and run it. False when nothing is pending: then the clock has not moved."""
        return self._run(math.inf, 1) == 1

    def run_until(self, when: float) -> int:
        """Run every event due up to and including `when`, then set the clock to `when`; how many ran."""
        ran = self._run(when, None)
        self._now = max(self._now, when)
        return ran

    def run(self, limit: int | None = None) -> int:
        """Run until nothing is pending or `limit` events have run; how many ran. The clock stays at the last one."""
        return self._run(math.inf, limit)

    @property
    def pending(self) -> int:
        """How many events are still to run."""
        return len(self._heap) - self._cancelled

    def next_time(self) -> float | None:
        """When the next event is due, in seconds of this clock; None when nothing is pending."""
        heap = self._heap
        while heap and heap[0][2]._callback is None:
            heappop(heap)
            self._cancelled -= 1
        return heap[0][0] if heap else None

    def _add(self, when: float, callback: Callable[..., object], args: tuple[object, ...]) -> VirtualTimer:
        if not when >= self._now:
            if math.isnan(when):
                raise ValueError("an event cannot be due at NaN")
            when = self._now
        timer = VirtualTimer(when, callback, args, self)
        self._sequence += 1
        heappush(self._heap, (when, self._sequence, timer))
        return timer

    def _run(self, until: float, limit: int | None) -> int:
        heap = self._heap
        ran = 0
        while heap and ran != limit and heap[0][0] <= until:
            when, _, timer = heappop(heap)
            callback = timer._callback
            if callback is None:
                self._cancelled -= 1
                continue
            timer._callback = None
            self._now = when
            ran += 1
            callback(*timer._args)
        return ran

    def _forget_one(self) -> None:
        self._cancelled += 1
        if self._cancelled > self._SWEEP_FROM and self._cancelled * 2 > len(self._heap):
            # in place: _run holds the same list
            self._heap[:] = [entry for entry in self._heap if entry[2]._callback is not None]
            heapify(self._heap)
            self._cancelled = 0
