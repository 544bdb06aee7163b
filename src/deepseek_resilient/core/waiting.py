"""A bell: how a call that waits for another one is woken, whatever drives them.

The core rings, from whatever thread or loop it happens to be on; the driver of the waiting call attaches what wakes
that call (`effects.Wait`). Either may come first. Sets before it looks, on both sides, so no ring is lost; the attached
function may be called twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Bell:
    """Rung once. Thread-safe without a lock."""

    __slots__ = ("_wake", "rung")

    def __init__(self) -> None:
        self.rung = False
        self._wake: Callable[[], object] | None = None

    def ring(self) -> None:
        """Wake whoever waits, or is going to."""
        self.rung = True
        if self._wake is not None:
            self._wake()

    def attach(self, wake: Callable[[], object]) -> None:
        """For the driver: call `wake` once the bell rings, at once if it has rung."""
        self._wake = wake
        if self.rung:
            wake()
