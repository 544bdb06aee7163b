"""What metrics and traces cost, side by side in one run: calls/s and CPU per call, without and with a listener.

    python benchmarks/telemetry.py            # the table
    python benchmarks/telemetry.py --rounds 99 # more rounds, smaller spread

The inner transport answers from memory, so that nothing but our own work differs; the variants take turns of 400
calls, each figure is the median over the rounds, "more" that of the differences within a round. "no reader" is a
listener that does nothing: what events themselves cost. OpenTelemetry runs with its SDK, all spans sampled, ended into
a processor that drops them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

from engine import CHAT, _Memory, async_calls, sync_calls
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from prometheus_client import CollectorRegistry, generate_latest

from deepseek_resilient import AsyncResilientTransport, ResilientTransport
from deepseek_resilient.telemetry import OpenTelemetry, PrometheusMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = 400


def traced() -> OpenTelemetry:
    """With the SDK, and nobody who takes the spans."""
    tracers = TracerProvider()
    tracers.add_span_processor(SpanProcessor())
    return OpenTelemetry(tracers, MeterProvider([InMemoryMetricReader()]))


def listeners() -> dict[str, list[Any]]:
    """The variants."""
    return {
        "without": [],
        "no reader": [lambda event: None],
        "PrometheusMetrics": [PrometheusMetrics(CollectorRegistry())],
        "OpenTelemetry": [traced()],
        "both": [PrometheusMetrics(CollectorRegistry()), traced()],
    }


def measure(rounds: int, variants: dict[str, Callable[[], float]]) -> None:
    """Let them take turns, and print the medians."""
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, variant in variants.items():
            began = time.perf_counter()
            cpu = variant()
            if number:  # the first is to get warm
                figures[name].append((CALLS / (time.perf_counter() - began), cpu * 1e6))
    for name, found in figures.items():
        rate, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        more = statistics.median(mine - bare for (_, mine), (_, bare) in zip(found, figures["without"], strict=True))
        print(f"  {name:<22}{rate:>10,.0f}{cpu:>12.1f}{more:>+12.1f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31, help="rounds per figure (default 31)")
    rounds = parser.parse_args().rounds
    print(f"{'':<24}{'calls/s':>10}{'CPU, µs':>12}{'more':>12}")
    for stay, kind in (("threads", ResilientTransport), ("asyncio", AsyncResilientTransport)):
        print(stay)
        transports = {name: kind(_Memory(), listeners=told) for name, told in listeners().items()}
        with asyncio.Runner() as runner:

            def call(transport: Any) -> float:
                if isinstance(transport, ResilientTransport):
                    return sync_calls(transport, CHAT, CALLS)
                return runner.run(async_calls(transport, CHAT, CALLS))

            measure(rounds, {name: (lambda t=each: call(t)) for name, each in transports.items()})
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(registry)
    with ResilientTransport(_Memory(), listeners=[metrics]) as transport:
        metrics.watch(transport.engine)
        sync_calls(transport, CHAT, 100)
        began = time.perf_counter()
        for _ in range(100):
            generate_latest(registry)
        print(f"one exposition: {(time.perf_counter() - began) * 10:.2f} ms")


if __name__ == "__main__":
    main()
