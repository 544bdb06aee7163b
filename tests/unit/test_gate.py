"""core/gate.py: who asks to be left alone is left alone by everybody."""

import threading
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deepseek_resilient.config import GatePolicy
from deepseek_resilient.core.gate import Closed, Gate, GateStatistics


def gate(seed=1, **policy):
    return Gate(GatePolicy(**policy), threading.RLock(), Random(seed))


class GateMachine(RuleBasedStateMachine):
    """Any closings and checks, beside a list of all closings."""

    @initialize(spread=st.floats(0, 2), min_spread=st.floats(0, 2), start=st.floats(0, 1000))
    def begin(self, spread, min_spread, start):
        self.policy = GatePolicy(spread=spread, min_spread=min_spread)
        self.gate = Gate(self.policy, threading.RLock(), Random(3))
        self.now = start
        self.opens_at = self.closed_at = 0.0
        self.why = None
        self.closings = 0

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def pass_time_to_the_opening(self):
        self.now = max(self.now, self.opens_at)

    @rule(
        seconds=st.floats(-2, 20), why=st.tuples(st.sampled_from([429, 503]), st.text("ab", max_size=3), st.booleans())
    )
    def close(self, seconds, why):
        status, reason, patient = why
        later = seconds > 0 and self.now + seconds > self.opens_at
        assert later is self.gate.close(self.now, seconds, status=status, reason=reason, patient=patient)
        if later:
            if self.now >= self.opens_at:
                self.closings += 1
                self.closed_at = self.now
            self.opens_at = self.now + seconds
            self.why = why

    @rule()
    def check(self):
        closed = self.gate.check(self.now)
        if self.now >= self.opens_at:
            assert closed is None
        else:
            remaining = self.opens_at - self.now
            spread = max(self.policy.min_spread, self.policy.spread * (self.opens_at - self.closed_at))
            assert (remaining, *self.why) == (closed.remaining, closed.status, closed.reason, closed.patient)
            assert remaining <= closed.delay <= remaining + spread
            assert self.gate.check(self.now + closed.delay + 1e-9) is None

    @invariant()
    def statistics_agree(self):
        left = max(self.opens_at - self.now, 0.0)
        reason = self.why[1] if left else ""
        assert GateStatistics(left, reason, self.closings) == self.gate.statistics(self.now)


TestGate = GateMachine.TestCase


def test_a_new_gate_is_open():
    """Nobody is refused before a target has said anything."""
    assert gate().check(0.0) is None
    assert GateStatistics(0.0, "", 0) == gate().statistics(0.0)


def test_it_is_closed_up_to_the_opening_and_not_after():
    """Closed just before `now + seconds`, open at it."""
    it = gate(min_spread=0.0, spread=0.0)
    assert it.close(10.0, 2.0, status=429, reason="rate_limited")
    assert Closed(2.0, 2.0, 429, "rate_limited", True) == it.check(10.0)
    assert Closed(0.125, 0.125, 429, "rate_limited", True) == it.check(11.875)
    assert it.check(12.0) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_closes_nothing(seconds):
    """A Retry-After of 0 changes nothing."""
    it = gate()
    assert not it.close(10.0, seconds, status=429, reason="rate_limited")
    assert GateStatistics(0.0, "", 0) == it.statistics(9.0)


def test_a_shorter_or_equal_wish_does_not_open_it_earlier():
    """The longest wish counts, and keeps its reason."""
    it = gate()
    assert it.close(0.0, 10.0, status=402, reason="balance_exhausted", patient=False)
    assert not it.close(1.0, 2.0, status=429, reason="rate_limited")
    assert not it.close(1.0, 9.0, status=429, reason="rate_limited")
    assert (402, "balance_exhausted", False, 9.0) == (
        it.check(1.0).status, it.check(1.0).reason, it.check(1.0).patient, it.check(1.0).remaining,
    )  # fmt: skip


def test_a_longer_wish_extends_the_same_closing():
    """An extension is no second closing, and the spread is that of the whole time."""
    it = gate(spread=1.0, min_spread=0.0)
    it.close(0.0, 4.0, status=429, reason="first")
    assert it.close(3.0, 5.0, status=503, reason="second")
    assert GateStatistics(5.0, "second", 1) == it.statistics(3.0)
    delays = [it.check(7.0).delay for _ in range(400)]
    assert 1.0 <= min(delays) < 1.2
    assert 8.8 < max(delays) <= 9.0


def test_a_closing_after_the_opening_is_a_new_one():
    """Closed at the very moment it opens, it begins a new closing with a spread of its own."""
    it = gate(spread=1.0, min_spread=0.0)
    it.close(0.0, 4.0, status=429, reason="first")
    it.close(4.0, 1.0, status=429, reason="second")
    assert 2 == it.statistics(4.0).closings
    assert 1.9 < max(it.check(4.0).delay for _ in range(400)) <= 2.0


def test_waiting_calls_are_released_with_a_spread():
    """The delays of many waiting calls fill the spread evenly, none before the opening."""
    it = gate(spread=0.1, min_spread=0.5)
    it.close(0.0, 20.0, status=429, reason="rate_limited")
    delays = sorted(it.check(19.0).delay for _ in range(1000))
    assert 1.0 <= delays[0] < 1.02
    assert 1.9 < delays[500] < 2.1
    assert 2.98 < delays[-1] <= 3.0


def test_the_spread_has_a_smallest_length():
    """After a short closing the release still takes `min_spread` seconds."""
    it = gate(spread=0.1, min_spread=0.5)
    it.close(0.0, 1.0, status=429, reason="rate_limited")
    assert 1.45 < max(it.check(0.0).delay for _ in range(400)) <= 1.5
