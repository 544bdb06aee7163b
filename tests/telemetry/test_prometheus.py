"""What Prometheus is told of real calls."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
import tenacity
from prometheus_client import CollectorRegistry, generate_latest

from deepseek_resilient import BreakerPolicy, CachePolicy, ConfigError, Engine, HedgePolicy, RetryPolicy
from deepseek_resilient.events import AttemptStarted, LocalDeclined, StreamContinued
from deepseek_resilient.telemetry import PrometheusMetrics
from e2e.faces import NO_THINKING, always, policy

from .work import ASKED, KEY, PROMPT, SECRETS, TENANT, cancelled, left

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess
    from e2e.faces import Face

P = "deepseek_resilient_"


class Metrics(PrometheusMetrics):
    """With a registry of its own, which can be asked for the sum of what is labelled so."""

    def __init__(self, **options: Any) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry, **options)

    def sum(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == P + name and labels.items() <= sample.labels.items()
        )

    def values(self, name: str, label: str) -> set[str]:
        return {
            sample.labels[label]
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == P + name
        }


def test_a_call_that_is_repeated(face: Face, lab: LabProcess) -> None:
    """Is one call with two attempts, a retry and a wait; tokens and money are the ledger's."""
    metrics = Metrics()
    client = face.new(listeners=[metrics])
    lab.script(next=["outage_503"])
    usage = face.chat().usage
    assert 1 == metrics.sum("calls_total", dialect="chat", model="deepseek-flash", outcome="ok")
    assert 1 == metrics.sum("attempts_total", verdict="overloaded") == metrics.sum("attempts_total", verdict="ok")
    assert 1 == metrics.sum("retries_total", reason="busy") == metrics.sum("wait_seconds_count", step="retry")
    assert 1 == metrics.sum("call_duration_seconds_count", outcome="ok")
    assert usage.prompt_tokens == metrics.sum("tokens_total", kind="prompt_new")
    assert usage.completion_tokens == metrics.sum("tokens_total", kind="output")
    assert client.ledger.totals().spent == pytest.approx(metrics.sum("spent_dollars_total"))


def test_a_stream(face: Face) -> None:
    """Has a first content, and ends with its last byte."""
    metrics = Metrics()
    face.new(listeners=[metrics])
    stream = face.stream()
    assert 1 == metrics.sum("first_content_seconds_count", model="deepseek-flash")
    assert 0 == metrics.sum("calls_total")
    face.all(stream)
    assert 1 == metrics.sum("calls_total", outcome="ok")


def test_a_call_that_is_refused(face: Face) -> None:
    """By a step, before anything was sent."""
    metrics = Metrics()
    face.new(listeners=[metrics])
    with pytest.raises(openai.BadRequestError):
        face.chat(max_tokens=500_000)
    assert 1 == metrics.sum("calls_total", outcome="refused") == metrics.sum("refusals_total", step="guard")
    assert 0 == metrics.sum("attempts_total")


def test_a_call_that_fails(face: Face, lab: LabProcess) -> None:
    """Is of the kind of its last verdict, and says why there was no further attempt."""
    metrics = Metrics()
    face.new(listeners=[metrics])
    lab.script(windows=[always("outage_503")])
    with pytest.raises(openai.InternalServerError):
        face.chat()
    assert 1 == metrics.sum("calls_total", outcome="overloaded") == metrics.sum("retries_stopped_total", why="stop")


def test_a_call_that_is_cancelled(lab: LabProcess) -> None:
    """Is abandoned, as is its attempt."""
    metrics = Metrics()
    asyncio.run(cancelled(lab, [metrics]))
    assert 1 == metrics.sum("calls_total", outcome="abandoned") == metrics.sum("attempts_total", verdict="abandoned")


def test_a_stream_that_is_closed_early(face: Face, lab: LabProcess) -> None:
    """Is abandoned."""
    metrics = Metrics()
    face.new(listeners=[metrics])
    lab.script(next=["stall;after=3"])
    stream = face.stream(**NO_THINKING)
    face.next(stream)
    face.close(stream)
    gc.collect()
    assert 1 == metrics.sum("calls_total", outcome="abandoned")


def test_answers_that_are_reused(face: Face, lab: LabProcess) -> None:
    """Kept ones and shared ones are outcomes of their own."""
    metrics = Metrics()
    client = face.new(policy=policy(cache=CachePolicy()), listeners=[metrics])
    metrics.watch(client.engine)
    face.chat(temperature=0)
    face.chat(temperature=0)
    assert 1 == metrics.sum("calls_total", outcome="hit") == metrics.sum("answers_reused_total", how="hit")
    assert 1 == metrics.sum("cache_misses_total") == metrics.sum("cache_entries")
    assert 0 < metrics.sum("saved_dollars_total", by="cache")
    if not face.is_async:
        asyncio.run(left(lab, [metrics], policy=policy(cache=CachePolicy())))
        assert 1 == metrics.sum("calls_total", outcome="joined")


def test_a_hedge(face: Face, lab: LabProcess) -> None:
    """Is counted when it is sent, and when it wins."""
    metrics = Metrics()
    options = policy(hedge=HedgePolicy(minimum_samples=10), attempt_timeout=1.0)
    client = face.new(policy=options, listeners=[metrics])
    metrics.watch(client.engine)
    for _ in range(10):
        face.chat()
    lab.script(next=["hang"])
    face.chat()
    assert 1 == metrics.sum("hedges_total") == metrics.sum("hedges_won_total")
    assert 11 == metrics.sum("calls_total", outcome="ok")


def test_a_label_has_no_more_values_than_allowed(face: Face) -> None:
    """Models are the callers' words: the third of two is "other", in counters and in what is watched."""
    metrics = Metrics(most_values=2)
    client = face.new(policy=policy(guard=None), listeners=[metrics])
    metrics.watch(client.engine)
    for model in ("deepseek-flash", "deepseek-v4-pro"):
        face.chat(model=model)
    for model in ("no-model", "another"):
        with pytest.raises(openai.BadRequestError):
            face.chat(model=model)
    assert {"deepseek-flash", "deepseek-v4-pro", "other"} == metrics.values("calls_total", "model")
    assert 2 == metrics.sum("calls_total", model="other") == metrics.sum("attempts_total", target="other")
    assert 4 == metrics.sum("circuit_state", state="closed")
    assert 2 == metrics.sum("circuit_state", state="closed", target="other")
    assert 0 == metrics.sum("gate_closed_seconds", target="other")


def test_a_model_that_is_no_name(face: Face) -> None:
    """A text is "other", and what is no Unicode can be exposed all the same."""
    metrics = Metrics()
    face.new(policy=policy(guard=None), listeners=[metrics])
    for model in ("x" * 101, "\ud800"):
        body = {"model": model, "messages": []}
        with pytest.raises(openai.BadRequestError):
            face.get(face.client.post("/chat/completions", content=json.dumps(body).encode(), cast_to=object))
    assert {"other", "?"} == metrics.values("calls_total", "model")
    assert generate_latest(metrics.registry)


def test_engines_that_share_metrics_are_not_mixed_up(face: Face, lab: LabProcess) -> None:
    """Their calls have the same numbers, and are in flight together."""
    metrics = Metrics()
    one = face.new(listeners=[metrics])
    stream = face.stream(model="deepseek-v4-pro")
    other = face.new(listeners=[metrics])
    face.chat()
    face.all(stream)
    assert one.engine is not other.engine
    for model in ("deepseek-flash", "deepseek-v4-pro"):
        assert 1 == metrics.sum("calls_total", model=model, outcome="ok")


def test_the_state_of_an_engine(face: Face, lab: LabProcess) -> None:
    """Its circuits, budget and places, under the name it was given; nothing of it when it is gone."""
    metrics = Metrics()
    breaking = policy(
        breaker=BreakerPolicy(minimum_throughput=1, break_duration=60.0, max_break_duration=60.0),
        retry=RetryPolicy(stop=tenacity.stop_after_attempt(1)),
    )
    client = face.new(policy=breaking)
    metrics.watch(client.engine, "shop")
    metrics.watch(client.engine, "shop")
    lab.script(windows=[always("outage_503")])
    with pytest.raises(openai.InternalServerError):
        face.chat()
    assert 1 == metrics.sum("circuit_state", engine="shop", state="open")
    assert 0 == metrics.sum("circuit_state", state="closed")
    assert 1 == metrics.sum("circuit_openings_total")
    assert 0 < metrics.sum("concurrency_limit", engine="shop")
    other = Engine()
    with pytest.raises(ConfigError, match="the name of no other engine"):
        metrics.watch(other, "shop")
    metrics.watch(other)
    assert {"shop", "1"} == metrics.values("calls_in_flight", "engine")
    del other
    gc.collect()
    assert {"shop"} == metrics.values("calls_in_flight", "engine")


def test_nothing_secret_is_exposed(face: Face, lab: LabProcess) -> None:
    """No prompt, answer, key or tenant."""
    metrics = Metrics()
    client = face.new(api_key=KEY, listeners=[metrics])
    metrics.watch(client.engine)
    lab.script(next=["outage_503"])
    face.chat(messages=ASKED["messages"], extra_headers={"x-resilient-tenant": TENANT})
    face.streamed(messages=ASKED["messages"])
    text = generate_latest(metrics.registry).decode()
    assert PROMPT not in text
    assert [] == [secret for secret in SECRETS if secret in text]


def test_a_listener_of_no_engine_counts_too() -> None:
    """As whoever tells events to plain listeners does."""
    metrics = Metrics()
    metrics(LocalDeclined(0.0, 1, "tools"))
    metrics(StreamContinued(0.0, 1, 2, "a"))
    metrics(AttemptStarted(0.0, 1, 1, "a"))
    assert 1 == metrics.sum("local_declines_total", why="tools") == metrics.sum("streams_continued_total", target="a")


@pytest.mark.parametrize("most", [0, -1, "100", 1.5])
def test_a_bound_that_is_none_is_refused(most: Any) -> None:
    """At once, with what is allowed."""
    with pytest.raises(ConfigError, match="a whole number of at least 1"):
        Metrics(most_values=most)


def test_a_registry_has_the_metrics_once() -> None:
    """The client says so, as it does of any metric."""
    metrics = Metrics()
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusMetrics(metrics.registry)
