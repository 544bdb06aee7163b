"""A sliding window of attempts and failures, in slices that are forgotten whole."""

from __future__ import annotations

_SLICES = 10


class Window:
    """Attempts and failures of the last `duration` seconds. Not thread-safe: its owner holds the lock."""

    __slots__ = ("_attempts", "_failures", "_head", "_slices", "_width")

    def __init__(self, duration: float) -> None:
        self._width = duration / _SLICES
        self._head = 0
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._slices = [[0, 0] for _ in range(_SLICES)]
        self._attempts = self._failures = 0

    def add(self, now: float, *, failed: bool) -> None:
        """Count an attempt that ended now."""
        self._advance(now)
        current = self._slices[self._head % _SLICES]
        current[0] += 1
        self._attempts += 1
        if failed:
            current[1] += 1
            self._failures += 1

    def totals(self, now: float) -> tuple[int, int]:
        """Attempts and failures."""
        self._advance(now)
        return self._attempts, self._failures

    def _advance(self, now: float) -> None:
        head = int(now / self._width)
        if head <= self._head:
            return
        for step in range(self._head + 1, min(head, self._head + _SLICES) + 1):
            stale = self._slices[step % _SLICES]
            self._attempts -= stale[0]
            self._failures -= stale[1]
            stale[0] = stale[1] = 0
        self._head = head
