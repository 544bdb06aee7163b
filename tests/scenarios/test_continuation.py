"""Streams that break off and are gone on with; the same on every driver."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import tenacity
from worlds import Caller, Run, Scenario, Seen, quick, run_everywhere

from deepseek_resilient import CachePolicy, HedgePolicy, RetryPolicy, RoutingPolicy, StreamPolicy, Upstream
from deepseek_resilient.core.messages import FailureKind

STREAM = StreamPolicy(silence=5.0, continuations=2)
POLICY = quick(stream=STREAM)
QUICK = RetryPolicy(wait=tenacity.wait_fixed(0.5))
ANSWER = ("The user says: hello I shall answer.", "Simulated answer to: hello")
PIECES = 11
"""Events with content in the simulated answer: 7 of reasoning, 4 of text."""


def said(seen: Seen) -> tuple[str, str]:
    """Reasoning and text that a caller got, of whole events of one answer."""
    thought = text = ""
    events = [line[6:] for line in seen.body.split(b"\n") if line.startswith(b"data: {")]
    assert 1 == len({json.loads(event)["id"] for event in events})
    for event in events:
        for choice in json.loads(event)["choices"]:
            thought += choice["delta"].get("reasoning_content") or ""
            text += choice["delta"].get("content") or ""
    return thought, text


def run_one(*faults: str, **caller: Any) -> Run:
    """One streamed call whose attempts meet these faults."""
    return run_everywhere(Scenario(callers=(Caller(stream=True, **caller),), next=faults, policy=POLICY))


@pytest.mark.parametrize("how", ["clean", "abort", "reset"])
@pytest.mark.parametrize("after", range(1, PIECES + 1))
def test_a_cut_after_any_piece_leaves_no_trace_in_the_text(after: int, how: str) -> None:
    """In the reasoning, between it and the text, in the text, at its end: nothing is lost or doubled."""
    run = run_one(f"cut;after={after};how={how}")
    assert (200, None, ANSWER) == (run.seen[0].status, run.seen[0].failure, said(run.seen[0]))
    assert 2 == run.served["attempts"]
    assert [True] == [asked["messages"][-1].get("prefix") for asked in run.asked[1:]]
    assert 1 == run.seen[0].body.count(b"[DONE]")


@pytest.mark.parametrize(
    "fault",
    ["cut;after=10;utf8=true", "stall;after=10", "insufficient_system_resource", "error_in_stream;after=10"],
)
def test_every_way_to_break_off(fault: str) -> None:
    """Silence, an error event and a lack of resources among them."""
    run = run_one(fault)
    assert (None, ANSWER) == (run.seen[0].failure, said(run.seen[0]))
    assert 2 == run.served["attempts"]


def test_the_rest_meets_faults_too() -> None:
    """What refuses it is tried again; what cuts it is gone on with from there."""
    run = run_one("cut;after=3", "outage_503", "cut;after=4", "blank_200")
    assert (None, ANSWER) == (run.seen[0].failure, said(run.seen[0]))
    assert 5 == run.served["attempts"]


def test_when_it_cannot_be_gone_on_with_the_error_has_what_came() -> None:
    """Of all parts."""
    run = run_one("cut;after=8", "cut;after=1", "cut;after=1", "ok")
    assert (FailureKind.CUT, "Simulated answer to:") == (run.seen[0].failure, run.seen[0].partial)
    assert 3 == run.served["attempts"]


def test_a_caller_that_leaves_around_the_seam() -> None:
    """While the cut is noticed, the next attempt waited for, on its way or in its midst: nothing is left behind."""
    whole = run_one("cut;after=8")
    times = sorted({float(line.split()[0]) for line in whole.trace})
    assert 6 <= len(times)
    for before, after in itertools.pairwise(times):
        leaves = Caller(stream=True, cancel_at=(before + after) / 2)
        callers = (leaves, Caller(at=1.0, stream=True))
        scenario = Scenario(callers=callers, next=("cut;after=8",), policy=POLICY, settings={"slots": 1})
        run = run_everywhere(scenario)
        assert run.seen[0].gone
        assert ANSWER == said(run.seen[1])
        assert 0 == run.served["in_flight"]
        (target,) = run.engine.statistics().targets.values()
        assert target.concurrency is not None
        assert 0 == target.concurrency.in_flight


def test_another_upstream_goes_on() -> None:
    """With its name of the model and at its beta address, at once."""
    upstreams = (
        Upstream("https://a", weight=100.0),
        Upstream("https://b", models={"deepseek-flash": "deepseek-v4-pro"}),
    )
    policy = quick(stream=STREAM, routing=RoutingPolicy(upstreams=upstreams))
    scenario = Scenario(
        callers=(Caller(stream=True),), policy=policy, next=("cut;after=10",), servers={"a": (), "b": ()}, seed=3
    )
    run = run_everywhere(scenario)
    assert ANSWER == said(run.seen[0])
    assert (1, 1) == (run.servers["a"]["attempts"], run.servers["b"]["attempts"])
    assert ["deepseek-flash", "deepseek-v4-pro"] == [asked["model"] for asked in run.asked]


@pytest.mark.parametrize("cancelled", [False, True])
def test_shared_streams_are_gone_on_with_for_all(cancelled: bool) -> None:
    """Who joined gets the same bytes, also when the one who began it leaves; such an answer is not kept."""
    policy = quick(stream=STREAM, cache=CachePolicy())
    fields = {"temperature": 0}
    callers = (
        Caller(stream=True, fields=fields, cancel_at=0.05 if cancelled else None),
        Caller(at=0.01, stream=True, fields=fields),
        Caller(at=5.0, stream=True, fields=fields),
    )
    run = run_everywhere(Scenario(callers=callers, policy=policy, next=("cut;after=9",)), in_turn=False)
    assert [ANSWER, ANSWER] == [said(seen) for seen in run.seen[1:]]
    if not cancelled:
        assert run.seen[0].body == run.seen[1].body
    assert 3 == run.served["attempts"]


@pytest.mark.parametrize("after", [1, 9])
def test_a_hedge_that_won_is_gone_on_with(after: int) -> None:
    """Though it is one attempt, also when it breaks off at once; the first one's place is given back."""
    policy = replace(POLICY, hedge=HedgePolicy(minimum_samples=10))
    known = tuple(Caller(at=2.0 * number, stream=True) for number in range(20))
    windows = (("slow_first_token;delay=20", 99.95, 0.1), (f"cut;after={after}", 100.06, 0.3))
    run = run_everywhere(
        Scenario(
            callers=(*known, Caller(at=100.0, stream=True)), policy=policy, windows=windows,
            settings={"slots": 1000, "service_time": 1.0},
        ),
        in_turn=False,
    )  # fmt: skip
    assert "second" == run.seen[-1].headers["x-resilient-hedge"]
    assert (None, ANSWER) == (run.seen[-1].failure, said(run.seen[-1]))
    ended = next(line for line in run.trace if "CallEnded(call=21," in line)
    assert "attempts=3, verdict=ok" in ended


def test_a_stale_answer_is_none_for_a_stream_that_has_begun() -> None:
    """Under load too the rest is asked for."""
    policy = quick(stream=STREAM, cache=CachePolicy(lifetime=1.0, stale_if_error=100.0), retry=QUICK)
    fields = {"temperature": 0}
    callers = (Caller(stream=True, fields=fields), Caller(at=10.0, stream=True, fields=fields))
    run = run_everywhere(Scenario(callers=callers, policy=policy, windows=(("cut;after=9", 9.9, 0.2),)), in_turn=False)
    assert (None, ANSWER) == (run.seen[1].failure, said(run.seen[1]))
