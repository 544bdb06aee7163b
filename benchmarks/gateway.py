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
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import uvloop
from gateway_parts import CHAT, STREAM, Caller, Upstream, cpu, memory, request

from deepseek_resilient.gateway.tenants import make_key
from deepseek_resilient.lab import LabProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = """
import os
import aiohttp
session = None
async def app(scope, receive, send):
    global session
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body")
    session = session or aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
    headers = {"authorization": "Bearer x", "content-type": "application/json"}
    async with session.post(os.environ["UPSTREAM"] + "/chat/completions", data=body, headers=headers) as reply:
        kept = [pair for pair in reply.raw_headers if pair[0].lower() not in (b"transfer-encoding", b"connection")]
        await send({"type": "http.response.start", "status": reply.status, "headers": kept})
        async for chunk in reply.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
"""
WORD = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hi"}]}


def configuration(folder: Path, upstream: str, port: int, digest: str, more: str, places: int, rate: float) -> Path:
    """A file with everything on."""
    path = folder / "gateway.toml"
    path.write_text(f"""
[gateway]
listen = "127.0.0.1:{port}"
admin = "127.0.0.1:{port + 1}"
[upstream]
base_url = "{upstream}"
[[tenants]]
name = "bench"
keys = ["{digest}"]
models = ["deepseek-flash"]
priority = "interactive"
max_concurrency = 5000
requests_per_minute = {rate}
dollars_per_day = 1000000
{more}
[policy.concurrency]
initial = {places}
maximum = {max(places, 2000)}
""")
    return path


@contextmanager
def server(
    name: str, upstream: str, port: int, *, core: int | None = None, more: str = "", places: int = 20, rate: float = 1e8
) -> Iterator[tuple[int, str]]:
    """A contender as a process: its id, and the key that it takes."""
    key, digest = make_key()
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "UPSTREAM": upstream, "DEEPSEEK_API_KEY": "sk-of-the-company"}
        if name == "gateway":
            path = configuration(Path(folder), upstream, port, digest, more, places, rate)
            command = ["-m", "deepseek_resilient", "gateway", "--config", str(path)]
        else:
            (Path(folder) / "plain.py").write_text(PLAIN)
            more = {"granian": ["--interface", "asgi"], "uvicorn": []}[name]
            command = ["-m", name, "plain:app", "--port", str(port), "--log-level", "warning", "--no-access-log", *more]
        pinned = ["taskset", "-c", str(core)] if core is not None else []
        child = subprocess.Popen(  # noqa: S603
            [*pinned, sys.executable, *command], cwd=folder, env={**environ, "PYTHONPATH": _path(folder)},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_for(port)
            yield child.pid, key
        finally:
            child.terminate()
            child.wait(20)


def _path(folder: str) -> str:
    return os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH", ""))))


def _wait_for(port: int) -> None:
    import socket

    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


async def load(
    port: int, body: bytes, key: str, *, callers: int, seconds: float, pace: float = 0.0, status: int = 200
) -> list[Caller]:
    """So many callers at once for so long."""
    loop, until = asyncio.get_running_loop(), time.perf_counter() + seconds
    made = []
    for _ in range(callers):
        await asyncio.sleep(pace / callers)
        _, caller = await loop.create_connection(
            partial(Caller, request(body, key), until, pace, status), "127.0.0.1", port
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
    names = ["gateway", "uvicorn", *(["granian"] if _has("granian") else [])]
    for turn in range(options.rounds):
        for name in names:
            row = rows.setdefault(name, {})
            with server(name, "http://127.0.0.1:9101", 9110, core=0) as (pid, key):
                await load(9110, CHAT, key, callers=16, seconds=1.0)
                await _calls(row, pid, key, options.seconds)
                await _chunks(row, pid, key, options.seconds)
                await _paced(row, key, options.seconds)
                row.setdefault("MB", []).append(memory(pid))
            print(f"round {turn + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
    row = rows.setdefault("upstream", {})
    await _paced(row, "", options.seconds, port=9101)
    columns = ("calls/s", "us/call", "chunks/s", "us/chunk", "p50 ms", "p99 ms", "MB")
    print("median of rounds (all of them)\n")
    print(f"{'':10}" + "".join(f"{column:>12}" for column in columns))
    for name, row in rows.items():
        print(f"{name:10}" + "".join(f"{_median(row, column):>12}" for column in columns))
    print("\np50 and p99 at 200 calls/s; `upstream` is without anything between.")
    print(json.dumps(rows))


async def _calls(row: dict[str, list[float]], pid: int, key: str, seconds: float) -> None:
    before, began = cpu(pid), time.perf_counter()
    callers = await load(9110, CHAT, key, callers=16, seconds=seconds)
    count = sum(len(caller.latencies) for caller in callers)
    row.setdefault("calls/s", []).append(count / (time.perf_counter() - began))
    row.setdefault("us/call", []).append((cpu(pid) - before) / count * 1e6)


async def _chunks(row: dict[str, list[float]], pid: int, key: str, seconds: float) -> None:
    before, began = cpu(pid), time.perf_counter()
    callers = await load(9110, STREAM, key, callers=16, seconds=seconds)
    count = sum(caller.chunks for caller in callers)
    row.setdefault("chunks/s", []).append(count / (time.perf_counter() - began))
    row.setdefault("us/chunk", []).append((cpu(pid) - before) / count * 1e6)


async def _paced(row: dict[str, list[float]], key: str, seconds: float, port: int = 9110) -> None:
    callers = await load(port, CHAT, key, callers=20, seconds=seconds, pace=0.1)
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
    with server("gateway", "http://127.0.0.1:9101", 9110, core=0, rate=1e-3) as (pid, key):
        await load(9110, CHAT, "nobody", callers=16, seconds=1.0, status=401)
        for name, said, status in (("no such key", "nobody", 401), ("over its rate", key, 429)):
            before, began = cpu(pid), time.perf_counter()
            callers = await load(9110, CHAT, said, callers=16, seconds=options.seconds, status=status)
            count, spent = sum(len(caller.latencies) for caller in callers), time.perf_counter() - began
            print(f"{name:14} {count / spent:9,.0f}/s {(cpu(pid) - before) / count * 1e6:7.1f} us of CPU each")


async def storm(options: argparse.Namespace) -> None:
    """Naive callers that retry each 100 ms, behind the gateway."""
    capacity = 40.0
    more = "" if options.deadline is None else f"deadline = {options.deadline}"
    counts = {"answered": 0, "in vain": 0}
    held: list[float] = []
    with (
        LabProcess(rate=capacity, service_time=0.1) as lab,
        server("gateway", lab.base_url, 9120, more=more) as (pid, key),
    ):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def naive(number: int) -> None:
                for turn in range(10**9):
                    asked = {**WORD, "messages": [{"role": "user", "content": f"{number}/{turn}"}]}
                    while True:
                        if await _asked(session, asked, key, options.patience):
                            counts["answered"] += 1
                            break
                        counts["in vain"] += 1
                        await asyncio.sleep(0.1)

            tasks = [asyncio.create_task(naive(number)) for number in range(200)]
            await asyncio.sleep(5.0)
            before, sent, began = dict(counts), lab.statistics(), time.perf_counter()
            while (spent := time.perf_counter() - began) < options.seconds:
                await asyncio.sleep(1.0)
                held.append(memory(pid))
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


async def _asked(session: aiohttp.ClientSession, asked: dict[str, object], key: str, patience: float) -> bool:
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
    with server("gateway", "http://127.0.0.1:9101", 9110, places=10_000) as (pid, key):
        before = memory(pid)
        loading = asyncio.create_task(load(9110, STREAM, key, callers=options.streams, seconds=10.0))
        await asyncio.sleep(9.0)
        held = memory(pid)
        Upstream.hold.set()
        callers = await loading
    whole = sum(len(caller.latencies) > 0 for caller in callers)
    print(f"{options.streams:,} streams: {before:.0f} MB before, {held:.0f} MB held; {whole:,} ended whole")


async def grow(options: argparse.Namespace) -> None:
    """Resident memory over many requests."""
    await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 9101, backlog=1000)
    with server("gateway", "http://127.0.0.1:9101", 9110) as (pid, key):
        count = 0
        while count < options.requests:
            callers = await load(9110, CHAT, key, callers=16, seconds=10.0)
            count += sum(len(caller.latencies) for caller in callers)
            print(f"{count:>9,} requests {memory(pid):7.1f} MB", flush=True)


def main() -> None:
    """The command line."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("what", choices=["cost", "refusals", "storm", "streams", "memory"])
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
