"""Work that callers gave up while the server goes on with it: its places stay taken for as long as it may last.

A server hardly ever notices at once that a caller has gone. Were the place of an attempt that is given up free in that
moment, callers who all lose patience together would send the whole queue to the server within a moment, for nobody,
and those who ask again would wait behind that until they lose patience, too: a collapse that does not end by itself
(N. Bronson et al., "Metastable Failures in Distributed Systems").

So the place stays taken until the attempt is `max(usual, 2 * elapsed)` old: for the usual time of an answer, or, where
it took longer than that, for as long again as it did; but for ten times the usual time at most, counted from now, or
ten seconds where no usual time is known. It is free sooner when an attempt that began later is answered: whatever began
before it is over then, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST = 10.0
_UNKNOWN = 1.0


class _Work(NamedTuple):
    until: float
    started: float


class AbandonedWork:
    """What is left of one target's attempts without a caller. Not thread-safe: its owner holds the lock."""

    __slots__ = ("_work",)

    def __init__(self) -> None:
        self._work: list[_Work] = []

    def add(self, now: float, started: float, usual: float) -> None:
        """An attempt that began at `started` was given up; an answer usually takes `usual` seconds (0: unknown)."""
        elapsed = now - started
        left = min(max(usual - elapsed, elapsed), _LONGEST * (usual or _UNKNOWN))
        self._work.append(_Work(now + left, started))

    def count_over(self, now: float) -> int:
        """How many are over by now and were not told yet."""
        return sum(each.until <= now for each in self._work) if self._work else 0

    def over(self, now: float) -> list[float]:
        """The beginnings of the attempts that are over by now; told once."""
        return self._take(lambda each: each.until <= now) if self._work else []

    def overtaken(self, started: float) -> list[float]:
        """The beginnings of the attempts that began before one that was answered; told once."""
        return self._take(lambda each: each.started < started) if self._work else []

    def next_end(self) -> float | None:
        """When the next of them is over; None without any."""
        return min(self._work).until if self._work else None

    def _take(self, gone: Callable[[_Work], bool]) -> list[float]:
        beginnings = [each.started for each in self._work if gone(each)]
        if beginnings:
            self._work = [each for each in self._work if not gone(each)]
        return beginnings
