"""Whether something grows with time: what a process holds is counted again and again, and the counts are compared.

What there is, is told by type, because a leak of one object per call hides in the sum of all objects and stands out
among those of its type. What holds no other object (text, numbers) is in no list of the collector: blocks of memory
and what hangs on a table tell of those.
"""

from __future__ import annotations

import gc
import sys
from array import array
from collections import Counter
from statistics import median
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING

from deepseek_resilient.lab.deepseek import SimulatedDeepSeek

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SHARE = 0.05
_SHARE_OF_BYTES = 0.1
"""A table of entries that come and go has room for more of them, now and then for twice as many."""
_OBJECTS = 200.0
_BYTES = 50_000.0

_ELSEWHERE = (type, ModuleType, FunctionType, BuiltinFunctionType, SimulatedDeepSeek)
"""What everybody shares, and the servers of a simulation: what lies behind these is no part of a table."""


def reached(roots: Sequence[object]) -> tuple[int, int]:
    """How many objects hang on these, themselves included, and how many bytes they take."""
    seen: set[int] = set()
    todo: list[object] = list(roots)
    objects = size = 0
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, _ELSEWHERE):
            continue
        seen.add(id(thing))
        objects += 1
        size += sys.getsizeof(thing, 0)
        todo += gc.get_referents(thing)
    return objects, size


def growth(counts: Sequence[float]) -> float:
    """By how much it rose from the first to the last, by the median of the slopes between all pairs (Theil and Sen):
    one count that is out of the way changes nothing, a rise that goes on is seen whatever lies on top of it."""
    slopes = [(counts[late] - counts[early]) / (late - early) for late in range(len(counts)) for early in range(late)]
    return median(slopes) * (len(counts) - 1)


class Watch:
    """Counts what there is, each time that it is told to `look`: all of this process, and what hangs on `tables`."""

    def __init__(self, tables: Mapping[str, Sequence[object]]) -> None:
        self._tables = tables
        self._looks = 0
        self.counts: dict[str, array[float]] = {}
        """By name. What is written down takes room in one place, or it would itself be what grows."""

    def look(self) -> None:
        """Once more."""
        gc.collect()
        found = Counter(map(type, gc.get_objects()))
        self._note("blocks of memory", sys.getallocatedblocks())
        for kind, count in found.items():
            self._note(f"objects of {kind.__module__}.{kind.__qualname__}", count)
        for name, roots in self._tables.items():
            objects, size = reached(roots)
            self._note(f"objects in {name}", objects)
            self._note(f"bytes in {name}", size)
        self._looks += 1
        for counts in self.counts.values():
            counts.extend([0.0] * (self._looks - len(counts)))

    def grown(self) -> dict[str, list[float]]:
        """What grew, and its counts: by more than a share of it, and more than a few objects."""
        return {
            name: list(counts) for name, counts in sorted(self.counts.items()) if growth(counts) > _most(name, counts)
        }

    def _note(self, name: str, count: int) -> None:
        counts = self.counts.get(name)
        if counts is None:
            counts = self.counts[name] = array("d", [0.0] * self._looks)
        if len(counts) > self._looks:  # two types of one name
            counts[-1] += count
        else:
            counts.append(count)


def _most(name: str, counts: Sequence[float]) -> float:
    if name.startswith("bytes"):
        return max(_BYTES, _SHARE_OF_BYTES * median(counts))
    return max(_OBJECTS, _SHARE * median(counts))
