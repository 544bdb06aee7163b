"""An engine's traces and metrics for OpenTelemetry, by the semantic conventions for generative AI.

    chat deepseek-flash          CLIENT   the call: until its last byte, its refusal or the caller's leaving
    ├─ attempt                   CLIENT   each request; its `traceparent` goes upstream with it
    └─ attempt

The parent of a call is the context that is current where it begins. An attempt's parent is its call, also where it is
made beside its caller (a hedge, a shared answer); when that caller has left or there is none (an answer that is
refreshed), it is the context in which that work was begun. No baggage is sent, and no attribute holds a key, a prompt,
an answer or a tenant.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

try:
    from opentelemetry import metrics, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImportError("traces need OpenTelemetry: from a checkout, pip install '.[otel]'") from error

from deepseek_resilient import __version__, events
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.telemetry.calls import GOOD, Known, Seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

NAME = "deepseek_resilient"
PROVIDER = "deepseek"
DURATION_BUCKETS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
CHUNK_BUCKETS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
TOKEN_BUCKETS = [float(4**power) for power in range(14)]
_OPERATIONS = {"chat": "chat", "fim": "text_completion", "responses": "chat", "messages": "chat"}
_OURS = "deepseek_resilient."
_PORTS = {"http": 80, "https": 443}

Attributes = dict[str, str | int | float | bool]


class OpenTelemetry:
    """Traces and metrics of one or several engines: `Engine(listeners=[OpenTelemetry()])`. Thread-safe.

    Args:
        tracer_provider, meter_provider: None for the global ones.
        most_models: how many models the metrics name; all later ones are "other".

    Raises:
        ConfigError: `most_models` is no whole number of at least 1.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        most_models: int = 100,
    ) -> None:
        if not isinstance(most_models, int) or most_models < 1:
            raise ConfigError("most_models", most_models, "a whole number of at least 1")
        self._tools = _Tools(tracer_provider, meter_provider, Known(most_models))
        self._own = _EngineTracer(self._tools)

    def __call__(self, event: events.Event) -> None:
        """Trace what is told by whoever knows nothing of `for_engine`: the events of one engine, then."""
        self._own(event)

    def for_engine(self) -> events.Listener:
        """The listener of one engine: it knows that engine's open spans."""
        return _EngineTracer(self._tools)


class _Tools:
    """What makes spans and takes measurements."""

    def __init__(
        self, tracers: trace.TracerProvider | None, meters: metrics.MeterProvider | None, model: Known
    ) -> None:
        self.model = model
        self.start_span = trace.get_tracer(NAME, __version__, tracers).start_span
        self.propagator = TraceContextTextMapPropagator()
        meter = metrics.get_meter(NAME, __version__, meters)
        self.duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )  # fmt: skip
        self.first_chunk = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", "Time to receive the first chunk.",
            explicit_bucket_boundaries_advisory=CHUNK_BUCKETS,
        )  # fmt: skip
        self.tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKEN_BUCKETS,
        )  # fmt: skip


class _Traced(Seen):
    """A call in flight, its span, and what the metrics say of it."""

    __slots__ = ("attempts", "attributes", "committed", "context", "ended", "span", "started_at", "usage")

    def __init__(self, started: events.CallStarted, span: trace.Span, attributes: Attributes) -> None:
        super().__init__(started)
        self.span = span
        self.context: Context = trace.set_span_in_context(span)
        self.attributes = attributes
        self.started_at = started.at
        self.committed: float | None = None
        self.usage: tuple[int, int, int] | None = None
        self.attempts = 0
        self.ended = False


class _EngineTracer:
    """The open spans of one engine. An attempt is known by its call, number and target; a hedge and a retry that have
    all of them in common are told apart by the order in which they began."""

    __slots__ = ("_attempts", "_calls", "_lock", "_on", "_tools")

    def __init__(self, tools: _Tools) -> None:
        self._tools = tools
        self._lock = Lock()
        self._calls: dict[int, _Traced] = {}
        self._attempts: dict[tuple[int, int], list[tuple[str, trace.Span]]] = {}
        self._on: dict[type[events.Event], Callable[[Any], None]] = {
            events.CallStarted: self._call_started,
            events.CallEnded: self._call_ended,
            events.CallRefused: self._call_refused,
            events.AttemptStarted: self._attempt_started,
            events.AttemptEnded: self._attempt_ended,
            events.AttemptAbandoned: self._attempt_abandoned,
            events.AttemptCharged: self._attempt_charged,
            events.StreamCommitted: self._stream_committed,
            events.RetryScheduled: self._retry_scheduled,
            events.StepWaited: self._step_waited,
            events.HedgeStarted: self._hedge_started,
            events.AnswerReused: self._answer_reused,
        }

    def __call__(self, event: events.Event) -> None:
        act = self._on.get(type(event))
        if act is not None:
            act(event)

    def headers(self, call: int, attempt: int, origin: str) -> list[tuple[str, str]]:
        """`traceparent` (and `tracestate`) of the attempt's span, which learns its server here."""
        with self._lock:
            begun = self._attempts.get((call, attempt))
            span = None if not begun else begun[-1][1]
        if span is None:
            return []
        server = _server_of(origin)
        span.set_attributes(server)
        seen = self._calls.get(call)
        if seen is not None:
            seen.span.set_attributes(server)
            seen.attributes.update(server)
        carried: dict[str, str] = {}
        self._tools.propagator.inject(carried, trace.set_span_in_context(span))
        return list(carried.items())

    def _call_started(self, event: events.CallStarted) -> None:
        operation = _OPERATIONS.get(str(event.dialect))
        span_attributes: Attributes = {}
        attributes: Attributes = {}
        name = "request"
        if operation is not None:
            model = _clean(event.model)
            name = f"{operation} {model}".rstrip()
            attributes = {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": self._tools.model(event.model),
            }
            span_attributes = {**attributes, "gen_ai.request.model": model, "gen_ai.request.stream": event.stream}
        span = self._tools.start_span(name, kind=trace.SpanKind.CLIENT, attributes=span_attributes)
        self._calls[event.call] = _Traced(event, span, attributes)

    def _call_ended(self, event: events.CallEnded) -> None:
        seen = self._calls.get(event.call)
        if seen is None:
            return
        with self._lock:
            seen.ended = True
            if not seen.attempts:  # else they go on for others that share the answer, and are this call's still
                del self._calls[event.call]
        outcome, span = seen.outcome(event), seen.span
        span.set_attributes(
            {_OURS + "outcome": outcome, _OURS + "attempts": event.attempts, _OURS + "waited": event.waited}
        )
        error: Attributes = {}
        if outcome not in GOOD:
            error = {"error.type": f"refused_{seen.refused}" if outcome == "refused" else outcome}
            span.set_attributes(error)
            span.set_status(trace.StatusCode.ERROR)
        if seen.attributes:
            self._measure(seen, event.duration, error)
        span.end()

    def _measure(self, seen: _Traced, duration: float, error: Attributes) -> None:
        tools, common = self._tools, seen.attributes
        tools.duration.record(duration, {**common, **error}, seen.context)
        if seen.committed is not None:
            tools.first_chunk.record(seen.committed, common, seen.context)
        if seen.usage is not None:
            prompt, cached, output = seen.usage
            seen.span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": prompt,
                    "gen_ai.usage.output_tokens": output,
                    "gen_ai.usage.cache_read.input_tokens": cached,
                }
            )
            tools.tokens.record(prompt, {**common, "gen_ai.token.type": "input"}, seen.context)
            tools.tokens.record(output, {**common, "gen_ai.token.type": "output"}, seen.context)

    def _call_refused(self, event: events.CallRefused) -> None:
        seen = self._calls.get(event.call)
        if seen is not None:
            seen.refused = event.step
            seen.span.add_event("refused", {"step": event.step})

    def _attempt_started(self, event: events.AttemptStarted) -> None:
        seen = self._calls.get(event.call)
        attributes: Attributes = {_OURS + "attempt": event.attempt, _OURS + "target": _clean(event.target)}
        if event.attempt > 1:
            attributes["http.request.resend_count"] = event.attempt - 1
        span = self._tools.start_span(
            "attempt", None if seen is None else seen.context, trace.SpanKind.CLIENT, attributes
        )
        with self._lock:
            self._attempts.setdefault((event.call, event.attempt), []).append((event.target, span))
            if seen is not None:
                seen.attempts += 1

    def _attempt_ended(self, event: events.AttemptEnded) -> None:
        verdict = str(event.verdict)
        attributes: Attributes = {_OURS + "verdict": verdict, _OURS + "reason": event.reason}
        if event.status is not None:
            attributes["http.response.status_code"] = event.status
        if verdict != "ok":
            attributes["error.type"] = verdict
        seen = self._end_attempt(event, attributes)
        if seen is not None:
            seen.abandoned = False
            if verdict == "ok" and event.model and seen.attributes:
                seen.span.set_attribute("gen_ai.response.model", _clean(event.model))
                seen.attributes["gen_ai.response.model"] = self._tools.model(event.model)

    def _attempt_abandoned(self, event: events.AttemptAbandoned) -> None:
        seen = self._end_attempt(event, {_OURS + "verdict": "abandoned", "error.type": "abandoned"})
        if seen is not None:
            seen.abandoned = True

    def _end_attempt(
        self, event: events.AttemptEnded | events.AttemptAbandoned, attributes: Attributes
    ) -> _Traced | None:
        key = event.call, event.attempt
        with self._lock:
            begun = self._attempts.get(key, [])
            mine = next((each for each in begun if each[0] == event.target), None)
            if mine is None:
                return None
            begun.remove(mine)
            if not begun:
                del self._attempts[key]
            seen = self._calls.get(event.call)
            if seen is not None:
                seen.attempts -= 1
                if seen.ended and not seen.attempts:
                    del self._calls[event.call]
        span = mine[1]
        span.set_attributes(attributes)
        if "error.type" in attributes:
            span.set_status(trace.StatusCode.ERROR)
        span.end()
        return seen

    def _attempt_charged(self, event: events.AttemptCharged) -> None:
        seen = self._calls.get(event.call)
        if seen is not None and event.billed == "yes" and not event.estimated:
            seen.usage = event.prompt_tokens, event.cached_tokens, event.output_tokens

    def _stream_committed(self, event: events.StreamCommitted) -> None:
        seen = self._calls.get(event.call)
        if seen is not None:
            seen.committed = event.at - seen.started_at
            seen.span.add_event("first content", {"attempt": event.attempt})

    def _retry_scheduled(self, event: events.RetryScheduled) -> None:
        self._tell(event.call, "retry", {"after": event.delay, "reason": event.reason})

    def _step_waited(self, event: events.StepWaited) -> None:
        self._tell(event.call, "wait", {"step": event.step, "seconds": event.delay})

    def _hedge_started(self, event: events.HedgeStarted) -> None:
        self._tell(event.call, "hedge", {"after": event.after})

    def _answer_reused(self, event: events.AnswerReused) -> None:
        age = {} if event.age is None else {"age": event.age}
        self._tell(event.call, "answer reused", {"how": event.how, **age})

    def _tell(self, call: int, what: str, attributes: Attributes) -> None:
        seen = self._calls.get(call)
        if seen is not None:
            seen.span.add_event(what, attributes)


def _server_of(origin: str) -> Attributes:
    url = urlsplit(origin)
    port = url.port or _PORTS.get(url.scheme)
    address: Attributes = {"server.address": url.hostname or origin}
    return address if port is None else {**address, "server.port": port}


def _clean(text: str) -> str:
    """As OpenTelemetry can send it."""
    return text[:100].encode("utf-8", "replace").decode()
