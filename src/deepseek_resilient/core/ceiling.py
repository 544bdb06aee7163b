"""The ceiling that a server states for the calls in flight ("concurrency limit of 25"): believed, and tried again.

A statement is the truth about its moment: the ceiling is that number at once, be it lower or higher than what was
believed. But nobody is told when the server takes more, so one more than it stated is let in now and then:

- first after half a second, then each time the number has held for half as long again, at most `probe_interval` later:

      next probe = max(first, held / 2) after the last one, held = now - when the number last changed

  so a rise is noticed within a third of the time for which the limit stood, and a limit that stands for good costs a
  dozen refused requests in its first minute and one per `probe_interval` later. Nothing is spent while fewer calls are
  in flight than were stated;
- as soon as an attempt that began after the probe was let in is answered, and no 429 came, the server takes that many:
  the ceiling goes on from there by 1, 2, 4 ... up to a quarter of itself, one step per answer (slow start, as in RFC
  5681; the cautious quarter bounds how many are refused where it ends);
- the 429 that ends it states the new number.

The intervals are those of an exponential backoff; TCP CUBIC (RFC 9438) too probes soon and boldly where it knows
nothing, and rarely near what was refused.
"""

from __future__ import annotations

import math

_FIRST = 0.5
_GROWTH = 0.5
_SHARE = 4


class StatedCeiling:
    """For one target. Not thread-safe: its owner holds the lock."""

    __slots__ = ("_changed_at", "_interval", "_next", "_peak", "_peak_at", "_step", "_taken", "value")

    def __init__(self, probe_interval: float) -> None:
        self._interval = probe_interval
        self.value = math.inf
        self._taken = math.inf
        self._step = 1
        self._changed_at = self._next = 0.0
        self._peak = 0
        self._peak_at = 0.0

    @property
    def stated(self) -> bool:
        """Whether the server ever stated one."""
        return self._taken < math.inf

    def state(self, now: float, limit: int) -> None:
        """The server stated it."""
        if limit != self._taken:
            self._changed_at = now
        held = now - self._changed_at
        self._next = now + min(max(_FIRST, _GROWTH * held), self._interval)
        self._set(limit, limit)
        self._step = 1

    def look(self, now: float) -> None:
        """Let one more in if it is time to."""
        if self.value == self._taken < math.inf and now >= self._next:
            self.value = self._taken + 1

    def entered(self, now: float, in_flight: int) -> None:
        """A place is taken: so many are now."""
        if in_flight > max(self._taken, self._peak):
            self._peak, self._peak_at = in_flight, now

    def answered(self, now: float, started: float) -> None:
        """An attempt that began then was answered."""
        if self._peak > self._taken and started >= self._peak_at:
            if self._peak >= self.value:
                self._step = min(2 * self._step, max(self._peak // _SHARE, 1))
            self._changed_at = now
            self._set(self._peak, self._peak + self._step)

    def _set(self, taken: int, value: int) -> None:
        self._taken, self.value = taken, value
        self._peak = 0
