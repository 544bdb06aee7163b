"""More callers than places: who waits, who is refused, who goes first; the same on every driver."""

from __future__ import annotations

from typing import Any

import pytest
from worlds import DRIVERS, Caller, Run, Scenario, quick, run_everywhere

from deepseek_resilient import ConcurrencyPolicy, Policy, StreamPolicy

pytestmark = pytest.mark.no_cover  # long, and what they go through is covered by the unit tests

SERVER: dict[str, Any] = {"slots": 1, "service_time": 1.0, "queue_limit": 100}


def one_place(queue: int = 1000) -> Policy:
    """A policy that leaves room for one call at a time."""
    return quick(concurrency=ConcurrencyPolicy(initial=1, maximum=1, queue=queue))


def crowd(*callers: Caller, policy: Policy | None = None, **scenario: Any) -> Run:
    """The callers at a server that answers one call per second."""
    return run_everywhere(Scenario(callers=callers, policy=policy or one_place(), settings=SERVER, **scenario))


def answered_at(run: Run) -> list[float]:
    """When calls were answered well, in the order of their beginning."""
    ends = [line for line in run.trace if "CallEnded" in line and "verdict=ok" in line]
    return [float(line.split()[0]) for line in sorted(ends, key=lambda line: line.split()[1])]


def test_who_finds_no_place_waits_for_one() -> None:
    """Three calls at once are sent one after the other, and the waiting is told."""
    run = crowd(Caller(), Caller(), Caller())
    assert [1.0, 2.0, 3.0] == answered_at(run)
    assert ["0.000", "1.000", "2.000"] == [seen.headers["x-resilient-waited"] for seen in run.seen]
    waits = [line.partition(" ")[2] for line in run.trace if "StepWaited" in line]
    where = "target=virtual/deepseek-flash"
    assert [f"StepWaited(call={n}, step=concurrency, {where}, delay={n - 1}.000)" for n in (2, 3)] == waits


def test_who_is_given_up_while_the_server_is_at_it_keeps_the_place() -> None:
    """For as long again as it took, where no usual time is known. Nobody gives it back: who waits looks by itself."""
    run = crowd(Caller(cancel_at=0.5), Caller(at=0.2))
    assert [2.2] == answered_at(run)
    assert "1.000" == run.seen[1].headers["x-resilient-waited"]


def test_a_full_queue_refuses_at_once_with_the_time_in_which_it_empties() -> None:
    """One is in flight, one may wait; the third is told to come again, and nothing is sent for it."""
    run = crowd(Caller(), Caller(at=1.5), Caller(at=1.6), Caller(at=1.7), policy=one_place(queue=1))
    assert [200, 200, 200, 429] == [seen.status for seen in run.seen]
    refused = run.seen[3].headers
    assert ("concurrency", "1.000", "0") == (
        refused["x-resilient-refused-by"], refused["retry-after"], refused["x-resilient-attempts"],
    )  # fmt: skip
    assert b"as many calls wait already as may" in run.seen[3].body
    assert 3 == run.served["attempts"]


def test_a_queue_of_none_refuses_whoever_would_wait() -> None:
    """`queue=0`: a place or a refusal."""
    run = crowd(Caller(), Caller(at=0.1), policy=one_place(queue=0))
    assert [200, 429] == [seen.status for seen in run.seen]


def test_what_can_no_longer_be_answered_in_time_is_refused_before_it_is_sent() -> None:
    """Its deadline less the usual time of an answer, with some headroom: it is told early, not late."""
    run = crowd(Caller(), Caller(at=1.05), Caller(at=1.1, timeout=1.8))
    assert [200, 200, 429] == [seen.status for seen in run.seen]
    assert b"none came free in time" in run.seen[2].body
    refused = next(line for line in run.trace if "CallRefused(call=3" in line)
    assert 2.0 == float(refused.split()[0])
    assert 2 == run.served["attempts"]


def test_a_caller_who_goes_away_leaves_the_queue() -> None:
    """The next one gets the place as if it had never been there."""
    run = crowd(Caller(), Caller(at=0.1, cancel_at=0.5), Caller(at=0.2))
    assert [1.0, 2.0] == answered_at(run)
    assert 2 == run.served["attempts"]


def test_whoever_got_a_place_is_asked_at_the_gate_again() -> None:
    """The gate closed meanwhile: the place goes back, and the call waits there."""
    run = crowd(Caller(max_retries=0), Caller(at=0.1), next=("outage_503;delay=0.2;retry_after=2",))
    assert [503, 200] == [seen.status for seen in run.seen]
    steps = [line.partition("step=")[2].partition(",")[0] for line in run.trace if "StepWaited(call=2" in line]
    assert ["concurrency", "gate"] == steps


@pytest.mark.parametrize("driver", DRIVERS)  # at one instant, who was woken goes on in the driver's own order
def test_a_stream_keeps_its_place_until_its_end(driver: str) -> None:
    """Its first content is what latency is measured by; the server still writes."""
    settings = SERVER | {"answer_tokens": 10}
    callers = (Caller(stream=True), Caller())
    run = DRIVERS[driver](Scenario(callers=callers, policy=one_place(), settings=settings))
    (committed,) = (float(line.split()[0]) for line in run.trace if "StreamCommitted" in line)
    ended, began = (
        next(float(line.split()[0]) for line in run.trace if mark in line)
        for mark in ("AttemptEnded(call=1", "AttemptStarted(call=2")
    )
    assert committed < ended == began


def test_a_stated_limit_is_a_ceiling_at_once() -> None:
    """A 429 that names 2: from then on no more than two are in flight."""
    policy = quick(concurrency=ConcurrencyPolicy(initial=20))
    callers = tuple(Caller(at=0.01 * number, max_retries=0) for number in range(6))
    settings = SERVER | {"slots": 20, "concurrency_limit": 2}
    run = run_everywhere(Scenario(callers=callers, policy=policy, settings=settings))
    (target,) = run.engine.statistics().targets.values()
    assert target.concurrency is not None
    assert 2 == target.concurrency.limit


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_concurrency_policy_nobody_waits(stream: bool) -> None:
    """`concurrency=None`: all are sent at once, and no limit of a stream is missed."""
    policy = quick(concurrency=None, breaker=None, stream=StreamPolicy(silence=None))
    run = crowd(*(Caller(stream=stream) for _ in range(3)), policy=policy)
    assert [200, 200, 200] == [seen.status for seen in run.seen]
    assert 3 == sum("AttemptStarted" in line and line.startswith("0.0000") for line in run.trace)
    assert None is next(iter(run.engine.statistics().targets.values())).concurrency
