"""What the rate limit costs: decisions per second on one core, with the lock that threads need.

    python benchmarks/rate.py                        # the table
    python benchmarks/rate.py --rounds 9             # more rounds, smaller spread
    python benchmarks/rate.py --decisions 1000000    # more in a row

Each figure is the median over rounds, of CPU time (user + system) of this process, loop included; time is virtual and
moves on by 1 µs per decision. "Lock alone" is a method that takes the lock and does nothing: the floor. "Textbook" is a
bucket with level and time of the last look: no order, no waiting, no correction. aiolimiter, if it is installed, limits
requests only, is for one event loop and takes no lock; it is asked so that it never waits.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
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

STEP = 1e-6
TOKENS = 2000.0
REQUESTS_PER_MINUTE = 60 / STEP
TOKENS_PER_MINUTE = TOKENS * REQUESTS_PER_MINUTE


class LockAlone:
    """The floor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def reserve(self, now: float, tokens: float) -> None:
        with self._lock:
            return


class Textbook:
    """A token bucket for both limits, as it is usually written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._updated = 0.0
        self._requests, self._tokens = 1 / STEP, TOKENS / STEP

    def reserve(self, now: float, tokens: float) -> bool:
        with self._lock:
            passed = now - self._updated
            self._updated = now
            self._requests = min(self._requests + passed / STEP, 1 / STEP)
            self._tokens = min(self._tokens + passed * TOKENS / STEP, TOKENS / STEP)
            if self._requests < 1.0 or self._tokens < tokens:
                return False
            self._requests -= 1.0
            self._tokens -= tokens
            return True


def limiter(share: float = 1.0, burst: float = 1.0, *, tokens: bool = True) -> RateLimiter:
    """One that allows this share of what the benchmark asks for."""
    policy = RatePolicy(
        requests_per_minute=share * REQUESTS_PER_MINUTE,
        tokens_per_minute=TOKENS_PER_MINUTE if tokens else None,
        burst=burst,
    )
    return RateLimiter(policy, threading.Lock(), 0.0)


def timed(decide: Callable[..., object], decisions: int, *arguments: float) -> float:
    """CPU seconds per decision."""
    now = 0.0
    began = time.process_time()
    for _ in range(decisions):
        now += STEP
        decide(now, *arguments)
    return (time.process_time() - began) / decisions


def corrected(it: RateLimiter, now: float, decisions: int) -> float:
    """CPU seconds per reservation and its correction."""
    began = time.process_time()
    for _ in range(decisions):
        now += STEP
        reservation = it.reserve(now, TOKENS)
        assert isinstance(reservation, Reservation)
        it.correct(reservation, now, TOKENS / 2)
    return (time.process_time() - began) / decisions


def correction_before(waiting: int) -> float:
    """CPU seconds per correction of one that was sent, with so many that wait."""
    it = limiter(1e-3)
    sent = [it.reserve(0.0, TOKENS) for _ in range(1000 + waiting)][:100]
    assert it.statistics(0.0).waiting == waiting
    began = time.process_time()
    for reservation in sent:
        assert isinstance(reservation, Reservation)
        it.correct(reservation, 0.0, TOKENS / 2)
    return (time.process_time() - began) / len(sent)


def aio(decisions: int) -> float:
    """CPU seconds per `acquire` of aiolimiter."""

    async def run() -> float:
        it = AsyncLimiter(1e12, 60.0)
        began = time.process_time()
        for _ in range(decisions):
            await it.acquire()
        return (time.process_time() - began) / decisions

    return asyncio.run(run())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (default 5)")
    parser.add_argument("--decisions", type=int, default=200_000, help="decisions per round (default 200000)")
    options = parser.parse_args()
    count = options.decisions
    rows: list[tuple[str, Callable[[], float]]] = [
        ("requests only, granted", lambda: timed(limiter(tokens=False).reserve, count)),
        ("requests and tokens, granted", lambda: timed(limiter().reserve, count, TOKENS)),
        ("requests and tokens, refused", lambda: timed(limiter(1e-6, 1e-6).reserve, count, TOKENS, 0.0)),
        ("too large, refused", lambda: timed(limiter().reserve, count, 1e12)),
        ("half more than allowed, all wait", lambda: timed(limiter(2 / 3, 1e-5).reserve, count, TOKENS)),
        ("granted and corrected", lambda: corrected(limiter(), 0.0, count)),
        ("correction, 100 waiting", lambda: correction_before(100)),
        ("correction, 1,000 waiting", lambda: correction_before(1000)),
        ("lock alone", lambda: timed(LockAlone().reserve, count, TOKENS)),
        ("textbook bucket", lambda: timed(Textbook().reserve, count, TOKENS)),
    ]
    if AsyncLimiter is not None:
        rows.append(("aiolimiter, acquire", lambda: aio(count)))
    print(f"{'CPU per decision':<36}{'µs':>8}{'per second':>14}")
    for name, measure in rows:
        seconds = statistics.median(measure() for _ in range(options.rounds))
        print(f"{name:<36}{seconds * 1e6:>8.2f}{1 / seconds:>14,.0f}")


if __name__ == "__main__":
    main()
