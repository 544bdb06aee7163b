"""A gateway's metrics for Prometheus: those of its engines added up, of its workers, and of its tenants.

Each worker tells its own exposition; what has the same name and labels is added up. A worker that dies takes its counts
along, which Prometheus sees as a reset, as with any process. Labels are bounded: tenants are those of the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from deepseek_resilient.telemetry.prometheus import PrometheusMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from deepseek_resilient.engine import Engine

_PREFIX = "deepseek_resilient_gateway_"
_COUNTED = {
    "requests": "Requests of a tenant's callers.",
    "repeats": "Those of them that were no first try: by their own count, or because they came again too early.",
    "refused": "Requests that the gateway refused.",
    "answered": "Requests that got an answer.",
    "failed": "Requests that got an error of the upstream.",
    "hung_up": "Requests whose callers went away.",
}


class WorkerMetrics:
    """The metrics of one worker. `listener` is for its engines, each of which is then to be watched."""

    def __init__(self, number: int) -> None:
        self._registry = CollectorRegistry()
        self._number = number
        self._engines = 0
        self.listener = PrometheusMetrics(self._registry)

    def watch(self, engine: Engine) -> None:
        """Gauges of this engine too: a reload may make a second one while the first ends its calls."""
        self._engines += 1
        self.listener.watch(engine, f"{self._number}.{self._engines}")

    def text(self) -> str:
        """As they stand now."""
        return generate_latest(self._registry).decode()


class _Together:
    """What several workers told, and how they and the tenants stand."""

    def __init__(self, texts: Iterable[str], status: dict[str, Any]) -> None:
        self._texts = texts
        self._workers: list[dict[str, Any]] = status["workers"]
        self._tenants: dict[str, dict[str, Any]] = status.get("tenants", {})

    def collect(self) -> Iterator[Metric]:
        """For a registry."""
        families: dict[str, Metric] = {}
        for text in self._texts:
            for family in text_string_to_metric_families(text):
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples += family.samples
        for family in families.values():
            summed: dict[tuple[str, frozenset[tuple[str, str]]], Any] = {}
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                before = summed.get(key)
                newest = sample.name.endswith("_created") and before is not None
                value = sample.value if before is None or newest else before.value + sample.value
                summed[key] = sample._replace(value=value)
            family.samples = list(summed.values())
            yield family
        yield from self._of_workers()
        yield from self._of_tenants()

    def _of_workers(self) -> Iterator[Metric]:
        ready = sum(worker["ready"] for worker in self._workers)
        yield GaugeMetricFamily(_PREFIX + "workers", "Workers that there should be.", len(self._workers))
        yield GaugeMetricFamily(_PREFIX + "workers_ready", "Those of them that take calls.", ready)

    def _of_tenants(self) -> Iterator[Metric]:
        for name, meaning in _COUNTED.items():
            counter = CounterMetricFamily(_PREFIX + name, meaning, labels=("tenant",))
            for tenant, counts in self._tenants.items():
                counter.add_metric((tenant,), counts[name])
            yield counter
        for name, meaning in (
            ("in_flight", "Calls in flight."),
            ("spent_today_dollars", "US dollars of this day (UTC)."),
        ):
            gauge = GaugeMetricFamily(_PREFIX + name, meaning, labels=("tenant",))
            for tenant, counts in self._tenants.items():
                gauge.add_metric((tenant,), counts[name.removesuffix("_dollars")])
            yield gauge


def exposition(texts: Iterable[str], status: dict[str, Any]) -> bytes:
    """What the workers told and the gateway's `status`, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Together(texts, status))
    return generate_latest(registry)
