"""What hedging does to the tail, and what it costs in requests.

    python benchmarks/hedging.py

In virtual time, with the production code: Poisson arrivals at a server with room for all of them. An answer takes
0.2 s, or, of each hundred, twelve 0.25 s, six 0.3 s and three 0.4 s; one takes 50 times as long. The same arrivals
without hedging and with it, several seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from deepseek_resilient import Engine, HedgePolicy, Policy
from deepseek_resilient.core.messages import Response
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import SimulatedCall
from deepseek_resilient.lab.deepseek import EPOCH, LabSettings, SimulatedDeepSeek
from deepseek_resilient.lab.faults import Fault, Window
from deepseek_resilient.lab.virtual import VirtualDeepSeek, virtual_request

if TYPE_CHECKING:
    from collections.abc import Sequence

MEAN = 0.2
RATE = 20.0


def storm(policy: Policy, calls: int, seed: int) -> tuple[list[float], int, int]:
    """Seconds that each call took, requests sent, calls that failed."""
    scheduler, rng = VirtualScheduler(), Random(seed)
    model = SimulatedDeepSeek(scheduler, LabSettings().changed({"slots": 1000, "service_time": MEAN}), seed=seed)
    slower = ((49 * MEAN, 0.01), (0.2, 0.03), (0.1, 0.06), (0.05, 0.12))
    windows = [
        Window(Fault.parse(f"slow_first_token;delay={delay}"), 0.0, 1e9, probability=share) for delay, share in slower
    ]
    model.set_script(next=[], windows=windows)
    engine = Engine(policy, clock=scheduler.time, wall=lambda: scheduler.time() + EPOCH, random=Random(seed))
    body = json.dumps({"model": "deepseek-flash", "messages": [{"role": "user", "content": "hello"}], "stream": True})
    took: list[float] = []
    failed = 0

    def begin() -> None:
        began = scheduler.time()

        def ended(call: SimulatedCall) -> None:
            nonlocal failed
            took.append(scheduler.time() - began)
            failed += not (isinstance(call.response, Response) and call.response.status == 200)

        coroutine = engine.call(virtual_request(body.encode()), timeout=60.0)
        SimulatedCall(coroutine, VirtualDeepSeek(model), scheduler, ended).start()

    at = 0.0
    for _ in range(calls):
        at += rng.expovariate(RATE)
        scheduler.call_at(at, begin)
    scheduler.run(limit=100_000_000)
    return sorted(took), int(model.statistics()["attempts"]), failed


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    variants: dict[str, HedgePolicy | None] = {"none": None}
    variants |= {f"{q:g}": HedgePolicy(quantile=q) for q in (0.95, 0.98, 0.99)}
    print("| quantile | p50, s | p99 | p99.9 | requests per call | failed |\n| --- | --- | --- | --- | --- | --- |")
    for name, hedge in variants.items():
        runs = []
        for seed in range(options.seeds):
            print(f"\r{name}: seed {seed + 1} of {options.seeds}   ", end="", file=sys.stderr, flush=True)
            runs.append(storm(replace(Policy(), hedge=hedge), options.calls, seed))
        print("\r", end="", file=sys.stderr)
        cells = [f"{median([took[int(q * len(took))] for took, _, _ in runs]):.2f}" for q in (0.5, 0.99, 0.999)]
        sent = median([sent / options.calls for _, sent, _ in runs])
        print(f"| {name} | {' | '.join(cells)} | {sent:.4f} | {sum(failed for _, _, failed in runs)} |", flush=True)


if __name__ == "__main__":
    main()
