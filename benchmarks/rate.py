"""What the rate limit costs: decisions per second on one core, with the lock that threads need.

    python benchmarks/rate.py                        # the table
    python benchmarks/rate.py --rounds 9             # more rounds, smaller spread
    python benchmarks/rate.py --decisions 1000000    # as many decisions in a row

Each figure is the best of the rounds, of CPU time (user + system) of this process, with the loop around it; the clock
moves on by 1 µs per decision, and is not read. "Empty" is the floor: a method that takes the lock and does nothing.
"Naive" is the textbook bucket: level and time of the last look, no waiting, no correction. aiolimiter, if it is
installed, is asked `has_capacity` and `acquire`, never so that it has to wait (it reads the clock of its loop).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import threading
import time
from typing import TYPE_CHECKING

from deepseek_resilient.config.rate import RatePolicy
from deepseek_resilient.core.rate import RateLimiter, Reservation

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    from aiolimiter import AsyncLimiter
except ImportError:
    AsyncLimiter = None

PLENTY = {"requests_per_minute": 60e9, "tokens_per_minute": 60e12}
STEP = 1e-6
TOKENS = 2000.0


class Empty:
    """The floor."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def reserve(self, now: float, tokens: float) -> None:
        with self._lock:
            return


class Naive:
    """The textbook token bucket, for both limits."""

    __slots__ = ("_lock", "_requests", "_tokens", "_updated")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._updated = 0.0
        self._requests = self._tokens = 1e12

    def reserve(self, now: float, tokens: float) -> bool:
        with self._lock:
            passed = now - self._updated
            self._updated = now
            self._requests = min(self._requests + passed * 1e9, 1e12)
            self._tokens = min(self._tokens + passed * 1e12, 1e12)
            if self._requests < 1.0 or self._tokens < tokens:
                return False
            self._requests -= 1.0
            self._tokens -= tokens
            return True


def limiter(**policy: float) -> RateLimiter:
    return RateLimiter(RatePolicy(**policy), threading.Lock(), 0.0)


def timed(decide: Callable[..., object], count: int, *arguments: float) -> float:
    """CPU seconds per decision."""
    now = 0.0
    began = time.process_time()
    for _ in range(count):
        now += STEP
        decide(now, *arguments)
    return (time.process_time() - began) / count


def empty(count: int) -> float:
    return timed(Empty().reserve, count, TOKENS)


def naive(count: int) -> float:
    return timed(Naive().reserve, count, TOKENS)


def requests_only(count: int) -> float:
    return timed(limiter(requests_per_minute=PLENTY["requests_per_minute"]).reserve, count)


def both_limits(count: int) -> float:
    return timed(limiter(**PLENTY).reserve, count, TOKENS)


def refused(count: int) -> float:
    it = limiter(requests_per_minute=60.0, burst=60.0, tokens_per_minute=60e6)
    while isinstance(it.reserve(0.0, TOKENS, 0.0), Reservation):
        pass
    return timed(it.reserve, min(count, 900_000), TOKENS, 0.0)


def must_wait(count: int) -> float:
    """At twice the rate that is allowed, so that half of all wait at the end."""
    return timed(limiter(requests_per_minute=30.0 / STEP, burst=1e-3).reserve, count, TOKENS, math.inf)


def corrected(count: int, waiting: int = 0) -> float:
    """A reservation and its correction; with so many others that wait meanwhile."""
    it = limiter(**PLENTY)
    if waiting:
        it = limiter(requests_per_minute=60e3, tokens_per_minute=60e9, burst=1.0)
        for _ in range(1000 + waiting):
            it.reserve(0.0, TOKENS)
        count = 500
    now, correct = 0.0, it.correct
    spent = 0.0
    for _ in range(count):
        now += 0.0 if waiting else STEP
        began = 0.0
        reservation = it.reserve(now, TOKENS)
        assert isinstance(reservation, Reservation)
        correct(reservation, now, 1500.0)
    return spent
