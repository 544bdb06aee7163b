"""A second attempt beside a late one; the same on every driver."""

from __future__ import annotations

from typing import Any

import pytest
from tenacity import stop_after_attempt
from worlds import Caller, Run, Scenario, quick, run_everywhere

from deepseek_resilient import BudgetPolicy, CachePolicy, HedgePolicy, Policy, RetryPolicy, RoutingPolicy, Upstream
from deepseek_resilient.core.hedge import HedgeStatistics

SERVER: dict[str, Any] = {"slots": 1000, "service_time": 1.0}
BEFORE = 20
"""Calls of which the quantile is learnt, one each 2 s."""
LATE = 100.0
"""When the call comes that is looked at."""
SLOW = ("slow_first_token;delay=20", LATE - 0.05, 0.1)
ALL_SLOW = ("slow_first_token;delay=20", LATE - 0.1, 1000.0)


def hedged(
    *callers: Caller, windows: tuple[tuple[str, float, float], ...] = (SLOW,), policy: Policy | None = None
) -> Run:
    """The callers at a server that all know, by a policy that hedges."""
    stream = callers[0].stream
    known = tuple(Caller(at=2.0 * number, stream=stream) for number in range(BEFORE))
    policy = policy or quick(hedge=HedgePolicy(minimum_samples=10))
    scenario = Scenario(callers=known + callers, policy=policy, settings=SERVER, windows=windows)
    run = run_everywhere(scenario, in_turn=False)
    assert 0 == run.engine.statistics().in_flight
    return run


def counted(run: Run) -> HedgeStatistics:
    """What the engine counted."""
    hedges = run.engine.statistics().hedges
    assert hedges is not None
    return hedges


@pytest.mark.parametrize("stream", [False, True])
def test_the_second_one_answers(stream: bool) -> None:
    """Long before the first would have; that one is cancelled, the reply tells it."""
    run = hedged(Caller(at=LATE, stream=stream))
    told = run.seen[-1].headers
    assert (200, "second", "2") == (run.seen[-1].status, told["x-resilient-hedge"], told["x-resilient-attempts"])
    assert BEFORE + 2 == run.served["attempts"]
    assert HedgeStatistics(sent=1, won=1, refused=0) == counted(run)
    ended = next(line for line in run.trace if f"CallEnded(call={BEFORE + 1}," in line)
    assert "attempts=2, verdict=ok" in ended
    assert float(ended.split()[0]) < LATE + 10
    assert 1 == len([line for line in run.trace if "AttemptAbandoned" in line])
    assert 1 == len([line for line in run.trace if "HedgeStarted" in line])


def test_a_first_one_that_is_refused_is_not_hidden() -> None:
    """A 400 is the caller's own fault, whatever a second attempt would say."""
    windows = (("status;status=400;delay=5", LATE - 0.05, 0.1), ("slow_first_token;delay=10", LATE + 0.06, 1000.0))
    run = hedged(Caller(at=LATE), windows=windows)
    assert 400 == run.seen[-1].status


def test_a_stream_is_that_of_one_attempt_only() -> None:
    """Byte for byte what the server sends to anybody; the other attempt is given up at its first content."""
    run = hedged(Caller(at=LATE, stream=True))
    assert 1 == run.seen[-1].body.count(b"data: [DONE]")
    assert run.seen[-1].body.startswith(b"data: ")
    given_up = next(line for line in run.trace if "AttemptAbandoned" in line)
    committed = next(line for line in run.trace if f"StreamCommitted(call={BEFORE + 1}," in line)
    assert given_up.split()[0] == committed.split()[0]


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_one_answers_after_all(stream: bool) -> None:
    """The second was slower still, and is cancelled."""
    windows = (("slow_first_token;delay=8", LATE - 0.05, 0.1), ("slow_first_token;delay=50", LATE + 0.06, 1000.0))
    run = hedged(Caller(at=LATE, stream=stream), windows=windows)
    told = run.seen[-1].headers
    assert ("first", "2") == (told["x-resilient-hedge"], told["x-resilient-attempts"])
    assert (1, 0) == (counted(run).sent, counted(run).won)


@pytest.mark.parametrize("fault", ["outage_503", "reset", "status;status=404"])
def test_a_second_one_that_fails_changes_nothing(fault: str) -> None:
    """The first is waited for; a 404 may be the other upstream's alone."""
    windows = (("slow_first_token;delay=8", LATE - 0.05, 0.1), (fault, LATE + 0.06, 1000.0))
    run = hedged(Caller(at=LATE), windows=windows)
    assert (200, "first") == (run.seen[-1].status, run.seen[-1].headers["x-resilient-hedge"])


def test_a_first_one_that_fails_waits_for_the_second() -> None:
    """Its 503 comes while the second is under way."""
    windows = (("outage_503;delay=5", LATE - 0.05, 0.1), ("slow_first_token;delay=10", LATE + 0.06, 1000.0))
    policy = quick(hedge=HedgePolicy(minimum_samples=10), retry=RetryPolicy(stop=stop_after_attempt(1)))
    run = hedged(Caller(at=LATE), windows=windows, policy=policy)
    assert (200, "second") == (run.seen[-1].status, run.seen[-1].headers["x-resilient-hedge"])


def test_both_may_fail() -> None:
    """The caller gets what the first came to."""
    run = hedged(Caller(at=LATE, max_retries=1), windows=(("outage_503;delay=5", LATE - 0.05, 1000.0),))
    assert (503, "first") == (run.seen[-1].status, run.seen[-1].headers["x-resilient-hedge"])
    assert (1, 0) == (counted(run).sent, counted(run).won)


def test_a_caller_that_leaves_takes_both_along() -> None:
    """Nothing stays behind."""
    run = hedged(Caller(at=LATE, cancel_at=LATE + 8), windows=(ALL_SLOW,))
    assert run.seen[-1].gone
    assert 2 == len([line for line in run.trace if "AttemptAbandoned" in line])


def test_none_for_a_call_without_retries_nor_for_what_is_not_known_yet() -> None:
    """`max_retries=0` means one request; another kind of call has a quantile of its own."""
    run = hedged(Caller(at=LATE, max_retries=0), Caller(at=LATE, fields={"model": "deepseek-v4-pro"}))
    assert BEFORE + 2 == run.served["attempts"]
    assert 0 == counted(run).sent


def test_when_everybody_is_late_only_some_are_hedged() -> None:
    """Ten, and a share of the calls; the rest is refused."""
    policy = quick(
        hedge=HedgePolicy(minimum_samples=10), budget=BudgetPolicy(reserve=1000.0), admission=None, concurrency=None
    )
    run = hedged(*(Caller(at=LATE + 0.01 * number) for number in range(60)), windows=(ALL_SLOW,), policy=policy)
    assert 10 <= counted(run).sent <= 10 + 0.03 * (BEFORE + 60)
    assert 60 == counted(run).sent + counted(run).refused


def test_the_retry_budget_pays() -> None:
    """An empty one means no hedge."""
    policy = quick(
        hedge=HedgePolicy(minimum_samples=10), budget=BudgetPolicy(ratio=0.0, reserve=0.0, per_second=0.0)
    )  # fmt: skip
    run = hedged(Caller(at=LATE), policy=policy)
    assert HedgeStatistics(sent=0, won=0, refused=1) == counted(run)


def test_a_call_that_waits_for_its_place_is_not_late() -> None:
    """The time in our own queue does not count, nor that between two attempts."""
    windows = (("throttle_429;retry_after=8", LATE - 0.05, 0.1),)
    run = hedged(Caller(at=LATE), windows=windows)
    assert 0 == counted(run).sent
    assert 200 == run.seen[-1].status


@pytest.mark.parametrize("stream", [False, True])
def test_a_shared_call_is_hedged_once(stream: bool) -> None:
    """The one that is made for all of them; what the second brought is kept like any other answer."""
    policy = quick(hedge=HedgePolicy(minimum_samples=10), cache=CachePolicy())
    times = (LATE, LATE + 0.01, LATE + 0.02, LATE + 60)
    callers = [Caller(at=at, stream=stream, fields={"temperature": 0}) for at in times]
    run = hedged(*callers, policy=policy)
    assert BEFORE + 2 == run.served["attempts"]
    assert 1 == len({seen.body for seen in run.seen[-4:]})
    assert [None, "joined", "joined", "hit"] == [seen.headers.get("x-resilient-cache") for seen in run.seen[-4:]]


def test_with_several_servers_the_second_goes_to_another() -> None:
    """The one that hangs is not asked twice."""
    upstreams = (Upstream("https://a"), Upstream("https://b"))
    policy = quick(hedge=HedgePolicy(minimum_samples=10), routing=RoutingPolicy(upstreams=upstreams))
    known = tuple(Caller(at=2.0 * number) for number in range(BEFORE))
    servers: dict[str, tuple[tuple[str, float, float], ...]] = {"a": (SLOW,), "b": (SLOW,)}
    scenario = Scenario(
        callers=(*known, Caller(at=LATE)), policy=policy, settings=SERVER, servers=servers
    )  # fmt: skip
    run = run_everywhere(scenario, in_turn=False)
    told = [line for line in run.trace if f"AttemptStarted(call={BEFORE + 1}," in line]
    assert 2 == len({line.partition("target=")[2] for line in told})
    assert "second" == run.seen[-1].headers["x-resilient-hedge"]
