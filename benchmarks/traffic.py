"""Traffic control over real HTTP: what reaches the callers when a simulated DeepSeek has less than they ask for.

    python benchmarks/traffic.py                     # every world, about five minutes
    python benchmarks/traffic.py overload outage     # these worlds
    python benchmarks/traffic.py fairness --seconds 60

The server (a process of its own) answers 40 requests/s: 4 slots of 0.1 s, a queue that is 1.1 s deep, 503 above it.
Callers come at random (Poisson), each with a `timeout` of 1 s and the default policy unless a world says otherwise; the
first 5 seconds are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import httpx2

from deepseek_resilient import AsyncResilientTransport, Policy, RoutingPolicy, Upstream
from deepseek_resilient.lab.process import LabProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RATE, SERVICE, DEEP = 40, 0.1, 1.1
UNCOUNTED = 5.0
BODY = json.dumps({"model": "deepseek-flash", "messages": [{"role": "user", "content": "How are you?"}]}).encode()
MIX = {"critical": 0.1, "interactive": 0.3, "standard": 0.3, "batch": 0.3}


class Call(NamedTuple):
    """One call: when it began and ended (seconds of the run), its status (0: an exception), what its headers say."""

    began: float
    ended: float
    status: int
    attempts: int
    target: str
    refused_by: str
    priority: str


@dataclass(frozen=True)
class Order:
    """What one client process is to do."""

    url: str
    phases: tuple[tuple[float, float], ...]
    """Requests/s, and until when."""
    seed: int
    start: float = 0.0
    policy: Policy = field(default_factory=Policy)
    mix: bool = False


async def _make_calls(order: Order) -> list[Call]:
    calls: list[Call] = []
    random = Random(order.seed)
    transport = AsyncResilientTransport(policy=order.policy)
    async with httpx2.AsyncClient(transport=transport, timeout=1.0) as client:

        async def one(priority: str) -> None:
            began = time.monotonic() - order.start
            headers = {"authorization": "Bearer none", "content-type": "application/json"}
            if priority:
                headers["x-resilient-priority"] = priority
            try:
                reply = await client.post(f"{order.url}/chat/completions", content=BODY, headers=headers)
                status, told = reply.status_code, reply.headers
            except httpx2.TransportError:
                status, told = 0, httpx2.Headers()
            calls.append(
                Call(
                    began,
                    time.monotonic() - order.start,
                    status,
                    int(told.get("x-resilient-attempts", 1)),
                    told.get("x-resilient-target", "").partition("/")[0],
                    told.get("x-resilient-refused-by", ""),
                    priority,
                )
            )

        gc.freeze()
        async with asyncio.TaskGroup() as group:
            at = 0.0
            for rate, until in order.phases:
                while (at := at + random.expovariate(rate)) < until:
                    await asyncio.sleep(max(order.start + at - time.monotonic(), 0.0))
                    group.create_task(one(random.choices(*zip(*MIX.items(), strict=True))[0] if order.mix else ""))
                at = until
    return calls


def _client(order: Order) -> list[Call]:
    return asyncio.run(_make_calls(order))


def run(orders: Sequence[Order], meanwhile: Sequence[tuple[float, Callable[[], object]]] = ()) -> list[list[Call]]:
    """Each order in a process of its own, and things that happen to the server at their times."""
    with multiprocessing.get_context("spawn").Pool(len(orders)) as pool:
        pool.map(abs, range(len(orders)), 1)  # everybody is there, and has imported
        start = time.monotonic() + 1.0
        results = pool.map_async(_client, [replace(order, start=start) for order in orders], 1)
        for at, happens in meanwhile:
            time.sleep(max(start + at - time.monotonic(), 0.0))
            happens()
        return results.get()


def lab(rate: float = RATE) -> LabProcess:
    """The server."""
    return LabProcess(slots=round(rate * SERVICE), service_time=SERVICE, queue_limit=round(rate * DEEP))


def good(calls: Sequence[Call], since: float = UNCOUNTED, until: float = 1e9) -> list[Call]:
    """Answers that came in that time."""
    return [call for call in calls if call.status == 200 and since <= call.ended < until]


def share(values: Sequence[float], of: float) -> float:
    """A quantile; 0 of nothing."""
    return sorted(values)[min(int(len(values) * of), len(values) - 1)] if values else 0.0


def overload(options: argparse.Namespace) -> None:
    """Too many callers for the server, without end."""
    for factor in (1.5, 3.0):
        with lab() as server:
            until = options.seconds
            (calls,) = run([Order(server.base_url, ((RATE * factor, until),), options.seed)])
        counted = [call for call in calls if call.began >= UNCOUNTED]
        answers = good(calls, until=until)
        refused = [call.ended - call.began for call in counted if call.refused_by]
        failed = Counter(call.status for call in counted if call.status != 200)
        print(
            f"overload {factor:g} x: goodput {len(answers) / (until - UNCOUNTED) / RATE:.1%} of capacity; "
            f"attempts per call {sum(c.attempts for c in counted) / len(counted):.2f}; answers: median "
            f"{share([c.ended - c.began for c in answers], 0.5):.2f} s, p99 "
            f"{share([c.ended - c.began for c in answers], 0.99):.2f} s; refusals: {len(refused)}, within 50 ms "
            f"{sum(s <= 0.05 for s in refused) / max(len(refused), 1):.0%}, the latest after "
            f"{max(refused, default=0):.2f} s; "
            f"other ends {dict(failed)}",
            flush=True,
        )


def outage(options: argparse.Namespace) -> None:
    """Eight seconds in which the server is down, at 90 % load."""
    for kind in ("outage_503", "hang"):
        with lab() as server:
            (calls,) = run(
                [Order(server.base_url, ((RATE * 0.9, 30.0),), options.seed)],
                [(10.0, lambda k=kind, s=server: s.script(windows=[{"fault": k, "start": 0.0, "duration": 8.0}]))],
            )
        seconds = [
            f"{sum(c.status == 200 for c in slot) / len(slot):.0%}"
            for at in range(17, 24)
            if (slot := [call for call in calls if at <= call.began < at + 1])
        ]
        print(f"outage ({kind}, until 18 s): share answered of the calls that begin in second 17, 18, ...: {seconds}",
              flush=True)  # fmt: skip


def fairness(options: argparse.Namespace) -> None:
    """Twenty processes that know nothing of each other, at 1.5 times what the server can do."""
    rate, count, until = 200.0, 20, max(options.seconds, 60.0)
    with lab(rate) as server:
        orders = [Order(server.base_url, ((rate * 1.5 / count, until),), options.seed + n) for n in range(count)]
        results = run(orders)
    shares = [len(good(calls, 10.0, until)) for calls in results]
    jain = sum(shares) ** 2 / (len(shares) * sum(each * each for each in shares))
    print(f"fairness: {count} processes, {until - 10:.0f} s, {rate:g}/s: Jain {jain:.3f}; goodput "
          f"{sum(shares) / (until - 10.0) / rate:.1%}; answers per process {min(shares)} to {max(shares)}",
          flush=True)  # fmt: skip


def upstreams(options: argparse.Namespace) -> None:
    """Three servers weighted 5/3/2; the second is ten times slower for a while, then the first is killed."""
    with lab(200) as first, lab(200) as second, lab(200) as third:
        servers = {"first": (first, 5.0), "second": (second, 3.0), "third": (third, 2.0)}
        policy = Policy(
            routing=RoutingPolicy(
                upstreams=tuple(Upstream(s.base_url, name=n, weight=weight) for n, (s, weight) in servers.items())
            )
        )
        (calls,) = run(
            [Order(first.base_url, ((60.0, 50.0),), options.seed, policy=policy)],
            [
                (15.0, lambda: second.script(settings={"service_time": 1.0})),
                (30.0, lambda: second.script(settings={"service_time": SERVICE})),
                (40.0, first.stop),
            ],
        )

    def told(name: str, since: float, until: float) -> None:
        slot = [call for call in calls if since <= call.began < until]
        shares = {n: f"{sum(c.target == n for c in slot) / len(slot):.1%}" for n in servers}
        p99 = share([c.ended - c.began for c in slot if c.status == 200], 0.99)
        lost = sum(c.status != 200 for c in slot)
        print(f"upstreams, {name}: {shares}, p99 {p99:.3f} s, {lost} of {len(slot)} calls lost", flush=True)

    told("healthy", UNCOUNTED, 15.0)
    told("one 10 x slower, first 2 s", 15.0, 17.0)
    told("then", 17.0, 30.0)
    told("fast again, after 5 s", 35.0, 40.0)
    told("one killed", 40.0, 50.0)


def priorities(options: argparse.Namespace) -> None:
    """Twice the load, in four priorities, which ends after 25 s."""
    with lab() as server:
        busy, calm = 25.0, 40.0
        (calls,) = run([Order(server.base_url, ((RATE * 2.0, busy), (RATE * 0.5, calm)), options.seed, mix=True)])
    for name, since, until in (("2 x", UNCOUNTED, busy), ("after it", busy + 5.0, calm)):
        slot = [call for call in calls if since <= call.began < until]
        for priority in MIX:
            mine = [call for call in slot if call.priority == priority]
            served = sum(c.status == 200 for c in mine) / len(mine)
            print(f"priorities, {name}: {priority:<12}{served:7.1%} of {len(mine)}", flush=True)


WORLDS = {
    "overload": overload,
    "outage": outage,
    "upstreams": upstreams,
    "priorities": priorities,
    "fairness": fairness,
}


def main() -> None:
    """Run the worlds that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", help=", ".join(WORLDS) + "; all of them if none is named")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a run that has no length of its own")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    unknown = set(options.worlds) - set(WORLDS)
    if unknown:
        parser.error(f"no such world: {', '.join(sorted(unknown))} (there are {', '.join(WORLDS)})")
    for name in options.worlds or WORLDS:
        print(f"-- {name} (load average of the machine: {os.getloadavg()[0]:.1f})", flush=True)
        WORLDS[name](options)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
