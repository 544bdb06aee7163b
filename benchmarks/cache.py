"""What the cache costs and saves, side by side in one run.

    python benchmarks/cache.py

Times are medians over rounds in which the variants take turns, in microseconds of wall time per call through an
`httpx2` client and our transport: a hit in memory, a hit in the file, the same call over loopback HTTP to the simulated
DeepSeek in a process of its own; and the same call by the bare OpenAI SDK, and a hit under that SDK. Memory is what
Python holds (tracemalloc) after 100,000 answers were put into a cache of so many bytes, beside what the cache believes
to hold, for three sizes of answers.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai

from deepseek_resilient import CachePolicy, DeepSeek, Policy, ResilientTransport
from deepseek_resilient.core.answer import Answer
from deepseek_resilient.core.cache import AnswerCache
from deepseek_resilient.lab.process import LabProcess
from deepseek_resilient.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = 300
ANSWERS = 100_000


class _NoLock:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def _body(number: int = 0) -> dict[str, Any]:
    text = f"{number} " + "x" * 900
    return {"model": "deepseek-flash", "messages": [{"role": "user", "content": text}], "temperature": 0}


def _per_call(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - began) / CALLS * 1e6


def times(rounds: int) -> None:
    """Print what a hit costs."""
    with LabProcess(slots=100, service_time=0.0) as lab, tempfile.TemporaryDirectory() as folder:
        url = lab.base_url + "/chat/completions"
        headers = {"authorization": "Bearer none"}
        kept = Policy(cache=CachePolicy(lifetime=1e6))
        stored = SqliteStore(str(Path(folder) / "answers.db"), max_bytes=10_000_000)
        with (
            httpx2.Client(transport=ResilientTransport(policy=kept), headers=headers, timeout=30) as caching,
            httpx2.Client(transport=ResilientTransport(), headers=headers, timeout=30) as asking,
            ResilientTransport(policy=kept) as bare,
            openai.OpenAI(base_url=lab.base_url, api_key="none", max_retries=0) as sdk,
            DeepSeek(base_url=lab.base_url, api_key="none", policy=kept) as ours,
        ):
            stream = _body() | {"stream": True}
            request = asking.build_request("POST", url, json=_body())
            caching.post(url, json=_body())
            bare.handle_request(request)
            first = caching.post(url, json=stream).content
            answer = Answer(200, ((b"content-type", b"application/json"),), (first,), False, time.time())
            stored.put(b"k" * 16, answer, 1e12)
            variants: dict[str, Callable[[], object]] = {
                "a hit, transport alone": lambda: bare.handle_request(request).read(),
                "a hit, whole client": lambda: caching.post(url, json=_body()),
                f"a streamed hit, whole client ({len(first.split(b'data: ')) - 1} events)": lambda: caching.post(
                    url, json=stream
                ),
                "the file alone": lambda: stored.get(b"k" * 16),
                "a call over loopback, whole client": lambda: asking.post(url, json=_body()),
                "a hit, our SDK client": lambda: ours.chat.completions.create(**_body()),
                "a call over loopback, bare OpenAI SDK": lambda: sdk.chat.completions.create(**_body()),
            }
            seen: dict[str, list[float]] = {name: [] for name in variants}
            for number in range(rounds):
                print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
                for name, work in variants.items():
                    seen[name].append(_per_call(work))
            print(file=sys.stderr)
        stored.close()
    print("| per call | median, us | least |\n| --- | --- | --- |")
    for name, costs in seen.items():
        print(f"| {name} | {statistics.median(costs):.1f} | {min(costs):.1f} |")
    hit, _, _, _, call, ours_hit, sdk_call = (statistics.median(costs) for costs in seen.values())
    print(
        f"\nTo a hit in the transport, a call over loopback costs {call / hit:.1f} times as much by httpx2 and "
        f"{sdk_call / hit:.1f} times by the SDK; a hit under the SDK costs 1/{sdk_call / ours_hit:.1f} of its call."
    )


def memory(size: int, pieces: int, most: int) -> None:
    """Print what answers of that size take."""
    headers = [(b"content-type", b"application/json"), (b"date", b"Mon, 23 Nov 2026 10:00:00 GMT"), (b"server", b"x")]
    gc.collect()
    tracemalloc.start()
    cache = AnswerCache(CachePolicy(max_bytes=most), _NoLock(), time.monotonic, time.time)
    before, _ = tracemalloc.get_traced_memory()
    for number in range(ANSWERS):
        trace = (b"x-ds-trace-id", b"%032d" % number)
        own = tuple((bytes(bytearray(name)), bytes(bytearray(value))) for name, value in (*headers, trace))
        chunks = tuple(bytes(size // pieces) for _ in range(pieces))
        cache.add(number.to_bytes(16, "big"), Answer(200, own, chunks, pieces > 1, time.time()))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    seen = cache.statistics()
    print(
        f"| {size} in {pieces} | {seen.entries} | {seen.bytes / 1e6:.1f} | {held / 1e6:.1f} | {held / seen.bytes:.3f} |"
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    times(rounds)
    print("\n| bytes of an answer | answers kept | MB, believed | MB, held | ratio |\n| --- | --- | --- | --- | --- |")
    for size, pieces, most in (
        (100, 1, 300_000_000),
        (1000, 1, 300_000_000),
        (1000, 1, 50_000_000),
        (4000, 40, 300_000_000),
    ):
        memory(size, pieces, most)


if __name__ == "__main__":
    main()
