"""What the engine costs, side by side in one run: CPU time with and without it over the same inner transport.

    python benchmarks/engine.py            # the table
    python benchmarks/engine.py --rounds 9 # more rounds, smaller spread

Each figure is the median over rounds in which the variants take turns, in microseconds of CPU time (user + system) of
this process. "Engine" rows use an inner transport that answers from memory, so that nothing but our own work differs;
"traffic control" rows compare engines with and without it; "client" rows make whole calls of the OpenAI SDK over
loopback HTTP to the simulated DeepSeek in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2
import openai

from deepseek_resilient import (
    AsyncDeepSeek,
    AsyncResilientTransport,
    DeepSeek,
    Policy,
    RatePolicy,
    ResilientTransport,
    RoutingPolicy,
    Upstream,
)
from deepseek_resilient.lab.process import LabProcess

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

CHAT = b'{"model":"deepseek-flash","messages":[{"role":"user","content":"' + b"x" * 900 + b'"}]}'
STREAM = CHAT[:-1] + b',"stream":true}'
ANSWER = (
    b'{"id":"1","object":"chat.completion","created":1,"model":"deepseek-flash","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"' + b"y" * 850 + b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":200,'
    b'"completion_tokens":200,"total_tokens":400}}'
)
CHUNKS = 2000
CHUNK = (
    b'data: {"id":"930c60df-bf64-41c9-a88e-3ec75f81e00e","object":"chat.completion.chunk","created":1795392000,"model":'
    b'"deepseek-flash","system_fingerprint":"fp_a49d71b8a1","choices":[{"index":0,"delta":{"content":" word"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
LAST = CHUNK.replace(b'{"content":" word"}', b"{}").replace(b'"finish_reason":null', b'"finish_reason":"stop"')
EVENTS = [CHUNK] * CHUNKS + [LAST, b"data: [DONE]\n\n"]
URL = "http://127.0.0.1:1/chat/completions"
HEADERS = {"authorization": "Bearer none", "content-type": "application/json"}


class _Body(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces

    async def __aiter__(self) -> Any:
        for piece in self._pieces:
            yield piece


class _Memory(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Answers from memory, with the headers that DeepSeek sends."""

    headers = (
        (b"content-type", b"application/json"), (b"date", b"Mon, 23 Nov 2026 10:00:00 GMT"), (b"server", b"CloudFront"),
        (b"x-ds-trace-id", b"0123456789abcdef0123456789abcdef"), (b"transfer-encoding", b"chunked"),
        (b"vary", b"origin"),
    )  # fmt: skip

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        pieces = EVENTS if b'"stream":true' in request.content else [ANSWER]
        return httpx2.Response(200, headers=list(self.headers), stream=_Body(pieces))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.handle_request(request)


def _request(body: bytes) -> httpx2.Request:
    timeout = {"timeout": {"connect": 5.0, "read": 600.0, "write": 600.0, "pool": 600.0}}
    return httpx2.Request("POST", URL, content=body, headers=HEADERS, extensions=timeout)


def sync_calls(transport: httpx2.BaseTransport, body: bytes, count: int) -> float:
    """CPU seconds per call, the request's making included."""
    began = time.process_time()
    for _ in range(count):
        response = transport.handle_request(_request(body))
        for _ in response.stream:  # type: ignore[union-attr]
            pass
        response.close()
    return (time.process_time() - began) / count


async def async_calls(transport: httpx2.AsyncBaseTransport, body: bytes, count: int) -> float:
    """CPU seconds per call, the request's making included."""
    began = time.process_time()
    for _ in range(count):
        response = await transport.handle_async_request(_request(body))
        async for _ in response.stream:  # type: ignore[union-attr]
            pass
        await response.aclose()
    return (time.process_time() - began) / count


def sync_client(client: openai.OpenAI, count: int) -> float:
    """CPU seconds per whole call of the SDK."""
    began = time.process_time()
    for _ in range(count):
        client.chat.completions.create(model="deepseek-flash", messages=[{"role": "user", "content": "x" * 900}])
    return (time.process_time() - began) / count


async def async_client(client: openai.AsyncOpenAI, count: int, workers: int) -> float:
    """CPU seconds per whole call of the SDK, `workers` at a time."""

    async def work() -> None:
        for _ in range(count // workers):
            await client.chat.completions.create(
                model="deepseek-flash", messages=[{"role": "user", "content": "x" * 900}]
            )

    await asyncio.gather(*(work() for _ in range(workers)))
    began = time.process_time()
    await asyncio.gather(*(work() for _ in range(workers)))
    return (time.process_time() - began) / (count // workers * workers)


def import_time() -> tuple[float, float]:
    """Milliseconds for `import deepseek_resilient`, and for the client class behind it, in fresh interpreters."""
    times = []
    for statement in ("import deepseek_resilient", "from deepseek_resilient import DeepSeek"):
        code = f"import time; t=time.perf_counter(); {statement}; print((time.perf_counter()-t)*1000)"
        runs = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]  # noqa: S603
        times.append(statistics.median(runs))
    return times[0], times[1]


def row(name: str, without: list[float], with_ours: list[float], goal: str, *, per: int = 1) -> None:
    """One line: medians, and the median of the paired differences."""
    bare, ours = statistics.median(without) * 1e6 / per, statistics.median(with_ours) * 1e6 / per
    more = statistics.median(b - a for a, b in zip(without, with_ours, strict=True)) * 1e6 / per
    print(f"{name:<44}{bare:>10.1f}{ours:>10.1f}{more:>+10.1f}   {goal}")


def take_turns(rounds: int, *variants: Callable[[], float]) -> list[list[float]]:
    """Run the variants alternately; the figures of each."""
    for variant in variants:
        variant()
    figures: list[list[float]] = [[] for _ in variants]
    for _ in range(rounds):
        for figure, variant in zip(figures, variants, strict=True):
            figure.append(variant())
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (default 5)")
    rounds = parser.parse_args().rounds
    memory, resilient, aresilient = _Memory(), ResilientTransport(_Memory()), AsyncResilientTransport(_Memory())
    loop = asyncio.new_event_loop()

    def run(work: Awaitable[float]) -> float:
        return loop.run_until_complete(work)  # type: ignore[arg-type]

    print(f"{'CPU, µs':<44}{'without':>10}{'with us':>10}{'more':>10}   goal")
    row("engine, sync, per call", *take_turns(rounds, lambda: sync_calls(memory, CHAT, 3000),
        lambda: sync_calls(resilient, CHAT, 3000)), "<= 30 more")  # fmt: skip
    row("engine, async, per call", *take_turns(rounds, lambda: run(async_calls(memory, CHAT, 3000)),
        lambda: run(async_calls(aresilient, CHAT, 3000))), "<= 20 more")  # fmt: skip
    row("engine, sync, per stream chunk", *take_turns(rounds, lambda: sync_calls(memory, STREAM, 10),
        lambda: sync_calls(resilient, STREAM, 10)), "<= 3 more", per=CHUNKS)  # fmt: skip
    row("engine, async, per stream chunk", *take_turns(rounds, lambda: run(async_calls(memory, STREAM, 10)),
        lambda: run(async_calls(aresilient, STREAM, 10))), "<= 3 more", per=CHUNKS)  # fmt: skip
    plain = Policy(concurrency=None, admission=None, guard=None, ledger=None)
    rates = RatePolicy(requests_per_minute=1e9, tokens_per_minute=1e12)
    three = RoutingPolicy(upstreams=tuple(Upstream(URL.removesuffix("/chat/completions"), name=n) for n in "abc"))
    controlled = {
        "guard": replace(plain, guard=Policy().guard),
        "concurrency": replace(plain, concurrency=Policy().concurrency),
        "concurrency, admission": replace(Policy(), guard=None, ledger=None),
        "ledger": replace(plain, ledger=Policy().ledger),
        "all defaults": Policy(),
        "all defaults and rates": Policy(rate=rates),
        "all defaults and three upstreams": Policy(routing=three),
    }
    without = ResilientTransport(_Memory(), policy=plain)
    for name, policy in controlled.items():
        controlling = ResilientTransport(_Memory(), policy=policy)
        figures = take_turns(rounds, *(partial(sync_calls, it, CHAT, 3000) for it in (without, controlling)))
        row(f"traffic control: {name}", *figures, "<= 20 more")
    with LabProcess(service_time=0.0, slots=1000) as lab:
        options: dict[str, Any] = {"api_key": "none", "base_url": lab.base_url}
        with openai.OpenAI(**options) as bare, DeepSeek(**options) as ours:
            row("client, sync, 1 connection, per call", *take_turns(rounds, lambda: sync_client(bare, 200),
                lambda: sync_client(ours, 200)), "no dearer")  # fmt: skip
        for workers in (1, 64):
            abare, aours = openai.AsyncOpenAI(**options), AsyncDeepSeek(**options)

            def bare_calls(client: openai.AsyncOpenAI = abare, count: int = workers) -> float:
                return run(async_client(client, 320, count))

            def our_calls(client: openai.AsyncOpenAI = aours, count: int = workers) -> float:
                return run(async_client(client, 320, count))

            row(
                f"client, async, {workers} at a time, per call", *take_turns(rounds, bare_calls, our_calls), "no dearer"
            )
            run(_close(abare, aours))
    loop.close()
    package, client = import_time()
    print(f"{'import deepseek_resilient, ms':<44}{'':>10}{package:>10.1f}{'':>10}   <= 50")
    print(
        f"{'from deepseek_resilient import DeepSeek, ms':<44}{'':>10}{client:>10.1f}{'':>10}   (the SDK's own import)"
    )


async def _close(*clients: openai.AsyncOpenAI) -> float:
    for client in clients:
        await client.close()
    return 0.0


if __name__ == "__main__":
    main()
