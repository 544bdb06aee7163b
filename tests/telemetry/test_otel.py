"""The spans and measurements of real calls, in OpenTelemetry's own exporters in memory."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any, NamedTuple

import openai
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as conventions
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.trace import SpanKind, StatusCode

from deepseek_resilient import CachePolicy, ConfigError, HedgePolicy
from deepseek_resilient.events import AttemptAbandoned, AttemptStarted, CallEnded, CallStarted
from deepseek_resilient.telemetry import OpenTelemetry
from e2e.faces import NO_THINKING, always, policy
from e2e.servers import recorder

from .work import ASKED, KEY, SECRETS, TENANT, cancelled, left

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from deepseek_resilient.lab import LabProcess
    from e2e.faces import Face


class Open(SpanProcessor):
    """How many spans have begun and not ended."""

    count = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.count += 1

    def on_end(self, span: Any) -> None:
        self.count -= 1


class Kit(NamedTuple):
    """A listener, and what it made so far."""

    listener: OpenTelemetry
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader
    tracers: TracerProvider
    open: Open

    def calls(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name != "attempt"]

    def attempts(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == "attempt"]

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def kit() -> Kit:
    exporter, reader, open_spans = InMemorySpanExporter(), InMemoryMetricReader(), Open()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    tracers.add_span_processor(open_spans)
    listener = OpenTelemetry(tracers, MeterProvider([reader]))
    return Kit(listener, exporter, reader, tracers, open_spans)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    return child.parent is not None and parent.context is not None and child.parent.span_id == parent.context.span_id


def test_a_call_is_told_by_the_conventions(face: Face, kit: Kit) -> None:
    """Name, kind, operation, provider, models, tokens, server; and the same words in the measurements."""
    face.new(listeners=[kit.listener])
    reply = face.chat()
    (call,), (attempt,) = kit.calls(), kit.attempts()
    assert ("chat deepseek-flash", SpanKind.CLIENT, None) == (call.name, call.kind, call.parent)
    found = attributes(call)
    assert StatusCode.UNSET is call.status.status_code
    assert "chat" == found[conventions.GEN_AI_OPERATION_NAME]
    assert "deepseek" == found[conventions.GEN_AI_PROVIDER_NAME]
    assert "deepseek-flash" == found[conventions.GEN_AI_REQUEST_MODEL]
    assert reply.model == found[conventions.GEN_AI_RESPONSE_MODEL]
    assert reply.usage.prompt_tokens == found[conventions.GEN_AI_USAGE_INPUT_TOKENS]
    assert reply.usage.completion_tokens == found[conventions.GEN_AI_USAGE_OUTPUT_TOKENS]
    assert 0 == found[conventions.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS]
    assert False is found[conventions.GEN_AI_REQUEST_STREAM]
    assert f"http://{found['server.address']}:{found['server.port']}" == face.base_url
    assert is_child(attempt, call)
    assert (200, "ok") == (
        attributes(attempt)["http.response.status_code"],
        attributes(attempt)["deepseek_resilient.verdict"],
    )
    (duration,) = kit.points(gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION)
    assert (0.01, 81.92, 14) == (
        duration.explicit_bounds[0],
        duration.explicit_bounds[-1],
        len(duration.explicit_bounds),
    )
    tokens = {point.attributes["gen_ai.token.type"]: point for point in kit.points("gen_ai.client.token.usage")}
    assert reply.usage.prompt_tokens == tokens["input"].sum
    assert reply.usage.completion_tokens == tokens["output"].sum
    assert (1, 67108864) == (tokens["input"].explicit_bounds[0], tokens["input"].explicit_bounds[-1])
    for point in (duration, *tokens.values()):
        words = dict(point.attributes)
        words.pop("gen_ai.token.type", None)
        assert words == {name: found[name] for name in words}
        assert {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"} <= set(words)
    assert 0 == kit.open.count


def test_the_parent_is_what_is_current_where_the_call_begins(face: Face, kit: Kit) -> None:
    """The span of whoever calls."""
    face.new(listeners=[kit.listener])
    with kit.tracers.get_tracer("app").start_as_current_span("handler") as handler:
        face.chat()
        assert trace.get_current_span() is handler
    call = next(span for span in kit.calls() if span.name.startswith("chat"))
    assert is_child(call, handler)  # type: ignore[arg-type]


def test_each_attempt_is_a_span_and_its_context_goes_upstream(face: Face, kit: Kit) -> None:
    """`traceparent` names the attempt, another one each time; what the application carries besides stays here."""
    with recorder() as server:
        answers = iter([(503, {}, b"busy")])
        good = server.answer
        server.answer = lambda came: next(answers, None) or good(came)
        face.new(base_url=server.base_url, listeners=[kit.listener])
        token = context.attach(baggage.set_baggage("tenant", TENANT))
        try:
            face.chat(extra_headers={"traceparent": "00-11111111111111111111111111111111-2222222222222222-01"})
            face.get(face.client.models.list())
        finally:
            context.detach(token)
    spans = kit.attempts()
    sent = [each.headers["traceparent"] for each in server.received]
    assert 3 == len(set(sent))
    for header, span in zip(sent, spans, strict=True):
        assert span.context is not None
        assert f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}" == header[:-3]
    assert [1, 2, 1] == [attributes(span)["deepseek_resilient.attempt"] for span in spans]
    assert [None, 1, None] == [attributes(span).get("http.request.resend_count") for span in spans]
    assert [503, 200, 200] == [attributes(span)["http.response.status_code"] for span in spans]
    assert ["overloaded", None, None] == [attributes(span).get("error.type") for span in spans]
    assert TENANT not in "".join(str(each.headers) for each in server.received)
    first, other = kit.calls()
    assert [True, True, False] == [is_child(span, first) for span in spans]
    assert ("request", {}) == (other.name, {k: v for k, v in attributes(other).items() if k.startswith("gen_ai")})


def test_without_a_provider_nothing_is_sent_and_nothing_fails(face: Face) -> None:
    """As the API has it: spans that are none have no context to carry."""
    with recorder() as server:
        face.new(base_url=server.base_url, listeners=[OpenTelemetry()])
        face.chat()
    assert "traceparent" not in server.last.headers


def test_a_stream_is_open_until_its_last_byte(face: Face, kit: Kit) -> None:
    """Its first content is an event and a measurement; tokens are told where the stream states them."""
    face.new(listeners=[kit.listener])
    stream = face.stream(stream_options={"include_usage": True})
    assert [] == kit.calls()
    usage = next(chunk.usage for chunk in face.all(stream) if chunk.usage)
    (call,) = kit.calls()
    assert ["first content"] == [event.name for event in call.events]
    assert (True, usage.completion_tokens, "deepseek-flash") == (
        attributes(call)["gen_ai.request.stream"],
        attributes(call)["gen_ai.usage.output_tokens"],
        attributes(call)["gen_ai.response.model"],
    )
    (first,) = kit.points(gen_ai_metrics.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK)
    assert 1 == first.count
    assert 0 == kit.open.count


def test_what_is_estimated_is_not_told(face: Face, kit: Kit) -> None:
    """The conventions want the server's own count of tokens, or none."""
    face.new(listeners=[kit.listener])
    face.streamed()
    assert "gen_ai.usage.output_tokens" not in attributes(kit.calls()[0])
    assert [] == kit.points("gen_ai.client.token.usage")


def test_a_call_that_is_refused(face: Face, kit: Kit) -> None:
    """Has no attempt, and an error that names the step."""
    face.new(listeners=[kit.listener])
    with pytest.raises(openai.BadRequestError):
        face.chat(max_tokens=500_000)
    (call,) = kit.calls()
    assert ("refused_guard", StatusCode.ERROR) == (attributes(call)["error.type"], call.status.status_code)
    assert [] == kit.attempts()
    (duration,) = kit.points("gen_ai.client.operation.duration")
    assert "refused_guard" == duration.attributes["error.type"]


def test_a_call_that_fails(face: Face, kit: Kit, lab: LabProcess) -> None:
    """Has the error of its last attempt."""
    face.new(listeners=[kit.listener])
    lab.script(windows=[always("outage_503")])
    with pytest.raises(openai.InternalServerError):
        face.chat()
    (call,) = kit.calls()
    assert "overloaded" == attributes(call)["error.type"]
    assert 3 == sum(event.name == "retry" for event in call.events)
    assert 4 == len(kit.attempts()) == attributes(call)["deepseek_resilient.attempts"]


def test_a_call_that_is_cancelled_leaves_no_span_open(kit: Kit, lab: LabProcess) -> None:
    """Both end as abandoned."""
    asyncio.run(cancelled(lab, [kit.listener]))
    (call,), (attempt,) = kit.calls(), kit.attempts()
    assert "abandoned" == attributes(call)["error.type"] == attributes(attempt)["error.type"]
    assert is_child(attempt, call)
    assert 0 == kit.open.count


def test_a_stream_that_is_closed_early_leaves_no_span_open(face: Face, kit: Kit, lab: LabProcess) -> None:
    """It is abandoned."""
    face.new(listeners=[kit.listener])
    lab.script(next=["stall;after=3"])
    stream = face.stream(**NO_THINKING)
    face.next(stream)
    face.close(stream)
    gc.collect()
    assert "abandoned" == attributes(kit.calls()[0])["error.type"]
    assert 0 == kit.open.count


def test_an_answer_that_is_shared(kit: Kit, lab: LabProcess) -> None:
    """Its attempt belongs to the call that began it, also when that one has left."""
    asyncio.run(left(lab, [kit.listener], policy=policy(cache=CachePolicy())))
    (attempt,) = kit.attempts()
    gone, served = kit.calls()
    assert ("none", "joined") == (
        attributes(gone)["deepseek_resilient.outcome"],
        attributes(served)["deepseek_resilient.outcome"],
    )
    assert is_child(attempt, gone)
    assert "ok" == attributes(attempt)["deepseek_resilient.verdict"]
    assert 0 == kit.open.count


def test_an_answer_that_is_refreshed(face: Face, kit: Kit) -> None:
    """The attempt that nobody waits for lies beside the call, below the span of whoever called."""
    kept = policy(cache=CachePolicy(lifetime=1e-6, stale_while_revalidate=1000.0))
    client = face.new(policy=kept, listeners=[kit.listener])
    with kit.tracers.get_tracer("app").start_as_current_span("handler") as handler:
        face.chat(temperature=0)
        face.chat(temperature=0)
        while client.engine.statistics().attempts < 2 or kit.open.count > 1:
            if face.is_async:
                face.get(asyncio.sleep(0))
    *_, refreshed = kit.attempts()
    assert is_child(refreshed, handler)  # type: ignore[arg-type]
    assert {"ok", "stale"} == {
        attributes(span)["deepseek_resilient.outcome"] for span in kit.calls() if span.name != "handler"
    }
    assert 0 == kit.open.count


def test_a_hedge_is_a_span_beside_the_late_one(face: Face, kit: Kit, lab: LabProcess) -> None:
    """Both below their call; the late one is abandoned or out of time."""
    client = face.new(
        policy=policy(hedge=HedgePolicy(minimum_samples=10), attempt_timeout=0.5), listeners=[kit.listener]
    )
    for _ in range(10):
        face.chat()
    lab.script(next=["hang"])
    face.chat()
    face.close(client)
    while kit.open.count:  # a thread learns that it lost when its time is up
        pass
    call = kit.calls()[-1]
    assert "hedge" in [event.name for event in call.events]
    assert 2 == sum(is_child(span, call) for span in kit.attempts())
    assert "ok" == attributes(call)["deepseek_resilient.outcome"]


def test_nothing_secret_is_told(face: Face, kit: Kit, lab: LabProcess) -> None:
    """No prompt, answer, key or tenant, in spans or measurements."""
    face.new(api_key=KEY, listeners=[kit.listener])
    lab.script(next=["outage_503"])
    face.chat(messages=ASKED["messages"], extra_headers={"x-resilient-tenant": TENANT})
    with pytest.raises(openai.BadRequestError):
        face.chat(messages=ASKED["messages"], max_tokens=500_000)
    text = "".join(span.to_json() for span in kit.exporter.get_finished_spans())
    text += str(kit.reader.get_metrics_data())
    assert [] == [secret for secret in SECRETS if secret in text]


def test_metrics_name_no_more_models_than_allowed(face: Face) -> None:
    """The others are "other"; the span has the name itself."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    face.new(policy=policy(guard=None), listeners=[OpenTelemetry(tracers, MeterProvider([reader]), most_models=1)])
    face.chat()
    face.chat(model="deepseek-v4-pro")
    kit = Kit(OpenTelemetry(), exporter, reader, tracers, Open())
    models = {point.attributes["gen_ai.request.model"] for point in kit.points("gen_ai.client.operation.duration")}
    assert {"deepseek-flash", "other"} == models
    assert "chat deepseek-v4-pro" == kit.calls()[-1].name
    with pytest.raises(ConfigError, match="a whole number of at least 1"):
        OpenTelemetry(most_models=0)


def test_attempts_of_the_same_number_are_told_apart_by_their_target(kit: Kit) -> None:
    """A hedge and a retry of one call; an event whose beginning was not seen is nothing."""
    tell = kit.listener
    tell(CallStarted(0.0, 1, "chat", "m", False))
    for target in ("a", "b"):
        tell(AttemptStarted(0.0, 1, 2, target))
    tell(AttemptAbandoned(0.0, 1, 2, "b"))
    tell(CallEnded(0.0, 1, 2, "ok", 1.0, 0.0))
    tell(AttemptAbandoned(0.0, 1, 2, "a"))
    tell(AttemptAbandoned(0.0, 1, 2, "a"))
    tell(CallEnded(0.0, 9, 2, "ok", 1.0, 0.0))
    assert ["b", "a"] == [attributes(span)["deepseek_resilient.target"] for span in kit.attempts()]
    assert 0 == kit.open.count
