"""core/budget.py: the retry budget against exact arithmetic."""

import threading
from fractions import Fraction

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deepseek_resilient.config import BudgetPolicy
from deepseek_resilient.core.budget import BudgetStatistics, RetryBudget

TINY = Fraction(1, 10**9)


def budget(now=0.0, **policy):
    return RetryBudget(BudgetPolicy(**policy), threading.RLock(), now)


class BudgetMachine(RuleBasedStateMachine):
    """Any calls, retries and pauses, beside a bucket in exact fractions."""

    @initialize(ratio=st.floats(0, 1), reserve=st.floats(0, 20), per_second=st.floats(0, 5), start=st.floats(0, 1e6))
    def begin(self, ratio, reserve, per_second, start):
        self.policy = BudgetPolicy(ratio=ratio, reserve=reserve, per_second=per_second)
        self.bucket = RetryBudget(self.policy, threading.RLock(), start)
        self.start = self.now = self.paid_until = start
        self.tokens = Fraction(reserve)
        self.calls = self.granted = self.refused = 0

    @rule(calls=st.integers(1, 30))
    def deposit(self, calls):
        for _ in range(calls):
            self.bucket.deposit()
            self.tokens = min(self.tokens + Fraction(self.policy.ratio), Fraction(self.policy.reserve))
        self.calls += calls

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds):
        self.now += seconds

    @rule(late=st.one_of(st.just(0.0), st.floats(0, 2)))
    def withdraw(self, late):
        now = self.now - late  # another thread may have read the clock earlier
        gained = Fraction(self.policy.per_second) * max(Fraction(now) - Fraction(self.paid_until), 0)
        self.paid_until = max(self.paid_until, now)
        self.tokens = min(self.tokens + gained, Fraction(self.policy.reserve))
        got = self.bucket.try_withdraw(now)
        if self.tokens >= 1 + TINY:
            assert got is True
        elif self.tokens < 1 - TINY:
            assert got is False
        self.tokens -= got
        self.granted += got
        self.refused += not got

    @invariant()
    def never_more_than_the_formula(self):
        policy = self.policy
        most = (
            Fraction(policy.reserve)
            + Fraction(policy.ratio) * self.calls
            + Fraction(policy.per_second) * (Fraction(self.now) - Fraction(self.start))
        )
        assert self.granted <= most + TINY

    @invariant()
    def statistics_agree(self):
        seen = self.bucket.statistics()
        assert (self.granted, self.refused) == (seen.granted, seen.refused)
        assert abs(Fraction(seen.tokens) - self.tokens) < TINY
        assert -TINY <= seen.tokens <= self.policy.reserve


TestBudget = BudgetMachine.TestCase


def test_it_starts_full_and_says_so():
    """The reserve is there from the first call on."""
    bucket = budget(reserve=2.0, ratio=0.5, per_second=0.25)
    assert BudgetStatistics(2.0, 0, 0) == bucket.statistics()
    assert [True, True, False] == [bucket.try_withdraw(0.0) for _ in range(3)]
    assert BudgetStatistics(0.0, 2, 1) == bucket.statistics()


@pytest.mark.parametrize(("tokens", "granted"), [(0.875, False), (1.0, True), (1.125, True)])
def test_exactly_one_token_is_enough(tokens, granted):
    """A retry costs 1, not more and not less."""
    bucket = budget(reserve=tokens, ratio=0.0, per_second=0.0)
    assert granted is bucket.try_withdraw(0.0)
    assert tokens - granted == bucket.statistics().tokens


def test_calls_and_seconds_refill_it():
    """Each call adds `ratio`, each second `per_second`."""
    bucket = budget(100.0, reserve=1.0, ratio=0.25, per_second=0.125)
    assert bucket.try_withdraw(100.0)
    for _ in range(3):
        bucket.deposit()
    assert not bucket.try_withdraw(101.0)
    assert 0.875 == bucket.statistics().tokens
    assert bucket.try_withdraw(102.0)


def test_nothing_is_saved_above_the_reserve():
    """A quiet night does not pay for a storm in the morning."""
    bucket = budget(reserve=2.0, ratio=1.0, per_second=1.0)
    for _ in range(50):
        bucket.deposit()
    assert 2.0 == bucket.statistics().tokens
    assert [True, True, False] == [bucket.try_withdraw(1e6) for _ in range(3)]


def test_a_clock_read_before_another_threads_gives_nothing_twice():
    """A withdrawal with an older `now` neither gains nor loses time."""
    bucket = budget(reserve=2.0, ratio=0.0, per_second=1.0)
    assert [True, True] == [bucket.try_withdraw(0.0), bucket.try_withdraw(0.0)]
    assert bucket.try_withdraw(1.0)
    assert not bucket.try_withdraw(0.0)
    assert not bucket.try_withdraw(1.0)
    assert bucket.try_withdraw(2.0)
