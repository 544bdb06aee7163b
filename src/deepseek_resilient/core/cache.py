"""Answers that are kept in memory, bounded in bytes and in time (cachetools' `TLRUCache`).

An answer's age is counted from its own `at` (Unix seconds), so that one from the store of another process is as old
here as there. It is dropped `lifetime + stale` seconds later; until then `find` gives it with its age, and who asks
decides what that age is good for. An answer from the future (a clock was set back) is not given.

Its size is the size of its bytes plus what Python needs around them, measured by `benchmarks/cache.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import TLRUCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from deepseek_resilient.config import CachePolicy
    from deepseek_resilient.core.answer import Answer

_ENTRY = 550
_HEADER = 135
_CHUNK = 42
_FUTURE = 1.0
"""Clocks of two machines may differ by this much."""


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Answers given from memory or store (`hits`), past their lifetime (`stale`), shared with a call in flight
    (`joined`), not there (`misses`); answers in memory and their bytes."""

    hits: int
    stale: int
    joined: int
    misses: int
    entries: int
    bytes: int


def size_of(answer: Answer) -> int:
    """Bytes of memory that an answer takes, with its key and its place in the cache."""
    chunks, headers = answer.chunks, answer.headers
    size = _ENTRY + _HEADER * len(headers) + _CHUNK * len(chunks)
    for chunk in chunks:
        size += len(chunk)
    for name, value in headers:
        size += len(name) + len(value)
    return size


class AnswerCache:
    """The answers in memory. Thread-safe."""

    def __init__(
        self,
        policy: CachePolicy,
        lock: AbstractContextManager[object],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._keep = keep = policy.lifetime + policy.stale
        self.keeps = keep > 0
        """Whether there is any time for which answers are kept."""
        self._lock = lock
        self._wall = wall

        def until(_: bytes, answer: Answer, now: float) -> float:
            return now + keep - max(wall() - answer.at, 0.0)

        self._answers: TLRUCache[bytes, Answer] = TLRUCache(policy.max_bytes, until, clock, size_of)
        self._counts = {"hit": 0, "stale": 0, "joined": 0, "miss": 0}

    def find(self, key: bytes) -> tuple[Answer, float] | None:
        """The answer and its age in seconds."""
        if not self.keeps:
            return None
        with self._lock:
            answer = self._answers.get(key)
        if answer is None:
            return None
        age = self._wall() - answer.at
        return (answer, max(age, 0.0)) if -_FUTURE <= age < self._keep else None

    def add(self, key: bytes, answer: Answer) -> bool:
        """Keep it; False for what is too old, or takes more than a tenth of all."""
        if size_of(answer) * 10 > self._policy.max_bytes:
            return False
        with self._lock:
            self._answers[key] = answer
            return key in self._answers

    def count(self, how: str) -> None:
        """A call was answered that way: "hit", "stale", "joined"; or had to be made: "miss"."""
        with self._lock:
            self._counts[how] += 1

    def statistics(self) -> CacheStatistics:
        """How it stands."""
        with self._lock:
            counts, answers = self._counts, self._answers
            answers.expire()
            return CacheStatistics(
                counts["hit"], counts["stale"], counts["joined"], counts["miss"], len(answers), int(answers.currsize)
            )
