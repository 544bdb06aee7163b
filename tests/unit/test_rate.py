"""core/rate.py: never over the limit, never idle while there is work, never out of order."""

import itertools
import math
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepseek_resilient.config.rate import RatePolicy
from deepseek_resilient.core.rate import RateLimiter, RateStatistics, Reservation, TooLarge
from deepseek_resilient.errors import ConfigError

TICK = 1 / 16  # every time and cost in the machine is a multiple of a power of 2: floats are exact there


def limiter(start=0.0, **policy):
    return RateLimiter(RatePolicy(**{"burst": 1.0} | policy), threading.Lock(), start)


class Entry:
    """A line of the model's log: what is booked at `at`, as seconds of the two rates."""

    def __init__(self, at, requests, tokens):
        self.at = at
        self.booked = [requests, tokens]
        self.estimated = (requests, tokens)
        self.marks = [None, None]


def earliest(log, limit, cost, capacity, at):
    """The first instant from `at` on at which no window that ends there holds more than its length + capacity."""
    total = cost
    for entry in reversed(log):
        total += entry.booked[limit]
        at = max(at, entry.at + total - capacity)
    return at


class RateMachine(RuleBasedStateMachine):
    """Any calls, beside a log of all that was booked, from which each answer is worked out anew, over all windows.

    `used` has what was really sent, at which instant: the limits have to hold for that, whatever the books say.
    """

    @initialize(
        interval=st.sampled_from([None, 1 / 16, 1 / 4, 1.0, 4.0]),
        per_token=st.sampled_from([None, 1 / 256, 1 / 16, 1 / 2]),
        burst=st.sampled_from([1 / 4, 1.0, 2.0, 8.0]),
        start=st.integers(0, 1000),
    )
    def begin(self, interval, per_token, burst, start):
        self.rates = [interval or 0.0, per_token or 0.0]
        policy = RatePolicy(
            requests_per_minute=interval and 60 / interval, tokens_per_minute=per_token and 60 / per_token, burst=burst
        )
        self.now = start * TICK
        self.limiter = RateLimiter(policy, threading.Lock(), self.now)
        self.capacity = [max(burst, interval) if interval else math.inf, burst if per_token else math.inf]
        self.credited = [0.0, 0.0]
        self.log = []
        self.used = {}
        self.open = []
        self.refused = self.cancelled = 0

    @rule(ticks=st.integers(0, 40))
    def pass_time(self, ticks):
        self.now += ticks * TICK

    @rule()
    def pass_time_to_the_next_waiting(self):
        self.now = min((e.at for e in self.log if e.at > self.now), default=self.now)

    @rule(tokens=st.integers(0, 64), patience=st.sampled_from([0.0, 0.5, 4.0, math.inf]), late=st.integers(0, 2))
    def reserve(self, tokens, patience, late):
        cost = tokens * self.rates[1]
        got = self.limiter.reserve(self.now - late * TICK * self.has_seen_now(), tokens, patience)
        if cost > self.capacity[1]:
            assert TooLarge(tokens, self.capacity[1] / self.rates[1]) == got
            self.refused += 1
            return
        at = max([self.now, *(e.at for e in self.log)])
        at = earliest(self.log, 0, self.rates[0], self.capacity[0], at)
        at = earliest(self.log, 1, cost, self.capacity[1], at)
        if at - self.now > patience:
            assert at - self.now == got
            self.refused += 1
            return
        assert (at, at - self.now) == (got.at, got.delay)
        entry = Entry(at, self.rates[0], cost)
        self.log.append(entry)
        self.used[entry] = entry.estimated
        self.open.append((got, entry))
        self.mark()

    def has_seen_now(self):
        """A look tells the limiter the time; who comes with an earlier one after that is served as of now."""
        self.limiter.statistics(self.now)
        return True

    @precondition(lambda self: self.open)
    @rule(data=st.data(), times=st.integers(1, 2))
    def cancel(self, data, times):
        reservation, entry = self.take(data)
        for _ in range(times):
            self.limiter.cancel(reservation, self.now)
        self.cancelled += 1
        del self.used[entry]
        if entry.at > self.now:
            self.log.remove(entry)
        else:
            self.credit(entry, 0, entry.estimated[0])
            self.credit(entry, 1, entry.estimated[1])
        self.mark()

    @precondition(lambda self: any(e.at <= self.now for _, e in self.open))
    @rule(data=st.data(), tokens=st.integers(0, 128), then_cancel=st.booleans())
    def correct(self, data, tokens, then_cancel):
        reservation, entry = self.take(data, sent=True)
        self.limiter.correct(reservation, self.now, tokens)
        if then_cancel:
            self.limiter.cancel(reservation, self.now)
            self.limiter.correct(reservation, self.now, 0.0)
        more = tokens * self.rates[1] - entry.estimated[1]
        if more > 0.0:
            past = sum(e.at <= self.now for e in self.log)
            self.log.insert(past, Entry(self.now, 0.0, more))
        else:
            self.used[entry] = (entry.estimated[0], entry.estimated[1] + more)
            self.credit(entry, 1, -more)
        self.mark()

    def take(self, data, *, sent=False):
        """One that has not ended, and perhaps is sent."""
        candidates = [pair for pair in self.open if not sent or pair[1].at <= self.now]
        pair = data.draw(st.sampled_from(candidates))
        self.open.remove(pair)
        return pair

    def credit(self, entry, limit, amount):
        """What is certain not to be passed is no longer booked. That it is not too much, the windows tell."""
        alone = entry.estimated[limit] - (self.now - entry.at)
        behind_all = entry.marks[limit] - self.credited[limit] - self.now
        amount = max(min(amount, max(alone, behind_all)), 0.0)
        entry.booked[limit] -= amount
        self.credited[limit] += amount

    def mark(self):
        """Note up to when each lasts; final when its instant comes."""
        for limit in (0, 1):
            end = -math.inf
            for entry in self.log:
                end = max(end, entry.at) + entry.booked[limit]
                if entry.at > self.now or entry.marks[limit] is None:
                    entry.marks[limit] = end + self.credited[limit]

    @invariant()
    def never_over_the_limit_in_any_window(self):
        grants = sorted((entry.at, used) for entry, used in self.used.items())
        for first, (begin, _) in enumerate(grants):
            sums = [0.0, 0.0]
            for end, used in grants[first:]:
                for limit in (0, 1):
                    sums[limit] += used[limit]
                    assert sums[limit] <= self.capacity[limit] + end - begin

    @invariant()
    def statistics_agree(self):
        seen = self.limiter.statistics(self.now)
        counts = (sum(e.at > self.now for e in self.log), len(self.used), self.refused, self.cancelled)
        assert counts == (seen.waiting, seen.granted, seen.refused, seen.cancelled)
        for limit, left in ((0, seen.requests), (1, seen.tokens)):
            rate = self.rates[limit]
            full = earliest(self.log, limit, 0.0, 0.0, self.now)
            assert left == ((self.capacity[limit] - (full - self.now)) / rate if rate else None)


TestRate = RateMachine.TestCase


@given(
    rates=st.tuples(st.floats(1, 1e6), st.floats(100, 1e8)),
    burst=st.floats(0.01, 120),
    asks=st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1), st.floats(0, 10)), min_size=1, max_size=30),
)
def test_no_window_is_over_the_limit_at_any_rates_and_with_clocks_read_out_of_order(rates, burst, asks):
    """Whatever the numbers, and though threads come with the time of a moment ago."""
    it = limiter(requests_per_minute=rates[0], tokens_per_minute=rates[1], burst=burst)
    per_second = [rate / 60 for rate in rates]
    capacity = [max(burst * per_second[0], 1.0), burst * per_second[1]]
    sent = []
    for now, share, patience in asks:
        tokens = share * capacity[1] * 0.999
        got = it.reserve(now, tokens, patience)
        if isinstance(got, Reservation):
            assert 0.0 <= got.delay <= patience
            sent.append((got.at, tokens))
    sent.sort()
    for first, last in itertools.combinations_with_replacement(range(len(sent)), 2):
        window = sent[last][0] - sent[first][0] + 1e-9
        assert last - first + 1 <= (capacity[0] + per_second[0] * window) * (1 + 1e-9)
        assert sum(t for _, t in sent[first : last + 1]) <= (capacity[1] + per_second[1] * window) * (1 + 1e-9)


def test_one_request_fits_always():
    """A burst shorter than the time of one request still lets one pass, then one per interval."""
    it = limiter(requests_per_minute=60.0, burst=0.25)
    assert [0.0, 1.0, 2.0] == [it.reserve(0.0).delay for _ in range(3)]


def test_a_refusal_books_nothing_and_says_when():
    """Who has less patience than the wait is told the wait, as often as it asks."""
    it = limiter(requests_per_minute=60.0)
    it.reserve(0.0)
    assert [1.0, 1.0, 0.5] == [it.reserve(0.0, 0, 0.75), it.reserve(0.0, 0, 0.75), it.reserve(0.5, 0, 0.25)]
    assert 0.5 == it.reserve(0.5, 0, 0.5).delay
    assert RateStatistics(-0.5, None, 1, 2, 3, 0) == it.statistics(0.5)


def test_more_tokens_than_may_ever_leave_at_once_is_said_at_once():
    """No endless wait: the answer names the capacity; exactly the capacity passes."""
    it = limiter(tokens_per_minute=6000.0, burst=2.0)
    assert TooLarge(201, 200.0) == it.reserve(0.0, 201)
    assert 0.0 == it.reserve(0.0, 200).delay
    assert RateStatistics(None, 0.0, 0, 1, 1, 0) == it.statistics(0.0)


def test_a_small_request_does_not_overtake_a_large_one():
    """In the order of asking, though the small one would fit at once."""
    it = limiter(tokens_per_minute=60.0, burst=8.0)
    it.reserve(0.0, 6)
    assert [6.0, 7.0] == [it.reserve(0.0, 8).delay, it.reserve(0.0, 1).delay]
    it = limiter(requests_per_minute=60.0, tokens_per_minute=60.0, burst=8.0)
    it.reserve(0.0, 6)
    first = it.reserve(0.0, 8)
    assert [7.0, 8.0] == [it.reserve(0.0, 1).delay, it.reserve(0.0, 1).delay]
    it.cancel(first, 0.0)
    assert 8.0 == it.reserve(0.0, 0).delay, "what was promised to those two stands, and the next stays behind both"
    assert 0.5 == it.reserve(7.5, 0).delay, "also when the first of them has left"


def test_a_waiter_that_gives_up_makes_room_for_the_next():
    """As if it had never asked, also where the other limit was not the one it waited for."""
    it = limiter(requests_per_minute=60.0, tokens_per_minute=60.0, burst=4.0)
    it.reserve(0.0, 4)
    waiting = it.reserve(0.0, 4)
    assert 4.0 == waiting.delay
    it.cancel(waiting, 1.0)
    assert RateStatistics(4.0, 1.0, 0, 1, 0, 1) == it.statistics(1.0)
    assert [0.0, 1.0] == [it.reserve(1.0, 1).delay, it.reserve(1.0, 1).delay]


def test_a_late_credit_is_worth_no_more_than_the_bucket_had_missed():
    """Tokens that came back by themselves are not given back twice."""
    it = limiter(tokens_per_minute=60.0, burst=10.0)
    old = it.reserve(0.0, 8)
    it.reserve(5.0, 7)
    it.correct(old, 5.0, 0)
    assert 3.0 == it.statistics(5.0).tokens, "it found 3 missing, and those alone come back"
    it = limiter(tokens_per_minute=60.0, burst=10.0)
    old = it.reserve(0.0, 8)
    it.reserve(10.0, 7)
    it.correct(old, 10.0, 0)
    assert 3.0 == it.statistics(10.0).tokens


def test_a_debt_delays_those_to_come_and_no_one_before():
    """A promise stands; what was not known when it was made is paid by the next."""
    it = limiter(tokens_per_minute=60.0, burst=4.0)
    sent = it.reserve(0.0, 4)
    promised = it.reserve(0.0, 2)
    it.correct(sent, 1.0, 14)
    assert (2.0, 2.0) == (promised.at, promised.delay)
    assert 14.0 == it.reserve(1.0, 3).delay
    assert -14.0 == it.statistics(1.0).tokens


def test_one_that_has_ended_is_not_booked_again():
    """Cancelled or corrected twice, or one after the other, is as once."""
    it = limiter(tokens_per_minute=60.0, burst=8.0)
    first, second = it.reserve(0.0, 4), it.reserve(0.0, 4)
    for _ in range(2):
        it.cancel(first, 0.0)
        it.correct(first, 0.0, 100)
        it.correct(second, 0.0, 2)
        it.cancel(second, 0.0)
    assert RateStatistics(None, 6.0, 0, 1, 0, 1) == it.statistics(0.0)


def test_without_limits_everything_passes():
    """The default policy limits nothing, and its books stay empty."""
    it = limiter()
    made = [it.reserve(1.0, 10**9) for _ in range(1000)]
    assert {0.0} == {reservation.delay for reservation in made}
    for reservation in made[::2]:
        it.cancel(reservation, 1.0)
        it.correct(reservation, 1.0, 5)
    assert RateStatistics(None, None, 0, 500, 0, 500) == it.statistics(1.0)


def test_waiters_that_all_give_up_leave_no_trace():
    """In whatever order, long after the burst: the next comer finds the bucket as if they had never asked."""
    for order in (1, -1):
        it = limiter(requests_per_minute=60.0, tokens_per_minute=600.0, burst=4.0)
        waiting = [it.reserve(0.0, 10) for _ in range(100)][4:]
        assert [float(second) for second in range(1, 97)] == [each.delay for each in waiting]
        for each in waiting[::order]:
            it.cancel(each, 0.5)
        assert RateStatistics(0.5, 5.0, 0, 4, 0, 96) == it.statistics(0.5)
        assert 0.5 == it.reserve(0.5, 10).delay


def test_a_burst_that_comes_back_at_once_can_be_had_again():
    """Cancelled or corrected in whatever order: nothing has been passed yet, so nothing is lost."""
    for order in (1, -1):
        it = limiter(requests_per_minute=600.0, tokens_per_minute=6000.0, burst=2.0)
        for turn, each in enumerate([it.reserve(3.0, 10) for _ in range(20)][::order]):
            if turn % 2:
                it.cancel(each, 3.0)
            else:
                it.correct(each, 3.0, 4)
        assert RateStatistics(10.0, 160.0, 0, 10, 0, 10) == it.statistics(3.0)


def test_whoever_waited_is_forgotten_when_its_instant_has_come():
    """The books hold those that wait, and no one else."""
    it = limiter(requests_per_minute=6000.0)
    for _ in range(20_000):
        it.reserve(0.0)
    assert [19_900, 100, 0] == [it.statistics(now).waiting for now in (0.0, 198.0, 199.0)]
    it.reserve(199.0)
    assert 0.0 == it.reserve(200.0).delay, "who comes after all others does not wait"
    assert 0 == len(it._waiting)


@pytest.mark.parametrize("now", [0.0, 1e-3, 7.1, 123456.789])
def test_whole_numbers_do_not_drift(now):
    """1,000 are 1,000 at whatever time, and with a cost that has no exact binary fraction in seconds."""
    it = limiter(now, requests_per_minute=60_000.0, tokens_per_minute=180_000.0)
    granted = [it.reserve(now, 3, 0.0) for _ in range(1001)]
    assert 1000 == sum(isinstance(got, Reservation) for got in granted)
    assert (0.0, 0.0) == (it.statistics(now).requests, it.statistics(now).tokens)


def test_what_was_sent_counts_as_sent_however_early_the_timer_rang():
    """A correction may come a moment before the promised instant; it is not lost, and no one gets more by it."""
    for tokens, left in ((1, 7.0), (12, -4.0)):
        it = limiter(tokens_per_minute=60.0, burst=8.0)
        it.reserve(0.0, 8)
        it.correct(it.reserve(0.0, 8), 7.875, tokens)
        assert RateStatistics(None, left, 0, 2, 0, 0) == it.statistics(8.0)


def test_time_does_not_run_back():
    """A thread that comes with the time of a moment ago, is served as of the latest that any brought."""
    it = limiter(requests_per_minute=60.0)
    assert [0.0, 0.0, 1.0] == [it.reserve(5.0).delay, it.reserve(6.0).delay, it.reserve(5.5).delay]
    it = limiter(tokens_per_minute=60.0, burst=8.0)
    sent = [it.reserve(5.0, 3), it.reserve(9.0, 0)]
    it.correct(sent[0], 5.0, 0)
    assert 8.0 == it.statistics(5.0).tokens, "at 9 all had been passed"
    assert 0.0 == it.reserve(5.0, 8).delay
    assert 9.0 == it.reserve(0.0, 0).at


def test_a_request_that_comes_when_the_next_may_leave_leaves():
    """A rounding error is no wait: 0.29 * 100 is a little less than 0.28 * 100 + 1. Errors do not add up."""
    it = limiter(0.28, requests_per_minute=6000.0, burst=0.01)
    assert [0.0] * 1000 == [it.reserve(0.28 + turn / 100, 0, 0.0).delay for turn in range(1000)]
    assert 0 == it.statistics(10.27).waiting
    assert 0.01 == pytest.approx(it.reserve(10.27, 0).delay, abs=1e-9)


def test_a_nanosecond_is_a_wait():
    """What is no rounding error is waited for, and until then refused."""
    it = limiter(requests_per_minute=6000.0, burst=0.01)
    it.reserve(0.0)
    assert 2e-9 == pytest.approx(it.reserve(0.01 - 2e-9, 0, 0.0), rel=1e-3)
    assert 2e-9 == pytest.approx(it.reserve(0.01 - 2e-9).delay, rel=1e-3)


def test_many_threads_get_what_there_is_and_not_one_more():
    """8 threads on one burst, with cancels and corrections between: the sums are exact."""
    now = 123456.789
    it = limiter(now, requests_per_minute=120_000.0, tokens_per_minute=600_000.0)
    start = threading.Barrier(8)
    used = [[] for _ in range(8)]

    def work(mine):
        start.wait()
        for turn in range(1000):
            got = it.reserve(now, 10, 0.0)
            if not isinstance(got, Reservation):
                continue
            if turn % 4 == 0:
                it.cancel(got, now)
            elif turn % 4 == 1:
                it.correct(got, now, 7)
                mine.append(7)
            else:
                mine.append(10)

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(mine,)) for mine in used]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switching)
    everyone = [tokens for mine in used for tokens in mine]
    seen = it.statistics(now)
    assert (10_000 - sum(everyone), 2000 - len(everyone)) == (seen.tokens, seen.requests)
    assert 0 <= seen.tokens < 10, "each thread asked until nothing was left"
    assert (len(everyone), 8000 - len(everyone)) == (seen.granted, seen.refused + seen.cancelled)


class CountingLock:
    """Counts how often it was entered; fails when it is entered twice at once."""

    def __init__(self):
        self.entered = 0
        self.held = False

    def __enter__(self):
        assert not self.held
        self.held = True
        self.entered += 1

    def __exit__(self, *_):
        self.held = False


def test_every_method_takes_the_lock_once():
    """None works without it, and none holds it longer than its own call."""
    lock = CountingLock()
    it = RateLimiter(RatePolicy(requests_per_minute=60.0, tokens_per_minute=60.0, burst=1.0), lock, 0.0)
    first = it.reserve(0.0, 1)
    second = it.reserve(0.0, 1)
    it.reserve(0.0, 1, 0.0)
    it.reserve(0.0, 2)
    it.cancel(first, 0.0)
    it.correct(second, 1.0, 2)
    it.statistics(1.0)
    assert (7, False) == (lock.entered, lock.held)


@pytest.mark.parametrize(
    "field", [{"requests_per_minute": 0}, {"tokens_per_minute": -1.0}, {"burst": 0.0}, {"burst": None}]
)
def test_a_policy_that_could_let_nothing_pass_is_an_error(field):
    """Off is None; 0 is a mistake."""
    with pytest.raises(ConfigError, match=rf"RatePolicy\.{next(iter(field))}"):
        RatePolicy(**field)
