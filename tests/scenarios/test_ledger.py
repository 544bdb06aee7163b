"""What calls cost, in virtual time and the same on every driver: the ledger and its events are in the equal traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import tenacity
from worlds import Caller, Run, Scenario, quick, run_everywhere

from deepseek_resilient import (
    CachePolicy,
    HedgePolicy,
    LedgerPolicy,
    Price,
    RetryPolicy,
    RoutingPolicy,
    Upstream,
)

if TYPE_CHECKING:
    from deepseek_resilient.core.bill import CallRecord

SERVER: dict[str, Any] = {"slots": 1000, "service_time": 1.0}
STATED = {"stream_options": {"include_usage": True}}
PRICED = LedgerPolicy(prices=(Price("deepseek-flash", hit=1, miss=1, output=1),))
"""A dollar for a million tokens of any kind."""


def written(run: Run) -> list[tuple[str, str]]:
    """Verdict and `billed` of every attempt, in the order of the calls."""
    return [(each.verdict, each.billed) for record in run.engine.ledger.calls() for each in record.attempts]


def last(run: Run) -> CallRecord:
    """The call that began last."""
    return run.engine.ledger.calls()[-1]


def charged(run: Run) -> int:
    """How many attempts were told to have been charged."""
    return len([line for line in run.trace if "AttemptCharged(" in line])


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_after_a_503(stream: bool) -> None:
    """The first is not billed; the reply has the call's number and, where it is whole, what it cost."""
    fields = STATED if stream else {}
    run = run_everywhere(
        Scenario((Caller(stream=stream, fields=fields),), ("outage_503",), policy=quick(ledger=PRICED))
    )
    assert [("overloaded", "no"), ("ok", "yes")] == written(run)
    usage = last(run).usage
    assert usage is not None
    assert 0 < usage.total == round(last(run).cost * 1e6)
    head = run.seen[0].headers
    assert "1" == head["x-resilient-call"]
    assert (None if stream else f"{last(run).cost:.6f}") == head.get("x-resilient-cost")
    assert last(run).attempts[1].waited > 0
    totals = run.engine.ledger.totals()
    assert (0.0, 0.0) == (totals.extra_last_day, totals.wasted_on_failures)
    assert 2 == charged(run)


def test_a_time_limit() -> None:
    """The first may be billed, and is what the retry is extra by."""
    policy = quick(ledger=PRICED, attempt_timeout=5.0)
    run = run_everywhere(Scenario((Caller(),), ("hang",), policy=policy))
    assert [("timeout", "maybe"), ("ok", "yes")] == written(run)
    late, good = last(run).attempts
    assert (5.0, True, False) == (late.spent, late.estimated, good.estimated)
    totals = run.engine.ledger.totals()
    assert late.cost == totals.wasted_on_failures == totals.estimated
    assert pytest.approx(min(late.cost or 0.0, good.cost or 0.0)) == totals.extra_last_day


def test_no_money_no_retry() -> None:
    """After a time limit; after a 503 it needs none."""
    policy = quick(ledger=LedgerPolicy(extra_per_minute=0.0), attempt_timeout=5.0)
    run = run_everywhere(Scenario((Caller(),), ("hang",), policy=policy))
    assert [("timeout", "maybe")] == written(run)
    assert "why=money" in next(line for line in run.trace if "RetryStopped" in line)
    run = run_everywhere(Scenario((Caller(),), ("outage_503",), policy=policy))
    assert 200 == run.seen[0].status


@pytest.mark.parametrize("stream", [False, True])
def test_the_loser_of_a_hedge(stream: bool) -> None:
    """It is billed for what it may have come to, and that is the waste of hedging."""
    callers = tuple(Caller(at=2.0 * number, stream=stream) for number in range(20))
    policy = quick(hedge=HedgePolicy(minimum_samples=10), ledger=PRICED)
    windows = (("slow_first_token;delay=20", 99.95, 0.1),)
    late = Caller(at=100.0, stream=stream)
    scenario = Scenario((*callers, late), windows=windows, policy=policy, settings=SERVER)
    run = run_everywhere(scenario, in_turn=False)
    first, second = last(run).attempts
    assert (True, False, "abandoned", "maybe") == (first.lost, first.hedge, first.verdict, first.billed)
    assert (False, True, "ok", "yes") == (second.lost, second.hedge, second.verdict, second.billed)
    totals = run.engine.ledger.totals()
    assert 0 < (first.cost or 0.0) == totals.wasted_on_hedges
    assert (21, 22, 0.0) == (totals.calls, totals.attempts, totals.abandoned)
    assert pytest.approx(min(first.cost or 0.0, second.cost or 0.0)) == totals.extra_last_day
    assert str(last(run).number) == run.seen[-1].headers["x-resilient-call"]


def test_no_money_no_hedge() -> None:
    """The late one is waited for."""
    callers = tuple(Caller(at=2.0 * number) for number in range(20))
    policy = quick(hedge=HedgePolicy(minimum_samples=10), ledger=LedgerPolicy(extra_per_day=0.0))
    windows = (("slow_first_token;delay=20", 99.95, 0.1),)
    scenario = Scenario((*callers, Caller(at=100.0)), windows=windows, policy=policy, settings=SERVER)
    run = run_everywhere(scenario, in_turn=False)
    assert 1 == len(last(run).attempts)
    assert (200, 1) == (run.seen[-1].status, run.engine.ledger.totals().extra_refused)


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_cache_and_sharing_saved(stream: bool) -> None:
    """One asks, one joins, one is given what was kept: one answer is paid for, two are saved."""
    fields = {"temperature": 0} | (STATED if stream else {})
    callers = tuple(Caller(at=at, stream=stream, fields=fields) for at in (0.0, 0.5, 60.0))
    policy = quick(cache=CachePolicy(), ledger=PRICED)
    run = run_everywhere(Scenario(callers, policy=policy, settings=SERVER), in_turn=False)
    asked, joined, hit = run.engine.ledger.calls()
    assert 0 < asked.cost == joined.saved == hit.saved
    assert ["", "joined", "hit"] == [record.source for record in (asked, joined, hit)]
    assert [1, 0, 0] == [len(record.attempts) for record in (asked, joined, hit)]
    totals = run.engine.ledger.totals()
    assert (asked.cost, asked.cost, asked.cost) == (totals.spent, totals.saved_by_sharing, totals.saved_by_cache)
    assert ["1", "2", "3"] == [seen.headers["x-resilient-call"] for seen in run.seen]


def test_what_joins_a_failure_saves_nothing() -> None:
    """Nobody has paid for an answer."""
    callers = tuple(Caller(at=at, fields={"temperature": 0}, max_retries=0) for at in (0.0, 0.5))
    windows = (("outage_503;delay=3", 0.0, 10.0),)
    policy = quick(cache=CachePolicy(), ledger=PRICED)
    run = run_everywhere(Scenario(callers, windows=windows, policy=policy, settings=SERVER), in_turn=False)
    assert [503, 503] == [seen.status for seen in run.seen]
    assert 0.0 == run.engine.ledger.totals().saved_by_sharing


def test_an_answer_that_is_fetched_for_nobody_is_a_call_too() -> None:
    """The one in the background, while the old one is handed over: it costs, and it ends."""
    callers = (Caller(fields={"temperature": 0}), Caller(at=60.0, fields={"temperature": 0}))
    policy = quick(cache=CachePolicy(lifetime=30.0, stale_while_revalidate=60.0), ledger=PRICED)
    run = run_everywhere(Scenario(callers, policy=policy, settings=SERVER), in_turn=False)
    asked, stale, fetched = run.engine.ledger.calls()
    assert ("", "stale", "") == (asked.source, stale.source, fetched.source)
    assert (0, 1, True) == (len(stale.attempts), len(fetched.attempts), fetched.duration > 0.5)
    assert asked.cost == stale.saved == fetched.cost
    assert ["1", "2"] == [seen.headers["x-resilient-call"] for seen in run.seen]


def test_without_a_ledger_answers_are_kept_all_the_same() -> None:
    """And fetched in the background; nobody counts."""
    callers = (Caller(fields={"temperature": 0}), Caller(at=60.0, fields={"temperature": 0}))
    policy = quick(cache=CachePolicy(lifetime=30.0, stale_while_revalidate=60.0), ledger=None)
    run = run_everywhere(Scenario(callers, policy=policy, settings=SERVER), in_turn=False)
    assert [None, "stale"] == [seen.headers.get("x-resilient-cache") for seen in run.seen]
    assert (2, 0) == (run.served["attempts"], charged(run))


@pytest.mark.parametrize("cancel_at", [0.001, 0.5])
def test_a_stream_whose_caller_goes_away(cancel_at: float) -> None:
    """Before its content, or in the middle of it: it is billed for the pieces that came."""
    caller = Caller(stream=True, cancel_at=cancel_at, fields={"messages": [{"role": "user", "content": "hello " * 99}]})
    run = run_everywhere(Scenario((caller,), policy=quick(ledger=PRICED), settings=SERVER))
    (charge,) = last(run).attempts
    assert (True, "abandoned", "maybe", True) == (run.seen[0].gone, charge.verdict, charge.billed, charge.estimated)
    assert charge.usage is not None
    pieces = run.seen[0].body.count(b'content":"')
    assert max(pieces - 1, 0) == charge.usage.output  # the first says "", which is no content
    assert (cancel_at == 0.5) is (charge.usage.output > 0)
    totals = run.engine.ledger.totals()
    assert (charge.cost, charge.cost) == (totals.abandoned, totals.spent)


@pytest.mark.parametrize(("prices", "extra"), [((1.0, 3.0), True), ((3.0, 1.0), False)])
def test_a_fallback_to_a_dearer_upstream(prices: tuple[float, float], extra: bool) -> None:
    """It is extra by what it is dearer; a cheaper one is none. Without money the dearer one is not asked."""
    upstreams = tuple(
        Upstream(f"https://{name}", name=name, price=price, weight=weight)
        for name, price, weight in zip("ab", prices, (1000, 0.001), strict=True)
    )
    policy = quick(routing=RoutingPolicy(upstreams=upstreams), retry=RetryPolicy(stop=tenacity.stop_after_attempt(3)))
    servers: dict[str, tuple[tuple[str, float, float], ...]] = {"a": (("outage_503", 0.0, 0.1),), "b": ()}
    run = run_everywhere(Scenario((Caller(),), servers=servers, policy=policy, settings=SERVER))
    assert [("overloaded", "no"), ("ok", "yes")] == written(run)
    answer = last(run).attempts[1]
    assert answer.target.startswith("b")
    usage = answer.usage
    assert usage is not None
    assert pytest.approx(prices[1] * usage.total / 1e6) == answer.cost
    expected = (prices[1] - prices[0]) * usage.total / 1e6 if extra else 0.0
    assert pytest.approx(expected) == run.engine.ledger.totals().extra_last_day
    strict = quick(routing=policy.routing, retry=policy.retry, ledger=LedgerPolicy(extra_per_day=0.0))
    run = run_everywhere(Scenario((Caller(),), servers=servers, policy=strict, settings=SERVER))
    assert 200 == run.seen[0].status
    assert ("a" if extra else "b") == last(run).attempts[1].target[0]
    assert 0.0 == run.engine.ledger.totals().extra_last_day
