"""core/retry.py: whether a failed attempt is repeated, in the order of its own list."""

from random import Random

import pytest
import tenacity

from deepseek_resilient import wire
from deepseek_resilient.backoff import wait_full_jitter
from deepseek_resilient.config import BudgetPolicy, GatePolicy, Policy, Priority, RetryPolicy
from deepseek_resilient.core.retry import next_delay
from deepseek_resilient.core.runtime import Call
from deepseek_resilient.core.verdict import Verdict, VerdictKind

from .driving import Bench, ask

BUSY = Verdict(VerdictKind.OVERLOADED, "busy", True, 503)
WAIT_2 = RetryPolicy(wait=tenacity.wait_fixed(2))


def decide(
    verdict=BUSY, *, retry=WAIT_2, gate=None, budget=None, attempts=1, timeout=600.0, max_retries=None, waited=0.0,
    tokens=None, **request,
):  # fmt: skip
    """What is decided after an attempt; and by how much the budget shrank."""
    policy = Policy(retry=retry, gate=gate or GatePolicy(), budget=budget or BudgetPolicy())
    bench = Bench(policy)
    runtime = bench.engine._runtime
    asked = ask(**request)
    call = Call(
        asked, wire.identify(asked.method, asked.path, asked.body)[0], number=1, started=bench.clock() - 1.0,
        deadline=None if timeout is None else bench.clock() + timeout, connect=None, max_retries=max_retries,
        priority=Priority.STANDARD, tenant="", fields=None,
    )  # fmt: skip
    call.attempts, call.waited = attempts, waited
    decision = next_delay(runtime, call, verdict)
    spent = policy.budget.reserve - runtime.budget.statistics().tokens
    assert float(isinstance(decision, float)) == spent  # paid exactly when it is granted
    return decision


def after(seconds):
    return BUSY._replace(retry_after=seconds)


def test_the_policys_wait_is_the_delay():
    """Without a Retry-After tenacity's `wait` says how long."""
    assert 2.0 == decide()
    assert 0.0 == decide(retry=RetryPolicy(wait=lambda state: -3))


def test_the_strategies_see_the_attempt():
    """`wait` and `stop` get the attempt, the times, the reason, the random and the coming wait."""
    seen = []

    def wait(state):
        seen.append((state.attempt_number, state.seconds_since_start, state.idle_for, state.reason, state.retry_after))
        return state.random.uniform(0, 0) + 1.5

    def stop(state):
        seen.append(state.upcoming_sleep)
        return False

    assert 1.5 == decide(retry=RetryPolicy(wait=wait, stop=stop), attempts=3, waited=0.5)
    assert [(3, 1.0, 0.5, "busy", None), 1.5] == seen


@pytest.mark.parametrize("retryable", [True, False])
def test_a_futile_verdict_is_not_repeated(retryable):
    """The caller's fault stays the caller's fault, whatever else holds."""
    assert (2.0 if retryable else "futile") == decide(BUSY._replace(retryable=retryable))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, 2.0),
        ({"replayable": False}, "unsafe"),
        ({"method": "POST", "path": "/files"}, "unsafe"),
        ({"method": "DELETE", "path": "/files/1"}, "unsafe"),
        ({"method": "GET", "path": "/models"}, 2.0),
        ({"method": "HEAD", "path": "/models"}, 2.0),
        ({"method": "OPTIONS", "path": "/models"}, 2.0),
        ({"method": "GET", "path": "/models", "replayable": False}, "unsafe"),
    ],
)
def test_only_what_is_safe_is_repeated(request_, expected):
    """An inference call, or a method that changes nothing; and a body that can be sent twice."""
    assert expected == decide(**request_)


def test_a_retry_after_goes_before_the_policys_wait():
    """At least as long as the server wishes, plus a spread of the gate's size."""
    gate = GatePolicy(spread=0.5, min_spread=0.25)
    waits = [decide(after(4.0), gate=gate), decide(after(0.0), gate=gate)]
    random = Random(1)
    assert [4.0 + random.uniform(0, 2.0), Random(1).uniform(0, 0.25)] == waits


@pytest.mark.parametrize(("seconds", "expected"), [(3.0, float), (3.001, "retry_after")])
def test_a_retry_after_beyond_the_limit_ends_the_call(seconds, expected):
    """Exactly `max_retry_after` is sat out, more is not."""
    got = decide(after(seconds), retry=RetryPolicy(max_retry_after=3.0))
    assert expected == (float if isinstance(got, float) else got)


@pytest.mark.parametrize(
    ("attempts", "max_retries", "expected"),
    [(5, None, 2.0), (6, None, "stop"), (1, 0, "stop"), (1, 1, 2.0), (2, 1, "stop"), (9, 9, 2.0), (10, 9, "stop")],
)
def test_stop(attempts, max_retries, expected):
    """The policy's `stop` after six attempts, or the call's own number of retries instead of it."""
    assert expected == decide(attempts=attempts, max_retries=max_retries)


@pytest.mark.parametrize(("timeout", "expected"), [(2.5, 2.0), (2.0, "deadline"), (1.0, "deadline"), (None, 2.0)])
def test_no_wait_is_begun_that_the_deadline_would_not_outlive(timeout, expected):
    """A wait that ends at the deadline is too long already."""
    assert expected == decide(timeout=timeout)


def test_the_budget_is_asked_last():
    """An empty budget says no; and no other no costs a token (`decide` checks that for every test here)."""
    assert "budget" == decide(budget=BudgetPolicy(reserve=0.0))
    assert "deadline" == decide(budget=BudgetPolicy(reserve=0.0), timeout=1.0)
    assert "stop" == decide(budget=BudgetPolicy(reserve=0.0), attempts=6)


def test_of_several_reasons_the_first_of_the_list_is_told():
    """futile, unsafe, retry_after, stop, deadline: in this order."""
    late = {"timeout": 0.5, "attempts": 9}
    assert "futile" == decide(after(999.0)._replace(retryable=False), replayable=False, **late)
    assert "unsafe" == decide(after(999.0), replayable=False, **late)
    assert "retry_after" == decide(after(999.0), **late)
    assert "stop" == decide(after(1.0), **late)
    assert "deadline" == decide(after(1.0), timeout=0.5)


def test_the_default_is_full_jitter_of_the_engines_random():
    """Seeded alike, it waits alike."""
    assert Random(1).uniform(0, 1.0) == decide(retry=RetryPolicy(wait=wait_full_jitter()), attempts=2)
