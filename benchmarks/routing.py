"""What choosing an upstream costs: CPU time of one pick and its giving back.

    python benchmarks/routing.py            # the table
    python benchmarks/routing.py --rounds 9 # more rounds, smaller spread

Each figure is the median over rounds, of CPU time (user + system) of this process. "Dense" calls follow each other by
0.1 ms, so that weights in force are reviewed at one pick in two hundred; "sparse" ones by 50 ms, so at every pick.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from random import Random

from deepseek_resilient.config.routing import RoutingPolicy, Upstream
from deepseek_resilient.core.routing import Router
from deepseek_resilient.core.verdict import VerdictKind

CALLS = 20_000
IN_FLIGHT = 16


def picks(upstreams: int, step: float) -> float:
    """CPU seconds per call: one pick and one finish, with sixteen calls in flight."""
    several = tuple(Upstream(f"https://u{number}", weight=1.0 + number % 3) for number in range(upstreams))
    router = Router(RoutingPolicy(upstreams=several), threading.Lock(), Random(1), 0.0)
    waiting = [router.pick(0.0, 1000) for _ in range(IN_FLIGHT)]
    began = time.process_time()
    for number in range(CALLS):
        now = number * step
        oldest = waiting[number % IN_FLIGHT]
        assert oldest is not None
        router.finish(oldest, now, VerdictKind.OK)
        waiting[number % IN_FLIGHT] = router.pick(now, 1000)
    return (time.process_time() - began) / CALLS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (default 5)")
    rounds = parser.parse_args().rounds
    print(f"{'pick and finish, CPU':<36}{'µs':>8}{'picks/s':>12}")
    for upstreams in (1, 3, 8, 50):
        for name, step in (("dense", 0.0001), ("sparse", 0.05)):
            seconds = statistics.median(picks(upstreams, step) for _ in range(rounds))
            print(f"{f'{upstreams} upstreams, {name}':<36}{seconds * 1e6:>8.2f}{1 / seconds:>12,.0f}")


if __name__ == "__main__":
    main()
