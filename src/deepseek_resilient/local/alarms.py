"""Wakes the local model at a later time, unless that was taken back: one thread for all calls, while any set a time.

It looks once a second whether there is still one, so calls that follow each other do not start a thread each.
"""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE = 1.0


class Alarms:
    """Thread-safe. `ring` is called on the thread, once a time has come.

    Args:
        clock: monotonic seconds.
        ring: must not block.
    """

    def __init__(self, clock: Callable[[], float], ring: Callable[[], object]) -> None:
        self._clock = clock
        self._ring = ring
        self._changed = threading.Condition()
        self._due: dict[object, float] = {}
        self._thread: threading.Thread | None = None

    def set(self, instant: float) -> Callable[[], None]:
        """Ring then; what this returns takes it back, and may be called at any time."""
        mark = object()
        with self._changed:  # re-entrant: the collector may end a call under it
            is_first = instant < min(self._due.values(), default=math.inf)
            self._due[mark] = instant
            if self._thread is None:
                thread = threading.Thread(target=self._run, daemon=True, name="deepseek-local-alarm")
                try:
                    thread.start()
                except RuntimeError:  # the interpreter ends: nothing is started any more
                    self._due.clear()
                else:
                    self._thread = thread
            elif is_first:
                self._changed.notify()
        return partial(self._take_back, mark)

    def clear(self) -> None:
        """Take all back."""
        with self._changed:
            self._due.clear()
            self._changed.notify()

    def after_fork(self) -> None:
        """Begin anew: there is no thread here, and no call that is under way."""
        self._changed, self._due, self._thread = threading.Condition(), {}, None

    def _take_back(self, mark: object) -> None:
        with self._changed:
            self._due.pop(mark, None)

    def _run(self) -> None:
        while self._await_due():
            self._ring()  # not under the lock: it takes others

    def _await_due(self) -> bool:
        """Whether a time has come; not, where none is set."""
        with self._changed:
            while self._due:
                soonest = min(self._due, key=self._due.__getitem__)
                left = self._due[soonest] - self._clock()
                if left <= 0:
                    del self._due[soonest]
                    return True
                self._changed.wait(min(left, _PATIENCE))
            self._thread = None
            return False
