"""core/admission.py: who is shed at what load, and that nobody is shed for ever."""

import heapq
import itertools
import math
import threading
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deepseek_resilient.config.quality import AdmissionPolicy, Priority
from deepseek_resilient.core.admission import Admission, LoadMeter, LoadStatistics, Shed
from deepseek_resilient.core.verdict import OK, Verdict, VerdictKind
from deepseek_resilient.errors import ConfigError

BATCH, STANDARD, INTERACTIVE, CRITICAL = Priority
BUSY = Verdict(VerdictKind.OVERLOADED, "busy", True, 503)
LIMITED = Verdict(VerdictKind.THROTTLED, "rate_limited", True, 429)
BROKE = Verdict(VerdictKind.THROTTLED, "balance_exhausted", False, 402, rest=True)


def meter(now=0.0, on_change=None, **policy):
    return LoadMeter(AdmissionPolicy(**policy), threading.Lock(), now, on_change)


def bound(policy):
    """The longest that it takes back to level 0 without load: the formula of the docstring."""
    remembered = max(policy.signal_lifetime, policy.sampling_duration)
    return (
        remembered
        + policy.half_life * math.log2(policy.ceiling / (policy.thresholds[0] - policy.margin))
        + (policy.dwell)
    )


def held(it, load, seconds=30.0, start=0.0, step=0.1):
    """Levels while the load is kept constant by reports."""
    levels = []
    for tick in range(round(seconds / step) + 1):
        it.report_places(start + tick * step, 0, None, load)
        levels.append(it.look(start + tick * step)[0])
    return levels


policies = st.builds(
    AdmissionPolicy,
    thresholds=st.sampled_from([(0.8,), (0.8, 1.0, 2.0), (0.5, 0.6, 0.7, 0.8, 3.0)]),
    margin=st.floats(0, 0.4),
    dwell=st.floats(0, 5),
    half_life=st.floats(0.05, 5),
    signal_lifetime=st.floats(0.5, 20),
    sampling_duration=st.floats(0.5, 20),
)


class MeterMachine(RuleBasedStateMachine):
    """Any reports at any times: what must hold of level, load and the shed, whatever comes."""

    @initialize(policy=policies, start=st.floats(0, 1e6))
    def begin(self, policy, start):
        self.policy = policy
        self.now = start
        self.changes = []
        self.meter = LoadMeter(policy, threading.Lock(), start, lambda *change: self.changes.append(change))
        self.admission = Admission(policy, self.meter, Random(5))

    @rule(seconds=st.one_of(st.floats(0, 1), st.floats(0, 60)))
    def pass_time(self, seconds):
        self.now += seconds

    @rule(
        in_flight=st.integers(0, 50),
        limit=st.one_of(st.none(), st.floats(0, 50)),
        delay=st.floats(0, 30),
        late=st.floats(0, 1),
    )
    def report_places(self, in_flight, limit, delay, late):
        self.meter.report_places(self.now - late, in_flight, limit, delay)

    @rule(verdict=st.sampled_from([OK, BUSY, LIMITED, BROKE]), times=st.integers(1, 60))
    def report_verdicts(self, verdict, times):
        for _ in range(times):
            self.meter.report_verdict(self.now, verdict)

    @rule(opened=st.integers(0, 3), more=st.integers(0, 3))
    def report_breakers(self, opened, more):
        self.meter.report_breakers(self.now, opened, opened + more)

    @rule(priority=st.sampled_from(Priority))
    def admit(self, priority):
        shed = self.admission.admit(*self.admission.meter.look(self.now), priority)
        level, load = self.meter.look(self.now)
        if shed is not None:
            assert (priority, level, load) == (shed.priority, shed.level, shed.load)
            assert priority < level
            assert priority is not CRITICAL
            assert 0 < shed.probability <= 1
            assert shed.retry_after > 0 or self.policy.dwell == 0

    @rule(looks=st.sampled_from([0, 1, 50]))
    def nothing_comes_any_more(self, looks):
        """However it was, level 0 is back in bounded time, seen by one look or by many."""
        for tick in range(looks):
            self.meter.look(self.now + bound(self.policy) * 1.001 * tick / looks)
        self.now += bound(self.policy) * 1.001
        assert 0 == self.meter.look(self.now + 1e-6)[0]

    @invariant()
    def lower_priorities_are_shed_first(self):
        load = self.meter.look(self.now)[1]
        assert 0 <= load <= self.policy.ceiling
        known = list(Priority)[: len(self.policy.thresholds)]
        chances = [self.admission.probability(load, priority) for priority in known]
        assert sorted(chances, reverse=True) == chances

    @invariant()
    def no_two_changes_are_closer_than_the_dwell(self):
        for earlier, later in itertools.pairwise(self.changes):
            assert later[0] - earlier[0] >= self.policy.dwell
            assert earlier[2] == later[1]


TestMeter = MeterMachine.TestCase


@given(policy=policies, load=st.floats(0, 6), start=st.floats(0, 1e5))
@settings(max_examples=50)
def test_a_constant_load_settles(policy, load, start):
    """From rest the level only rises, at most once per dwell, to the one the load stands for, and stays."""
    changes = []
    it = LoadMeter(policy, threading.Lock(), start, lambda *change: changes.append(change))
    seconds = policy.half_life * 30 + policy.dwell * (len(policy.thresholds) + 1)
    levels = held(it, load, seconds, start, step=policy.signal_lifetime / 4)
    assert sorted(levels) == levels
    assert all(b[0] - a[0] >= policy.dwell for a, b in itertools.pairwise(changes))
    if all(abs(load - threshold) > 1e-3 for threshold in policy.thresholds):
        assert sum(load >= threshold for threshold in policy.thresholds) == levels[-1]


def test_nothing_reported_is_no_load():
    """A new meter is at level 0, and lets everybody in."""
    it = meter()
    assert (0, 0.0) == it.look(5.0)
    assert LoadStatistics(0, 0.0, 0.0, 0.0, 0.0, 0.0) == it.statistics(5.0)
    assert [None] * 4 == [Admission(AdmissionPolicy(), it, Random(1)).admit(*it.look(5.0), each) for each in Priority]


def test_load_moves_by_half_per_half_life():
    """A report has no weight at first, half of it after a half-life, three quarters after two."""
    it = meter(half_life=2.0)
    it.report_places(0.0, 0, None, 1.0)
    assert [0.0, 0.5, 0.75] == [it.look(at)[1] for at in (0.0, 2.0, 4.0)]


@pytest.mark.parametrize(
    ("report", "signal"),
    [
        (lambda it: it.report_places(0.0, 3, 4, 0.0), "utilisation"),
        (lambda it: it.report_places(0.0, 0, None, 0.75), "queue_delay"),
        (lambda it: [it.report_verdict(0.0, BUSY) for _ in range(15)], "throttled"),
        (lambda it: it.report_breakers(0.0, 3, 4), "breakers_open"),
    ],
)
def test_each_signal_is_seen_and_forgotten(report, signal):
    """Each of them makes load while it is young, and none when it is old."""
    it = meter(minimum_throughput=100, throttle_ratio=0.2, half_life=1.0, signal_lifetime=4.0, sampling_duration=4.0)
    report(it)
    seen = it.statistics(2.0)
    assert 0.75 == pytest.approx(getattr(seen, signal))
    assert 0.75 * 0.75 == pytest.approx(seen.load)
    gone = it.statistics(5.0)
    assert 0.0 == getattr(gone, signal)
    assert 0.75 * (1 - 2**-4) / 2 == pytest.approx(gone.load)
    assert LoadStatistics(0, 0.0, 0.0, 0.0, 0.0, 0.0) == it.statistics(60.0)


def test_the_strongest_signal_counts():
    """They are no sum, and none hides another."""
    it = meter()
    for tick in range(100):
        it.report_places(tick / 10, 9, 10, 0.5)
        it.report_breakers(tick / 10, 1, 4)
    assert 0.9 == pytest.approx(it.look(10.0)[1], abs=0.01)


def test_no_known_limit_says_nothing():
    """Where no limit is known, calls in flight are no load; without targets no circuit is open."""
    it = meter()
    it.report_places(0.0, 500, None, 0.0)
    it.report_breakers(0.0, 0, 0)
    assert (0, 0.0) == it.look(10.0)


def test_refusals_are_no_load_where_a_limit_is_known():
    """They make the limit smaller; without one they are what there is to go by."""
    it = meter()
    for _ in range(100):
        it.report_verdict(0.0, LIMITED)
    assert 1 / 0.2 == it.statistics(0.0).throttled
    it.report_places(0.0, 1, 4, 0.0)
    assert 0.0 == it.statistics(0.0).throttled
    it.report_places(0.0, 1, None, 0.0)
    assert 1 / 0.2 == it.statistics(0.0).throttled


def test_few_attempts_say_little():
    """One 429 in a quiet hour is no overload, a third of many is."""
    it = meter()
    it.report_verdict(0.0, LIMITED)
    assert 1 / 50 / 0.2 == pytest.approx(it.statistics(0.0).throttled)
    for verdict in [LIMITED, OK, OK] * 100:
        it.report_verdict(0.1, verdict)
    assert 1 / 3 / 0.2 == pytest.approx(it.statistics(0.1).throttled, rel=0.01)


def test_an_exhausted_balance_is_no_load():
    """A 402 says nothing of how busy the server is."""
    it = meter()
    for _ in range(100):
        it.report_verdict(0.0, BROKE)
    assert 0.0 == it.statistics(1.0).throttled


def test_some_open_breakers_that_stay_so_do_not_shed_for_ever():
    """They close by calls that are let through: a share of open breakers that only stays must be forgotten."""
    policy = AdmissionPolicy(thresholds=(0.3, 0.6))
    it = LoadMeter(policy, threading.Lock(), 0.0)
    admission = Admission(policy, it, Random(1))
    admitted = []
    for tick in range(400):
        it.report_places(tick / 10, 0, 10, 0.0)
        it.report_breakers(tick / 10, 1, 2)
        admitted.append(admission.admit(*admission.meter.look(tick / 10), BATCH) is None)
    assert not all(admitted[:100])
    assert all(admitted[round(bound(policy) * 10) :])


def test_an_outage_sheds_nobody_and_is_forgotten_when_it_ends():
    """The circuits refuse, and their probes must come through; what was seen of it says nothing of the load."""
    it = meter()
    admission = Admission(AdmissionPolicy(), it, Random(1))
    for tick in range(50):
        it.report_verdict(tick / 10, BUSY)
        it.look(tick / 10)
    assert admission.admit(*admission.meter.look(5.0), BATCH) is not None
    it.report_breakers(5.0, 1, 1)
    assert [None] * 20 == [admission.admit(*admission.meter.look(5.0 + tick / 10), BATCH) for tick in range(20)]
    it.report_breakers(7.0, 0, 1)
    assert 0.0 == it.statistics(7.0).load
    assert admission.admit(*admission.meter.look(7.0), BATCH) is None


def test_one_throw_of_the_dice_decides_at_every_target():
    """A call that asks at several is not let in more often."""
    it = meter()
    held(it, 0.9)
    admission = Admission(AdmissionPolicy(), it, Random(1))
    assert [False, True] == [admission.admit(*admission.meter.look(30.0), BATCH, dice) is None for dice in (0.0, 1.0)]


def test_a_breaker_that_opens_again_counts_again():
    """Half-open and open again is news."""
    it = meter(signal_lifetime=4.0)
    for at, opened in ((0.0, 1), (3.0, 0), (3.5, 1)):
        it.report_breakers(at, opened, 1)
    assert 1.0 == it.statistics(7.0).breakers_open
    assert 0.0 == it.statistics(7.5).breakers_open


def test_a_level_is_left_only_below_its_margin():
    """Between threshold and margin the level stays; below it goes."""
    it = meter(dwell=1.0, margin=0.1)
    assert 1 == held(it, 0.9)[-1]
    assert {1} == set(held(it, 0.75, start=30.0))
    assert 0 == held(it, 0.65, start=60.0)[-1]


def test_a_load_that_swings_around_a_threshold_changes_the_level_once():
    """That is what the margin is for."""
    changes = []
    it = meter(on_change=lambda *change: changes.append(change), dwell=0.0)
    for second in range(100):
        held(it, 0.85 if second % 2 else 0.75, seconds=1.0, start=float(second))
    assert [(0, 1)] == [(old, new) for _, old, new, _ in changes]


def test_changes_are_told_with_time_and_load():
    """A listener gets what the event needs, outside the lock."""
    changes = []

    def changed(*change):
        changes.append((*change, it.statistics(change[0]).level))

    it = meter(on_change=changed, half_life=0.001)
    it.report_places(0.0, 0, None, 1.5)
    it.look(2.0)
    it.look(60.0)
    assert [(2.0, 0, 2, 1.5, 2), (60.0, 2, 0, 0.0, 0)] == changes


def test_a_signal_that_is_over_gives_way_whoever_moved_the_time():
    """A weaker one that still holds counts from the next look on, also where a verdict came at the same moment."""
    seen = []
    for moments in ([], [4.5]):
        it = meter(half_life=1.0, signal_lifetime=4.0)
        it.report_places(0.0, 0, None, 2.0)
        it.report_breakers(1.0, 1, 2)
        for moment in moments:
            it.report_verdict(moment, OK)
        seen.append([it.look(at) for at in (4.5, 4.9)])
    assert seen[0] == seen[1]


def test_a_clock_read_before_another_threads_changes_nothing():
    """An older `now` is taken as the latest one seen."""
    it = meter()
    it.report_places(10.0, 0, None, 1.0)
    seen = it.look(11.0)
    it.report_places(9.0, 0, None, 1.0)
    assert seen == it.look(9.5)
    assert 0.75 == it.look(12.0)[1]


def test_within_a_level_the_probability_grows():
    """None at its own threshold, all at the next one, the last at the ceiling; critical never."""
    admission = Admission(AdmissionPolicy(), meter(), Random(1))
    chances = [[admission.probability(load, each) for load in (0.8, 0.9, 1.0, 1.5, 2.0, 3.0, 4.0)] for each in
               (BATCH, STANDARD, INTERACTIVE)]  # fmt: skip
    assert pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]) == chances[0]
    assert pytest.approx([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]) == chances[1]
    assert pytest.approx([0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0]) == chances[2]


def test_at_the_highest_load_all_but_critical_are_shed():
    """Also where there are more levels than priorities."""
    policy = AdmissionPolicy(thresholds=(0.8, 0.9, 1.0, 1.1, 1.2), ceiling=2.0)
    it = LoadMeter(policy, threading.Lock(), 0.0)
    assert 5 == held(it, 9.0)[-1]
    admission = Admission(policy, it, Random(1))
    shed = [admission.admit(*admission.meter.look(30.0), each) for each in Priority]
    assert [BATCH, STANDARD, INTERACTIVE, None] == [each and each.priority for each in shed]


def test_the_shed_are_told_to_come_back_apart():
    """`retry_after` is the time the load needs to fall, or the dwell if that is longer, times 1 to 2."""
    policy = AdmissionPolicy(half_life=4.0, dwell=1.0)
    it = LoadMeter(policy, threading.Lock(), 0.0)
    held(it, 3.2, seconds=60.0)
    admission = Admission(policy, it, Random(1))
    shed = [admission.admit(*admission.meter.look(60.0), BATCH) for _ in range(200)]
    assert Shed(BATCH, 3, it.look(60.0)[1], 1.0, shed[0].retry_after) == shed[0]
    waits = sorted(each.retry_after for each in shed)
    assert 8.0 == pytest.approx(waits[0], rel=0.05)
    assert 16.0 == pytest.approx(waits[-1], rel=0.05)


@pytest.mark.parametrize("text", ["critical", " Critical ", "CRITICAL", CRITICAL])
def test_a_priority_is_read_from_text(text):
    """In any case, with blanks around it; a Priority is itself."""
    assert CRITICAL is Priority.parse(text)


@pytest.mark.parametrize("value", ["", "urgent", 3, None, b"batch"])
def test_another_priority_is_an_error_that_says_which_there_are(value):
    """With the name of where it stood."""
    with pytest.raises(ConfigError, match=r"x-resilient-priority=.*one of critical, interactive, standard, batch"):
        Priority.parse(value, "x-resilient-priority")


def test_a_long_wrong_priority_is_cut_in_the_message():
    """A header may hold anything."""
    with pytest.raises(ConfigError) as caught:
        Priority.parse("x" * 10_000)
    assert 200 > len(str(caught.value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("thresholds", ()), ("thresholds", [0.8]), ("thresholds", (0.0,)), ("thresholds", (0.8, 0.8)),
        ("thresholds", (0.8, "1")), ("thresholds", (True,)), ("thresholds", (math.nan,)), ("thresholds", (math.inf,)),
        ("ceiling", 2.0), ("margin", 0.8), ("margin", -0.1), ("dwell", -1.0), ("half_life", 0.0), ("queue_target", 0),
        ("throttle_ratio", 1.1), ("throttle_ratio", 0), ("minimum_throughput", 0), ("sampling_duration", 0),
        ("signal_lifetime", 0),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(field, value):
    """With its value and what is allowed."""
    with pytest.raises(ConfigError, match=rf"AdmissionPolicy\.{field}="):
        AdmissionPolicy(**{field: value})


MIX = {CRITICAL: 0.1, INTERACTIVE: 0.2, STANDARD: 0.4, BATCH: 0.3}
SLOTS, SERVICE, PATIENCE = 20, 0.5, 5.0


class Storm:
    """A server of 20 slots and half a second behind a FIFO queue; `factor` times what it can do until `until`."""

    def __init__(self, seed, factor, *, until=150.0, calm=40.0, cliff=False):
        self.random = Random(seed)
        self.changes = []
        policy = AdmissionPolicy()
        self.meter = LoadMeter(policy, threading.Lock(), 0.0, lambda *change: self.changes.append(change))
        self.admission = Admission(policy, self.meter, Random(seed + 1))
        self.factor, self.until, self.calm, self.cliff = factor, until, calm, cliff
        self.busy = self.done = 0
        self.waiting = []
        self.offered, self.served, self.first_shed = Counter(), Counter(), {}
        self.calm_offered, self.calm_served = Counter(), Counter()
        self.events, self.numbers = [], itertools.count()
        self.run()

    def share(self, priority):
        return self.served[priority] / self.offered[priority]

    @property
    def goodput(self):
        return self.done / (self.until * SLOTS / SERVICE)

    def push(self, at, call):
        heapq.heappush(self.events, (at, next(self.numbers), call))

    def run(self):
        self.push(0.0, None)
        while self.events:
            now, _, call = heapq.heappop(self.events)
            if call is not None:
                self.end(now, call)
            elif now < self.until + self.calm:
                factor = self.factor if now < self.until else 0.5
                self.push(now + self.random.expovariate(factor * SLOTS / SERVICE), None)
                self.arrive(now)

    def arrive(self, now):
        priority = self.random.choices(list(MIX), MIX.values())[0]
        settled = now > self.until + bound(AdmissionPolicy())
        if now < self.until:
            self.offered[priority] += 1
        elif settled:
            self.calm_offered[priority] += 1
        self.report(now)
        if self.cliff:
            shed = CRITICAL is not priority < self.meter.look(now)[0]
        else:
            shed = self.admission.admit(*self.admission.meter.look(now), priority) is not None
        if shed:
            self.first_shed.setdefault(priority, now)
        elif self.busy < SLOTS:
            self.start(now, (priority, now))
        else:
            self.waiting.append((priority, now))

    def start(self, now, call):
        self.busy += 1
        self.push(now + self.random.expovariate(1 / SERVICE), call)

    def end(self, now, call):
        priority, came = call
        self.busy -= 1
        self.done += now < self.until
        if came < self.until:
            self.served[priority] += 1
        elif came > self.until + bound(AdmissionPolicy()):
            self.calm_served[priority] += 1
        while self.waiting and self.busy < SLOTS:
            waited = self.waiting.pop(0)
            if now - waited[1] <= PATIENCE:
                self.start(now, waited)
        self.report(now)

    def report(self, now):
        delay = now - self.waiting[0][1] if self.waiting else 0.0
        self.meter.report_places(now, self.busy + len(self.waiting), SLOTS, delay)


@pytest.mark.parametrize("seed", range(5))
def test_at_twice_the_capacity_the_important_are_served(seed):
    """Critical all but always, interactive nearly, standard shares what is left, batch goes first; all after it."""
    storm = Storm(seed, 2.0)
    assert 0.999 <= storm.share(CRITICAL)
    assert 0.97 <= storm.share(INTERACTIVE)
    assert 0.35 <= storm.share(STANDARD) <= 0.65
    assert storm.share(BATCH) <= 0.05
    assert 0.95 <= storm.goodput
    assert min(storm.first_shed, key=storm.first_shed.get) is BATCH
    assert storm.calm_offered == storm.calm_served
    assert set(Priority) == set(storm.calm_served)
    assert 0 == storm.meter.look(storm.until + storm.calm)[0]


def test_a_probability_that_grows_is_better_than_a_cliff():
    """Near the capacity and at twice it: more calls are served, and the level changes less often."""
    for factor in (0.95, 2.0):
        gradual = [Storm(seed, factor, calm=0.0) for seed in range(3)]
        cliff = [Storm(seed, factor, calm=0.0, cliff=True) for seed in range(3)]
        assert sum(storm.goodput for storm in gradual) > 1.05 * sum(storm.goodput for storm in cliff)
        assert sum(len(storm.changes) for storm in gradual) < 0.7 * sum(len(storm.changes) for storm in cliff)
