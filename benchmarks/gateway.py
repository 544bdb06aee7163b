"""What the gateway costs and what it holds, side by side with a plain ASGI pass-through in the same run.

    python benchmarks/gateway.py cost       # one worker on one core: calls, chunks, added latency, memory
    python benchmarks/gateway.py storm      # 200 naive callers behind it, an upstream of 40 requests/s
    python benchmarks/gateway.py refusals   # how many a core can say
    python benchmarks/gateway.py streams    # 2,000 idle streams held open
    python benchmarks/gateway.py memory     # many requests: does the resident memory grow?

`cost` gives the server core 0, and the upstream and the callers core 1, and takes turns with the contenders. Everything
of the gateway is on but kept answers: a tenant with a key, limits and a budget, the guard, admission, the adaptive
limit, the breaker, the ledger, sharing in flight. CPU figures are of the server's processes alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import aiohttp
import uvloop
from gateway_contenders import Door, server
from gateway_parts import CHAT, STREAM, Caller, Upstream, cpu, memory, request

from deepseek_resilient.lab import LabProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

WORD = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hi"}]}


async def load(
    door: Door, body: bytes, *, callers: int, seconds: float, pace: float = 0.0, status: int = 200
) -> list[Caller]:
    """So many callers at once for so long."""
    loop, until = asyncio.get_running_loop(), time.perf_counter() + seconds
    made = []
    for _ in range(callers):
        await asyncio.sleep(pace / callers)
        _, caller = await loop.create_connection(
            partial(Caller, request(body, door), until, pace, status), "127.0.0.1", door.port
        )
        made.append(caller)
    await asyncio.wait([caller.ended for caller in made], timeout=seconds + 5)
    if wrong := sum(caller.wrong for caller in made):
        raise SystemExit(f"{wrong} answers were not {status}")
    return made


async def cost(options: argparse.Namespace) -> None:
    """The table."""
    await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 9101, backlog=1000)
    rows: dict[str, dict[str, list[float]]] = {}
    peers = dict(each.split("=", 1) for each in options.peer)
    names = ["gateway", "bytes", "uvicorn", *(["granian"] if _has("granian") else []), *peers]
    for turn in range(options.rounds):
        for name in names:
            row = rows.setdefault(name, {})
            python = peers.get(name, sys.executable)
            with server(name, "http://127.0.0.1:9101", 9110, core=0, python=python) as door:
                await load(door, CHAT, callers=16, seconds=1.0)
                await _calls(row, door, options.seconds)
                await _chunks(row, door, options.seconds)
                await _paced(row, door, options.seconds)
                row.setdefault("MB", []).append(memory(door.pid))
            print(f"round {turn + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
    await _paced(rows.setdefault("upstream", {}), Door(0, "", 9101), options.seconds)
    columns = ("calls/s", "us/call", "chunks/s", "us/chunk", "p50 ms", "p99 ms", "MB")
    print("median of rounds (all of them)\n")
    print(f"{'':10}" + "".join(f"{column:>12}" for column in columns))
    for name, row in rows.items():
        print(f"{name:10}" + "".join(f"{_median(row, column):>12}" for column in columns))
    print("\np50 and p99 at 200 calls/s; `upstream` is without anything between.")
    print(json.dumps(rows))


async def _calls(row: dict[str, list[float]], door: Door, seconds: float) -> None:
    before, began = cpu(door.pid), time.perf_counter()
    callers = await load(door, CHAT, callers=16, seconds=seconds)
    count = sum(len(caller.latencies) for caller in callers)
    row.setdefault("calls/s", []).append(count / (time.perf_counter() - began))
    row.setdefault("us/call", []).append((cpu(door.pid) - before) / count * 1e6)


async def _chunks(row: dict[str, list[float]], door: Door, seconds: float) -> None:
    before, began = cpu(door.pid), time.perf_counter()
    callers = await load(door, STREAM, callers=16, seconds=seconds)
    count = sum(caller.chunks for caller in callers)
    row.setdefault("chunks/s", []).append(count / (time.perf_counter() - began))
    row.setdefault("us/chunk", []).append((cpu(door.pid) - before) / count * 1e6)


async def _paced(row: dict[str, list[float]], door: Door, seconds: float) -> None:
    callers = await load(door, CHAT, callers=20, seconds=seconds, pace=0.1)
    latencies = sorted(each for caller in callers for each in caller.latencies)
    row.setdefault("p50 ms", []).append(latencies[len(latencies) // 2] * 1e3)
    row.setdefault("p99 ms", []).append(latencies[int(len(latencies) * 0.99)] * 1e3)


def _median(row: dict[str, list[float]], column: str) -> str:
    return f"{statistics.median(row[column]):,.2f}" if column in row else ""


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


async def refusals(options: argparse.Namespace) -> None:
    """A key that nobody has; a tenant over its rate, with the same request (remembered) and with new ones."""
    with server("gateway", "http://127.0.0.1:9101", 9110, core=0, rate=1e-3) as door:
        nobody = door._replace(key="nobody")
        await load(nobody, CHAT, callers=16, seconds=1.0, status=401)
        await load(door, CHAT, callers=1, seconds=0.0, status=502)  # the one that its rate allows; no upstream is there
        for name, at, status in (("no such key", nobody, 401), ("over its rate", door, 429)):
            before, began = cpu(door.pid), time.perf_counter()
            callers = await load(at, CHAT, callers=16, seconds=options.seconds, status=status)
            count, spent = sum(len(caller.latencies) for caller in callers), time.perf_counter() - began
            print(f"{name:14} {count / spent:9,.0f}/s {(cpu(door.pid) - before) / count * 1e6:7.1f} us of CPU each")


async def storm(options: argparse.Namespace) -> None:
    """Naive callers that retry each 100 ms, behind the gateway."""
    capacity = 40.0
    more = "" if options.deadline is None else f"deadline = {options.deadline}"
    counts = {"answered": 0, "in vain": 0}
    held: list[float] = []
    with (
        LabProcess(rate=capacity, service_time=0.1) as lab,
        server("gateway", lab.base_url, 9120, more=more) as door,
    ):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def naive(number: int) -> None:
                for turn in range(10**9):
                    asked = {**WORD, "messages": [{"role": "user", "content": f"{number}/{turn}"}]}
                    while True:
                        if await _asked(session, asked, door.key, options.patience):
                            counts["answered"] += 1
                            break
                        counts["in vain"] += 1
                        await asyncio.sleep(0.1)

            tasks = [asyncio.create_task(naive(number)) for number in range(200)]
            await asyncio.sleep(5.0)
            before, sent, began = dict(counts), lab.statistics(), time.perf_counter()
            while (spent := time.perf_counter() - began) < options.seconds:
                await asyncio.sleep(1.0)
                held.append(memory(door.pid))
            answered = counts["answered"] - before["answered"]
            vain = counts["in vain"] - before["in vain"]
            now = lab.statistics()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            async with session.get("http://127.0.0.1:9121/status") as told:
                status = (await told.json())["tenants"]["bench"]
    attempts = now["attempts"] - sent["attempts"]
    print(f"goodput              {answered / spent:.1f}/s of {capacity:g}/s: {answered / spent / capacity:.1%}")
    print(f"attempts per answer  {attempts / max(answered, 1):.3f}")
    print(f"asked in vain        {vain / spent:,.0f}/s: {status['refused']:,} refused, {status['hung_up']:,} hung up")
    print(f"memory               {held[0]:.0f} MB, then {max(held):.0f} MB at most over {len(held)} s")


async def _asked(session: aiohttp.ClientSession, asked: Mapping[str, object], key: str, patience: float) -> bool:
    """Whether there was an answer while the caller waited."""
    try:
        async with session.post(
            "http://127.0.0.1:9120/v1/chat/completions", json=asked, headers={"authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(patience),
        ) as answer:  # fmt: skip
            await answer.read()
            return answer.status == 200
    except TimeoutError:
        return False


async def streams(options: argparse.Namespace) -> None:
    """Idle streams."""
    await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 9101, backlog=5000)
    Upstream.hold = asyncio.Event()
    with server("gateway", "http://127.0.0.1:9101", 9110, places=10_000) as door:
        before = memory(door.pid)
        loading = asyncio.create_task(load(door, STREAM, callers=options.streams, seconds=10.0))
        await asyncio.sleep(9.0)
        held = memory(door.pid)
        Upstream.hold.set()
        callers = await loading
    whole = sum(len(caller.latencies) > 0 for caller in callers)
    print(f"{options.streams:,} streams: {before:.0f} MB before, {held:.0f} MB held; {whole:,} ended whole")


async def grow(options: argparse.Namespace) -> None:
    """Resident memory over many requests."""
    await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 9101, backlog=1000)
    with server("gateway", "http://127.0.0.1:9101", 9110) as door:
        count = 0
        while count < options.requests:
            callers = await load(door, CHAT, callers=16, seconds=10.0)
            count += sum(len(caller.latencies) for caller in callers)
            print(f"{count:>9,} requests {memory(door.pid):7.1f} MB", flush=True)


def main() -> None:
    """The command line."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("what", choices=["cost", "refusals", "storm", "streams", "memory"])
    line.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON", help="tensorzero or litellm, and its Python"
    )
    line.add_argument("--rounds", type=int, default=3)
    line.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    line.add_argument("--streams", type=int, default=2000)
    line.add_argument("--requests", type=int, default=1_000_000)
    line.add_argument("--patience", type=float, default=600.0, help="of a naive caller, seconds, before it asks anew")
    line.add_argument("--deadline", type=float, help="of the tenant, seconds; less than the callers' patience")
    options = line.parse_args()
    if options.what in ("cost", "refusals"):
        os.sched_setaffinity(0, {1})
    uvloop.run(
        {"cost": cost, "refusals": refusals, "storm": storm, "streams": streams, "memory": grow}[options.what](options)
    )


if __name__ == "__main__":
    main()
