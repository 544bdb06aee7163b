"""An engine's metrics for Prometheus, by its official client.

Counters and histograms are moved by events as they come; gauges are asked of the engines that are watched, whenever
Prometheus asks. Labels are targets, models and fixed words: never a key, a prompt, a tenant, or a server's own words.
"""

from __future__ import annotations

import weakref
from functools import partial
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

try:
    from prometheus_client import REGISTRY, Counter, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise ImportError("metrics need Prometheus' client: from a checkout, pip install '.[metrics]'") from error

from deepseek_resilient import events
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.telemetry.calls import Known, Seen
from deepseek_resilient.telemetry.gauges import PREFIX, ROWS, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from deepseek_resilient.core.runtime import EngineStatistics
    from deepseek_resilient.engine import Engine

M = TypeVar("M", Counter, Histogram)

DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
"""Of whole calls, seconds: reasoning models answer for minutes."""
CONTENT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)
WAIT_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

COUNTERS = {
    "calls": ("Calls that ended, by outcome.", ("dialect", "model", "outcome")),
    "attempts": ("Requests that were sent and ended, by verdict.", ("target", "verdict")),
    "refusals": ("Calls that a step refused before anything was sent.", ("step",)),
    "retries": ("Attempts that follow another one, by what came of that.", ("reason",)),
    "retries_stopped": ("Failed calls that got no further attempt, by why not.", ("why",)),
    "hedges": ("Second attempts beside a late one, by the target of that.", ("target",)),
    "answers_reused": ("Answers given that were not made for their call.", ("how",)),
    "simplified_calls": ("Attempts that were made simpler than asked for, by load level.", ("target", "level")),
    "streams_continued": ("Streams that broke off and were gone on with.", ("target",)),
    "local_declines": ("Calls that the model on this machine was not asked.", ("why",)),
    "model_changes": ("Changes of the model behind a target's name.", ("target",)),
    "tokens": ("Tokens billed, or that may be.", ("target", "kind")),
    "spent_dollars": ("US dollars spent, estimates included.", ("target",)),
}
HISTOGRAMS = {
    "call_duration_seconds": ("Seconds from a call's begin to its end.", ("dialect", "outcome"), DURATION_BUCKETS),
    "first_content_seconds": ("Seconds from sending to a stream's first content.", ("model",), CONTENT_BUCKETS),
    "wait_seconds": ("Seconds that a call waited at a step before it was sent.", ("step",), WAIT_BUCKETS),
}


class PrometheusMetrics:
    """Metrics of one or several engines: `Engine(listeners=[metrics])`, then `metrics.watch(engine)`. Thread-safe.

    An engine without `watch` has counters and histograms and no gauges. In a forked child the counts go on from those
    of the parent, as the official client has it.

    Args:
        registry: where the metrics are found; the client's own by default.
        most_values: how many values a label may have; all later ones are "other".

    Raises:
        ConfigError: `most_values` is no whole number of at least 1.
        ValueError: the registry has metrics of these names already.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, most_values: int = 100) -> None:
        if not isinstance(most_values, int) or most_values < 1:
            raise ConfigError("most_values", most_values, "a whole number of at least 1")
        self._most = most_values
        self._lock = Lock()
        self._numbers = count(1)
        self._engines: dict[str, weakref.ref[Engine]] = {}
        self._known = {label: Known(most_values) for _, labels in COUNTERS.values() for label in labels}
        self._known |= {label: Known(most_values) for _, labels, _ in HISTOGRAMS.values() for label in labels}
        self._known |= {label: Known(most_values) for row in ROWS for label in row.labels}
        self._counters = {
            name: self._children(Counter(PREFIX + name, meaning, labels, registry=registry), labels)
            for name, (meaning, labels) in COUNTERS.items()
        }
        self._histograms = {
            name: self._children(Histogram(PREFIX + name, meaning, labels, registry=registry, buckets=buckets), labels)
            for name, (meaning, labels, buckets) in HISTOGRAMS.items()
        }
        self._own = self.for_engine()
        registry.register(self)

    def __call__(self, event: events.Event) -> None:
        """Count what is told by whoever knows nothing of `for_engine`: the events of one engine, then."""
        self._own(event)

    def for_engine(self) -> events.Listener:
        """The listener of one engine: it knows that engine's calls in flight."""
        return _EngineListener(self._counters, self._histograms)

    def watch(self, engine: Engine, name: str = "") -> None:
        """Ask this engine whenever Prometheus asks; until it is gone. `name` is the label `engine`: its number if "".

        Raises:
            ConfigError: another engine of that name is watched.
        """
        with self._lock:
            name = name or str(next(self._numbers))
            known = self._engines.get(name)
            if known is not None and known() not in (None, engine):
                raise ConfigError("name", name, "the name of no other engine that is watched")
            self._engines[name] = weakref.ref(engine)

    def collect(self) -> Iterator[Metric]:
        """For the registry: how the watched engines stand now."""
        with self._lock:
            self._engines = {name: engine for name, engine in self._engines.items() if engine() is not None}
            watched = [(name, engine()) for name, engine in self._engines.items()]
        seen = [(name, engine.statistics()) for name, engine in watched if engine is not None]
        for row in ROWS:
            yield self._family(row, seen)

    def _family(self, row: Row, seen: Sequence[tuple[str, EngineStatistics]]) -> Metric:
        kind = CounterMetricFamily if row.counter else GaugeMetricFamily
        family = kind(PREFIX + row.name, row.meaning, labels=("engine", *row.labels))
        known = [self._known[label] for label in row.labels]
        for name, statistics in seen:
            together: dict[tuple[str, ...], float] = {}
            for values, number in row.find(statistics):
                labels = tuple(word(value) for word, value in zip(known, values, strict=True))
                before = together.get(labels, 0.0)
                together[labels] = max(before, number) if row.worst else before + number
            for labels, number in together.items():
                family.add_metric((name, *labels), number)
        return family

    def _children(self, metric: M, labels: Sequence[str]) -> Callable[..., M]:
        return _Children(metric, [self._known[label] for label in labels]).get


class _Children:
    """The children of one metric by the words of events: the client's own look-up costs more than counting does."""

    __slots__ = ("_children", "_known", "_metric")

    def __init__(self, metric: Any, known: Sequence[Known]) -> None:
        self._metric = metric
        self._known = known
        self._children: dict[tuple[str, ...], Any] = {}

    def get(self, *values: str) -> Any:
        child = self._children.get(values)
        if child is None:
            labels = [word(value) for word, value in zip(self._known, values, strict=True)]
            child = self._metric.labels(*labels)
            if labels == list(values):  # else a caller could make this table as long as it likes
                self._children[values] = child
        return child


class _EngineListener:
    """Counts what one engine tells."""

    __slots__ = ("_add", "_calls", "_observe", "_on", "kinds")

    def __init__(
        self, counters: dict[str, Callable[..., Counter]], histograms: dict[str, Callable[..., Histogram]]
    ) -> None:
        self._add = counters
        self._observe = histograms
        self._calls: dict[int, Seen] = {}
        self._on: dict[type[events.Event], Callable[[Any], None]] = {
            events.CallStarted: self._call_started,
            events.CallEnded: self._call_ended,
            events.CallRefused: self._call_refused,
            events.AttemptEnded: self._attempt_ended,
            events.AttemptAbandoned: self._attempt_abandoned,
            events.AttemptCharged: self._attempt_charged,
            events.StreamCommitted: self._stream_committed,
            events.StepWaited: self._step_waited,
            events.RetryScheduled: self._retry_scheduled,
            events.RetryStopped: partial(self._count, "retries_stopped", "why"),
            events.HedgeStarted: partial(self._count, "hedges", "target"),
            events.AnswerReused: partial(self._count, "answers_reused", "how"),
            events.StreamContinued: partial(self._count, "streams_continued", "target"),
            events.LocalDeclined: partial(self._count, "local_declines", "why"),
            events.ModelChanged: partial(self._count, "model_changes", "target"),
            events.CallSimplified: self._call_simplified,
        }
        self.kinds = frozenset(self._on)

    def __call__(self, event: events.Event) -> None:
        act = self._on.get(type(event))
        if act is not None:
            act(event)

    def _count(self, name: str, field: str, event: events.Event) -> None:
        self._add[name](getattr(event, field)).inc()

    def _call_started(self, event: events.CallStarted) -> None:
        self._calls[event.call] = Seen(event)

    def _call_ended(self, event: events.CallEnded) -> None:
        seen = self._calls.pop(event.call, None)
        if seen is not None:
            outcome = seen.outcome(event)
            self._add["calls"](seen.dialect, seen.model, outcome).inc()
            self._observe["call_duration_seconds"](seen.dialect, outcome).observe(event.duration)

    def _call_refused(self, event: events.CallRefused) -> None:
        self._add["refusals"](event.step).inc()
        seen = self._calls.get(event.call)
        if seen is not None:
            seen.refused = event.step

    def _attempt_ended(self, event: events.AttemptEnded) -> None:
        self._add["attempts"](event.target, event.verdict).inc()
        seen = self._calls.get(event.call)
        if seen is not None:
            seen.abandoned = False

    def _attempt_abandoned(self, event: events.AttemptAbandoned) -> None:
        self._add["attempts"](event.target, "abandoned").inc()
        seen = self._calls.get(event.call)
        if seen is not None:
            seen.abandoned = True

    def _attempt_charged(self, event: events.AttemptCharged) -> None:
        target, cached = event.target, event.cached_tokens
        new = event.prompt_tokens - cached
        for kind, tokens in (("prompt_cached", cached), ("prompt_new", new), ("output", event.output_tokens)):
            if tokens > 0:
                self._add["tokens"](target, kind).inc(tokens)
        if event.cost:
            self._add["spent_dollars"](target).inc(event.cost)

    def _stream_committed(self, event: events.StreamCommitted) -> None:
        seen = self._calls.get(event.call)
        self._observe["first_content_seconds"]("" if seen is None else seen.model).observe(event.waited)

    def _step_waited(self, event: events.StepWaited) -> None:
        self._observe["wait_seconds"](event.step).observe(event.delay)

    def _retry_scheduled(self, event: events.RetryScheduled) -> None:
        self._add["retries"](event.reason).inc()
        self._observe["wait_seconds"]("retry").observe(event.delay)

    def _call_simplified(self, event: events.CallSimplified) -> None:
        self._add["simplified_calls"](event.target, str(event.level)).inc()
