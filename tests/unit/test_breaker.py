"""core/breaker.py: the circuit, its window, its probes, and its life with pybreaker."""

import contextlib
import logging
import math
import threading
from random import Random

import pybreaker
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepseek_resilient.config import BreakerPolicy
from deepseek_resilient.core.breaker import Breaker, BreakerStatistics, Permit, make_circuit
from deepseek_resilient.core.verdict import FAILURES, VerdictKind

CLOSED, OPEN, HALF_OPEN = pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN
OK, FAULT, CALLER_FAULT = VerdictKind.OK, VerdictKind.FAULT, VerdictKind.CALLER_FAULT


class Told(pybreaker.CircuitBreakerListener):
    """A user's listener that writes down what it is told."""

    def __init__(self):
        self.changes = []

    def state_change(self, cb, old_state, new_state):
        self.changes.append((old_state.name, new_state.name))


class Circuit:
    """A breaker with everything around it."""

    def __init__(self, *, seed=1, listeners=(), **policy):
        self.policy = BreakerPolicy(**policy)
        self.storage = pybreaker.CircuitMemoryStorage(CLOSED)
        self.told = Told()
        self.circuit = make_circuit("target", (*listeners, self.told), self.storage)
        self.changes = []
        self.breaker = Breaker(
            self.policy, threading.RLock(), Random(seed), self.circuit, lambda *change: self.changes.append(change)
        )

    def attempt(self, now, kind, duration=0.0):
        """One attempt from permit to verdict."""
        permit = self.breaker.try_acquire(now)
        assert isinstance(permit, Permit), permit
        self.breaker.record(permit, now, kind, duration)
        return permit

    def state(self, now=0.0):
        return self.breaker.statistics(now).state


class BreakerMachine(RuleBasedStateMachine):
    """Any traffic, time and meddling, beside a naive model: a list of verdicts and a few numbers."""

    @initialize(
        policy=st.builds(
            dict,
            failure_ratio=st.sampled_from([0.25, 0.5, 1.0]),
            minimum_throughput=st.integers(1, 5),
            sampling_duration=st.sampled_from([2.5, 10.0]),
            slow_call_duration=st.sampled_from([None, 1.0]),
            break_duration=st.sampled_from([0.5, 2.0]),
            break_growth=st.sampled_from([1.0, 2.0]),
            max_break_duration=st.sampled_from([2.0, 8.0]),
            jitter=st.sampled_from([0.0, 0.25]),
            probes=st.integers(1, 3),
            probe_interval=st.sampled_from([0.0, 0.5, 2.0]),
            probe_successes=st.integers(1, 3),
        )
    )
    def begin(self, policy):
        self.it = Circuit(**policy)
        self.policy = self.it.policy
        self.now = 50.0
        self.state = self.stored = CLOSED
        self.generation = 0
        self.window = []
        self.held = []
        self.lively = set()
        self.opens_at = self.next_probe = 0.0
        self.next_break = self.policy.break_duration
        self.good_probes = self.openings = 0

    # -- the model --

    def slices(self):
        """The verdicts of the last ten slices, the current one included."""
        width = self.policy.sampling_duration / 10
        oldest = int(self.now / width) - 9
        return [failed for at, failed in self.window if int(at / width) >= oldest]

    def probing(self, *, patient=True):
        """Probes under way; only those younger than the longest break take a place."""
        youngest = self.now - self.policy.max_break_duration if patient else -math.inf
        return sum(
            bool(permit.probe) and permit.generation == self.generation and since > youngest
            for permit, since in self.held
            if permit.probe not in self.lively
        )

    def enter(self, state, rested=0.0):
        at, old, new, break_for = self.it.changes[-1]
        assert (self.now, self.state, state) == (at, old, new)
        self.state = self.stored = state
        self.generation += 1
        self.next_probe = 0.0
        self.good_probes = 0
        if state == OPEN:
            due = max(self.next_break - rested, self.policy.break_duration)
            assert due * (1 - self.policy.jitter) <= break_for <= due * (1 + self.policy.jitter)
            self.opens_at = self.now + break_for
            self.next_break = min(self.next_break * self.policy.break_growth, self.policy.max_break_duration)
            self.openings += 1
        else:
            assert 0.0 == break_for
            if state == CLOSED:
                self.window = []

    @contextlib.contextmanager
    def expect(self, changes):
        """Exactly these changes happen inside the `with`, and pybreaker tells the user's listener of each."""
        seen, heard = len(self.it.changes), len(self.it.told.changes)
        yield
        assert changes == [change[2] for change in self.it.changes[seen:]]
        assert changes == [new for _, new in self.it.told.changes[heard:]]

    # -- traffic --

    @rule(seconds=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 8.0, 30.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def acquire(self):
        before = len(self.it.changes)
        got = self.it.breaker.try_acquire(self.now)
        news = [change[2] for change in self.it.changes[before:]]
        if self.stored != self.state:  # somebody else's change is noticed first
            assert self.stored == news.pop(0)
            self.it.changes, later = self.it.changes[: before + 1], self.it.changes[before + 1 :]
            self.enter(self.stored)
            self.it.changes += later
        if self.state == OPEN and self.now >= self.opens_at:
            assert [HALF_OPEN] == news
            self.enter(HALF_OPEN)
        else:
            assert [] == news
        if self.state == CLOSED:
            assert Permit(self.generation) == got
        elif self.state == OPEN:
            assert self.opens_at - self.now == got
        elif self.probing() < self.policy.probes and self.now >= self.next_probe:
            assert isinstance(got, Permit)
            assert self.generation == got.generation
            assert got.probe > 0
            self.next_probe = self.now + self.policy.probe_interval
        else:
            assert isinstance(got, float)
            assert max(self.next_probe - self.now, self.policy.probe_interval, 0.01) == got
        if isinstance(got, Permit):
            self.held.append((got, self.now))
        assert self.probing() <= self.policy.probes

    @precondition(lambda self: self.held)
    @rule(
        which=st.integers(0, 100),
        kind=st.sampled_from(list(VerdictKind)),
        duration=st.sampled_from([0.0, 1.0, 1.5]),
        answered=st.booleans(),
    )
    def record(self, which, kind, duration, answered=False):
        permit, began = self.held.pop(which % len(self.held))
        slow = kind is OK and self.policy.slow_call_duration is not None and duration > self.policy.slow_call_duration
        failed = kind in FAILURES or slow
        change = []
        if permit.generation == self.generation and permit.probe not in self.lively:
            if permit.probe:
                if failed:
                    change = [OPEN]
                elif kind is OK or answered:
                    self.good_probes += 1
                    change = [CLOSED] * (self.good_probes == self.policy.probe_successes)
            elif failed or kind is OK:
                self.window.append((self.now, failed))
                seen = self.slices()
                enough = len(seen) >= self.policy.minimum_throughput
                if failed and enough and sum(seen) / len(seen) >= self.policy.failure_ratio:
                    change = [OPEN]
                elif not failed:
                    self.next_break = self.policy.break_duration
        with self.expect(change):
            self.it.breaker.record(permit, self.now, kind, duration, answered=answered)
        for state in change:
            self.enter(state, self.now - began if permit.probe else 0.0)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100))
    def show_life(self, which):
        permit, _ = self.held[which % len(self.held)]
        change = []
        if permit.probe and permit.probe not in self.lively and permit.generation == self.generation:
            self.good_probes += 1
            change = [CLOSED] * (self.good_probes == self.policy.probe_successes)
        with self.expect(change):
            self.it.breaker.show_life(permit, self.now)
        if permit.probe:
            self.lively.add(permit.probe)
        for state in change:
            self.enter(state)

    @precondition(lambda self: self.state == self.stored == CLOSED)
    @rule(kinds=st.lists(st.sampled_from([OK, OK, OK, FAULT]), max_size=12))
    def traffic(self, kinds):
        for kind in kinds:
            if self.state == CLOSED:
                self.acquire()
                self.record(-1, kind, 0.0)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100))
    def release(self, which):
        permit, _ = self.held.pop(which % len(self.held))
        with self.expect([]):
            self.it.breaker.release(permit)

    # -- meddling --

    @rule(state=st.sampled_from([CLOSED, OPEN, HALF_OPEN]))
    def another_process_changes_the_shared_storage(self, state):
        self.it.storage.state = self.stored = state

    @rule(state=st.sampled_from(["open", "close", "half_open"]))
    def the_user_changes_the_circuit_by_hand(self, state):
        getattr(self.it.circuit, state)()
        self.stored = {"open": OPEN, "close": CLOSED, "half_open": HALF_OPEN}[state]

    # -- what must always hold --

    @invariant()
    def statistics_agree(self):
        seen = self.slices() if self.state != CLOSED or self.window else []
        opens_in = max(self.opens_at - self.now, 0.0) if self.state == OPEN else 0.0
        probing = self.probing(patient=False)
        expected = BreakerStatistics(self.state, len(seen), sum(seen), self.openings, opens_in, probing)
        assert expected == self.it.breaker.statistics(self.now)

    @invariant()
    def pybreaker_agrees(self):
        assert self.stored == self.it.circuit.current_state
        if self.stored == self.state and self.it.told.changes:
            assert self.it.circuit.state.name == self.state
            assert self.it.told.changes[-1][1] == self.state


TestBreaker = BreakerMachine.TestCase


def test_it_opens_at_the_ratio_with_enough_attempts():
    """Just below the ratio, or the throughput, it stays closed; at both it opens."""
    it = Circuit(failure_ratio=0.5, minimum_throughput=4)
    for kind in (OK, OK, FAULT):
        it.attempt(0.0, kind)
    assert CLOSED == it.state()
    it.attempt(0.0, FAULT)
    assert OPEN == it.state()
    few = Circuit(failure_ratio=0.5, minimum_throughput=4)
    for _ in range(3):
        few.attempt(0.0, FAULT)
    assert BreakerStatistics(CLOSED, 3, 3, 0, 0.0) == few.breaker.statistics(0.0)


@pytest.mark.parametrize("kind", list(VerdictKind))
def test_what_counts(kind):
    """Failures open it, good answers count against that; a caller's fault or a throttled call says nothing."""
    it = Circuit(minimum_throughput=1, failure_ratio=1.0)
    it.attempt(0.0, kind)
    assert (OPEN if kind in FAILURES else CLOSED) == it.state()
    assert int(kind is OK or kind in FAILURES) == it.breaker.statistics(0.0).attempts


@pytest.mark.parametrize(("duration", "state"), [(0.5, CLOSED), (1.0, CLOSED), (1.001, OPEN)])
def test_a_slow_answer_may_count_as_failed(duration, state):
    """Slower than `slow_call_duration` is a failure, exactly as slow is not."""
    it = Circuit(minimum_throughput=1, slow_call_duration=1.0)
    it.attempt(0.0, OK, duration)
    assert state == it.state()
    assert CLOSED == Circuit(minimum_throughput=1).state()


def test_a_slow_caller_fault_is_no_failure():
    """Only good answers can be too slow."""
    it = Circuit(minimum_throughput=1, slow_call_duration=1.0)
    it.attempt(0.0, CALLER_FAULT, 100.0)
    assert BreakerStatistics(CLOSED, 0, 0, 0, 0.0) == it.breaker.statistics(0.0)


@pytest.mark.parametrize(("age", "attempts"), [(0.0, 1), (8.99, 1), (10.0, 0), (10.5, 0), (1e9, 0)])
def test_the_window_forgets_within_one_slice(age, attempts):
    """A verdict counts for at least nine tenths of `sampling_duration`, and never longer than it."""
    for start in (0.0, 0.3, 0.999, 57.0):
        it = Circuit(sampling_duration=10.0)
        it.attempt(start, FAULT)
        assert (attempts, attempts) == (
            it.breaker.statistics(start + age).attempts, it.breaker.statistics(start + age).failures,
        )  # fmt: skip


def test_the_window_slides_slice_by_slice():
    """In small steps, each attempt is counted in its own and the nine following slices, and not in the tenth."""
    it = Circuit(sampling_duration=10.0, minimum_throughput=1000)
    times = [step * 0.25 for step in range(200)]
    for step, now in enumerate(times):
        it.attempt(now, FAULT if step % 3 else OK)
        seen = [earlier for earlier in range(step + 1) if int(times[earlier]) > int(now) - 10]
        found = it.breaker.statistics(now)
        assert (len(seen), sum(earlier % 3 > 0 for earlier in seen)) == (found.attempts, found.failures)


@pytest.mark.parametrize(
    ("good", "bad", "ratio", "state"),
    [
        (3, 1, 0.5, CLOSED),
        (2, 2, 0.5, OPEN),
        (7, 3, 0.3, OPEN),
        (8, 2, 0.3, CLOSED),
        (1, 9, 1.0, CLOSED),
        (0, 1, 1.0, OPEN),
    ],
)
def test_the_ratio_is_that_of_all_attempts(good, bad, ratio, state):
    """With enough attempts, it opens at the ratio and not below it."""
    it = Circuit(failure_ratio=ratio, minimum_throughput=1)
    for _ in range(good):
        it.attempt(0.0, OK)
    for number in range(bad):
        assert CLOSED == it.state(), number
        it.attempt(0.0, FAULT)
    assert state == it.state()


def test_old_failures_do_not_open_it():
    """Failures spread over more than the window never meet."""
    it = Circuit(sampling_duration=10.0, minimum_throughput=2)
    for step in range(20):
        it.attempt(step * 10.0, FAULT)
    assert CLOSED == it.state(200.0)


def test_an_older_clock_reading_is_counted_in_the_present():
    """A verdict whose `now` another thread overtook is neither lost nor resurrects a forgotten slice."""
    it = Circuit(sampling_duration=10.0)
    it.attempt(25.0, OK)
    it.attempt(3.0, OK)
    assert 2 == it.breaker.statistics(25.0).attempts
    assert 2 == it.breaker.statistics(33.9).attempts
    assert 0 == it.breaker.statistics(35.0).attempts


def test_open_it_refuses_and_says_for_how_long():
    """Refused with the seconds left, until the break is over."""
    it = Circuit(minimum_throughput=1, break_duration=0.5, jitter=0.0)
    it.attempt(10.0, FAULT)
    assert [0.5, 0.125] == [it.breaker.try_acquire(10.0), it.breaker.try_acquire(10.375)]
    assert BreakerStatistics(OPEN, 1, 1, 1, 0.25) == it.breaker.statistics(10.25)
    assert BreakerStatistics(OPEN, 1, 1, 1, 0.0) == it.breaker.statistics(11.0)
    assert isinstance(it.breaker.try_acquire(10.5), Permit)
    assert [(10.0, CLOSED, OPEN, 0.5), (10.5, OPEN, HALF_OPEN, 0.0)] == it.changes
    assert 0.0 == it.breaker.statistics(10.5).opens_in


def test_breaks_grow_up_to_their_limit_and_start_anew_after_a_good_answer():
    """Each opening in a row lasts longer; closed by probes and then one good answer, the first break is short again."""
    it = Circuit(
        minimum_throughput=1, failure_ratio=1.0, break_duration=1.0, break_growth=3.0, max_break_duration=5.0,
        jitter=0.0, probe_successes=1,
    )  # fmt: skip
    it.attempt(0.0, FAULT)
    it.attempt(1.0, FAULT)
    it.attempt(4.0, FAULT)
    it.attempt(9.0, FAULT)
    it.attempt(14.0, OK)
    it.attempt(14.0, FAULT)
    assert [1.0, 3.0, 5.0, 5.0, 5.0] == [change[3] for change in it.changes if change[2] == OPEN]
    it.attempt(19.0, OK)
    it.attempt(19.0, OK)
    it.attempt(30.0, FAULT)
    assert 1.0 == it.changes[-1][3]


def test_a_growth_beyond_all_numbers_is_only_the_longest_break():
    """An outage of any length and any growth ends in `max_break_duration`, not in an OverflowError."""
    it = Circuit(minimum_throughput=1, break_growth=1e300, jitter=0.0, max_break_duration=2.0)
    it.attempt(0.0, FAULT)
    for step in range(1, 100):
        it.attempt(step * 10.0, FAULT)
    assert [0.25] + [2.0] * 99 == [change[3] for change in it.changes if change[2] == OPEN]


def test_breaks_are_drawn_around_their_length():
    """With jitter the breaks fill `duration * (1 ± jitter)`."""
    it = Circuit(minimum_throughput=1, break_duration=1.0, break_growth=1.0, jitter=0.2)
    it.attempt(0.0, FAULT)
    for step in range(1, 500):
        it.attempt(step * 10.0, FAULT)
    breaks = [change[3] for change in it.changes if change[2] == OPEN]
    assert 0.8 <= min(breaks) < 0.82
    assert 1.18 < max(breaks) <= 1.2


def half_open(**policy):
    """A breaker at the time 100, open since long, that gives probes."""
    it = Circuit(**{"minimum_throughput": 1, "jitter": 0.0, "break_duration": 1.0, "max_break_duration": 1.0, **policy})
    it.attempt(90.0, FAULT)
    return it


def test_probes_are_few_and_spaced():
    """At most `probes` at a time, one per `probe_interval`, and the refusal says when to ask again."""
    it = half_open(probes=2, probe_interval=0.5)
    ask = it.breaker.try_acquire
    first = ask(100.0)
    assert Permit(2, 1) == first
    assert [0.5, 0.5] == [ask(100.0), ask(100.25)]
    assert Permit(2, 2) == ask(100.5)
    assert [0.5, 0.5] == [ask(100.75), ask(100.99)]
    it.breaker.release(first)
    assert Permit(2, 3) == ask(101.0)


def test_a_probe_that_hangs_gives_up_its_place_but_not_its_voice():
    """Older than the longest break it blocks nobody; its verdict still counts when it comes."""
    it = half_open(probes=1, probe_interval=0.0, max_break_duration=1.0)
    hanging = it.breaker.try_acquire(100.0)
    assert isinstance(it.breaker.try_acquire(100.99), float)
    assert Permit(2, 2) == it.breaker.try_acquire(101.0)
    assert 2 == it.breaker.statistics(101.0).probing
    it.breaker.record(hanging, 130.0, FAULT, 30.0)
    assert OPEN == it.state()


def test_the_first_content_of_a_stream_makes_its_probe_a_good_one():
    """Long before the stream ends; its end, good or bad, is not counted again."""
    it = half_open(probes=2, probe_interval=0.0, probe_successes=2)
    stream = it.breaker.try_acquire(100.0)
    it.breaker.show_life(stream, 100.1)
    it.breaker.record(stream, 160.0, OK, 60.0)
    it.breaker.record(stream, 160.0, FAULT, 60.0)
    assert HALF_OPEN == it.state()
    it.breaker.show_life(it.breaker.try_acquire(160.0), 160.1)
    assert CLOSED == it.state()


def test_a_refusal_of_the_servers_own_is_a_sign_of_life():
    """A 400 or a 429 closes a half-open circuit as a good answer does; a failure of our own pool does not."""
    it = half_open(probes=1, probe_interval=0.0, probe_successes=1)
    it.breaker.record(it.breaker.try_acquire(100.0), 100.1, VerdictKind.CALLER_FAULT, 0.1)
    assert HALF_OPEN == it.state()
    it.breaker.record(it.breaker.try_acquire(100.1), 100.2, VerdictKind.CALLER_FAULT, 0.1, answered=True)
    assert CLOSED == it.state()


def test_listeners_are_told_without_the_lock():
    """A listener that waits for a thread which looks at the breaker is no deadlock."""
    looked = []

    def told(*_):
        assert isinstance(breaker.try_acquire(0.0), float)
        thread = threading.Thread(target=lambda: looked.append(breaker.statistics(0.0).state), daemon=True)
        thread.start()
        thread.join(timeout=5)

    circuit = make_circuit("x", (), None)
    breaker = Breaker(BreakerPolicy(minimum_throughput=1), threading.RLock(), Random(1), circuit, told)
    breaker.record(breaker.try_acquire(0.0), 0.0, FAULT, 0.1)
    assert [OPEN] == looked


def test_without_an_interval_a_refused_probe_asks_again_soon():
    """Never 0 seconds: a waiting call must not spin."""
    it = half_open(probes=1, probe_interval=0.0)
    it.breaker.try_acquire(100.0)
    assert 0.01 == it.breaker.try_acquire(100.0)


def test_good_probes_close_it_with_a_clean_window():
    """`probe_successes` good answers close it, one less does not, and old failures are forgotten."""
    it = half_open(probes=3, probe_interval=0.0, probe_successes=2)
    it.attempt(100.0, OK)
    assert HALF_OPEN == it.state()
    it.attempt(100.0, OK)
    assert BreakerStatistics(CLOSED, 0, 0, 1, 0.0) == it.breaker.statistics(100.0)


@pytest.mark.parametrize("how", ["caller_fault", "throttled", "released", "ok"])
def test_a_probe_that_ends_makes_room_for_the_next(how):
    """However a probe ends short of a change of state, its place is free again, exactly once."""
    it = half_open(probes=2, probe_interval=0.0, probe_successes=9)
    first, second = it.breaker.try_acquire(100.0), it.breaker.try_acquire(100.0)
    assert isinstance(it.breaker.try_acquire(100.0), float)
    if how == "released":
        it.breaker.release(first)
    else:
        it.breaker.record(first, 100.0, VerdictKind(how), 0.0)
    assert HALF_OPEN == it.state()
    assert isinstance(it.breaker.try_acquire(100.0), Permit)
    assert isinstance(it.breaker.try_acquire(100.0), float)
    it.breaker.release(second)
    assert isinstance(it.breaker.try_acquire(100.0), Permit)


def test_a_bad_probe_opens_it_again_and_makes_the_other_probes_history():
    """The first failure decides; what the others say later is of the past."""
    it = half_open(probes=3, probe_interval=0.0, probe_successes=1)
    first, second, third = (it.breaker.try_acquire(100.0) for _ in range(3))
    it.breaker.record(first, 100.0, FAULT, 0.0)
    assert OPEN == it.state()
    it.breaker.record(second, 100.0, OK, 0.0)
    assert OPEN == it.state()
    assert isinstance(it.breaker.try_acquire(101.0), Permit)
    it.breaker.release(third)
    assert [True, True, False] == [isinstance(it.breaker.try_acquire(101.0), Permit) for _ in range(3)]


def test_releasing_a_closed_circuits_permit_changes_nothing():
    """Only probes are counted."""
    it = half_open(probes=1, probe_interval=0.0, probe_successes=1)
    it.attempt(100.0, OK)
    plain = it.breaker.try_acquire(100.0)
    assert Permit(3, False) == plain
    it.breaker.release(plain)
    it.breaker.record(it.breaker.try_acquire(100.0), 100.0, CALLER_FAULT, 0.0)
    it.attempt(100.0, FAULT)
    assert [True, False] == [isinstance(it.breaker.try_acquire(110.0), Permit) for _ in range(2)]


def test_a_verdict_from_before_the_last_change_is_ignored():
    """Attempts that began while it was closed do not touch the half-open circuit."""
    it = Circuit(minimum_throughput=1, jitter=0.0, probe_successes=1)
    old = it.breaker.try_acquire(0.0)
    it.attempt(0.0, FAULT)
    it.breaker.try_acquire(50.0)
    it.breaker.record(old, 50.0, FAULT, 0.0)
    assert (HALF_OPEN, 1) == (it.state(), it.breaker.statistics(50.0).openings)
    it.breaker.record(old, 50.0, OK, 0.0)
    assert HALF_OPEN == it.state()


def test_a_circuit_that_another_process_opened_is_open_here():
    """What the shared storage says is followed when it is first seen, with a break of our own; listeners hear it."""
    it = Circuit(jitter=0.0, break_duration=0.5)
    it.storage.state = OPEN
    assert 0.5 == it.breaker.try_acquire(7.0)
    assert [(7.0, CLOSED, OPEN, 0.5)] == it.changes
    assert [(CLOSED, OPEN)] == it.told.changes
    it.storage.state = CLOSED
    assert Permit(2, False) == it.breaker.try_acquire(7.0)
    assert [(CLOSED, OPEN), (OPEN, CLOSED)] == it.told.changes


@pytest.mark.parametrize("now", [0.0, 1000.0])
@pytest.mark.parametrize("state", [OPEN, HALF_OPEN])
def test_a_storage_that_is_not_closed_at_the_start_is_respected(state, now):
    """A process that starts during an outage gives probes from its first moment on, and closes it as any other."""
    storage = pybreaker.CircuitMemoryStorage(state)
    policy = BreakerPolicy(probes=2, probe_interval=0.0, probe_successes=2)
    it = Breaker(policy, threading.RLock(), Random(1), make_circuit("t", (), storage), lambda *_: None)
    assert 0.0 == it.statistics(now).opens_in
    permits = [it.try_acquire(now) for _ in range(3)]
    assert [1, 2, float] == [permit.probe if isinstance(permit, Permit) else type(permit) for permit in permits]
    assert HALF_OPEN == storage.state
    it.record(permits[0], now, OK, 0.0)
    assert HALF_OPEN == storage.state
    it.record(permits[1], now, OK, 0.0)
    assert CLOSED == storage.state


def test_the_first_seconds_of_a_clock_are_like_all_others():
    """Opened at 0, it gives its first probe when the break is over."""
    it = Circuit(minimum_throughput=1, break_duration=0.25, jitter=0.0)
    it.attempt(0.0, FAULT)
    assert Permit(2, 1) == it.breaker.try_acquire(0.25)


def test_the_users_own_hand_is_followed():
    """`circuit.open()` by hand opens it; the listener is told once, not twice."""
    it = Circuit(jitter=0.0, break_duration=0.5)
    it.circuit.open()
    assert 0.5 == it.breaker.try_acquire(7.0)
    assert [(CLOSED, OPEN)] == it.told.changes


def test_a_failing_listener_of_the_user_is_logged_and_does_no_harm(caplog):
    """The circuit opens, other listeners hear of it, and the exception is in the log."""

    class Broken(pybreaker.CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            raise RuntimeError("the listener's own trouble")

    it = Circuit(listeners=[Broken()], minimum_throughput=1)
    with caplog.at_level(logging.ERROR, "deepseek_resilient"):
        it.attempt(0.0, FAULT)
    assert (OPEN, OPEN) == (it.state(), it.storage.state)
    assert [(CLOSED, OPEN)] == it.told.changes
    (record,) = caplog.records
    assert "a circuit breaker listener failed on the change to open" == record.getMessage()
    assert "the listener's own trouble" in str(record.exc_info[1])


@pytest.mark.parametrize(
    ("when_open", "time", "elsewhere", "seconds"),
    [
        ("refuse", 60.0, False, 0.0),
        ("wait", 60.0, False, math.inf),
        ("wait", 60.0, True, math.inf),
        ("pause", 60.0, False, 1.0),
        ("pause", math.inf, False, 1.0),
        ("pause", 2.0, False, 0.5),
        ("pause", 60.0, True, 0.0),
    ],
)
def test_how_long_a_call_may_wait_is_the_policys_word(when_open, time, elsewhere, seconds):
    """A pause is the longest break, a quarter of the call's time at most, and none where somebody else would answer."""
    it = Circuit(when_open=when_open, break_duration=0.25, max_break_duration=1.0)
    assert seconds == it.breaker.patience(time, elsewhere=elsewhere)


@pytest.mark.parametrize(("lasted", "opens_in"), [(0.0, 8.0), (3.0, 5.0), (7.5, 2.0), (20.0, 2.0)])
def test_a_break_counts_from_the_beginning_of_the_probe_that_failed(lasted, opens_in):
    """The others left the server alone meanwhile; but it is a break, however long the probe hung."""
    it = half_open(break_duration=2.0, max_break_duration=8.0, break_growth=4.0)
    permit = it.breaker.try_acquire(100.0)
    it.breaker.record(permit, 100.0 + lasted, FAULT, 0.0)
    assert pytest.approx(opens_in) == it.breaker.statistics(100.0 + lasted).opens_in


def test_the_circuit_has_the_targets_name():
    """A listener can tell which target changed."""
    assert "target" == Circuit().circuit.name
