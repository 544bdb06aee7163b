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
    return RateLimiter(RatePolicy(**policy), threading.Lock(), start)


class Entry:
    """A line of the model's log. `requests` and `tokens` are costs in seconds of the rate."""

    def __init__(self, at, requests, tokens, debt=False):
        self.at, self.requests, self.tokens, self.debt = at, requests, tokens, debt
        self.cancelled = False
        self.first_tokens = tokens


def earliest(log, costs_of, cost, capacity, at):
    """The first instant from `at` on at which no window that ends there holds more than its length + capacity."""
    total = cost
    for entry in reversed(log):
        total += costs_of(entry)
        at = max(at, entry.at + total - capacity)
    return at


class RateMachine(RuleBasedStateMachine):
    """Any calls, beside a log of all grants and debts from which each answer is worked out anew."""

    @initialize(
        interval=st.sampled_from([None, 1 / 16, 1 / 4, 1.0, 4.0]),
        per_token=st.sampled_from([None, 1 / 256, 1 / 16, 1 / 2]),
        burst=st.sampled_from([1 / 4, 1.0, 2.0, 8.0]),
        start=st.integers(0, 1000),
    )
    def begin(self, interval, per_token, burst, start):
        self.interval, self.per_token = interval or 0.0, per_token or 0.0
        policy = RatePolicy(
            requests_per_minute=interval and 60 / interval, tokens_per_minute=per_token and 60 / per_token, burst=burst
        )
        self.now = start * TICK
        self.limiter = RateLimiter(policy, threading.Lock(), self.now)
        self.request_capacity = max(burst, interval) if interval else math.inf
        self.token_capacity = burst if per_token else math.inf
        self.log = []
        self.made = []
        self.refused = 0

    @rule(ticks=st.integers(0, 40))
    def pass_time(self, ticks):
        self.now += ticks * TICK

    @rule()
    def pass_time_to_the_next_waiting(self):
        self.now = min((e.at for e in self.log if e.at > self.now), default=self.now)

    @rule(tokens=st.integers(0, 64), patience=st.sampled_from([0.0, 0.5, 4.0, math.inf]))
    def reserve(self, tokens, patience):
        cost = tokens * self.per_token
        got = self.limiter.reserve(self.now, tokens, patience)
        if cost > self.token_capacity:
            assert TooLarge(tokens, self.token_capacity / self.per_token) == got
            self.refused += 1
            return
        at = max([self.now, *(e.at for e in self.log)])
        at = earliest(self.log, lambda e: e.requests, self.interval, self.request_capacity, at)
        at = earliest(self.log, lambda e: e.tokens, cost, self.token_capacity, at)
        if at - self.now > patience:
            assert at - self.now == got
            self.refused += 1
            return
        assert (at, at - self.now) == (got.at, got.delay)
        entry = Entry(at, self.interval, cost)
        self.log.append(entry)
        self.made.append((got, entry))

    @precondition(lambda self: self.made)
    @rule(data=st.data(), times=st.integers(1, 2))
    def cancel(self, data, times):
        reservation, entry = self.take(data)
        for _ in range(times):
            self.limiter.cancel(reservation, self.now)
        self.log.remove(entry)
        entry.cancelled = True

    @precondition(lambda self: self.made)
    @rule(data=st.data(), tokens=st.integers(0, 128), then_cancel=st.booleans())
    def correct(self, data, tokens, then_cancel):
        reservation, entry = self.take(data)
        self.limiter.correct(reservation, self.now, tokens)
        if then_cancel:
            self.limiter.cancel(reservation, self.now)
            self.limiter.correct(reservation, self.now, 0.0)
        more = tokens * self.per_token - entry.tokens
        if more > 0.0:
            past = sum(e.at <= self.now for e in self.log)
            self.log.insert(past, Entry(self.now, 0.0, more, debt=True))
        else:
            entry.tokens += more

    def take(self, data):
        """One that has not ended; mostly an old or a young one."""
        return self.made.pop(data.draw(st.integers(0, len(self.made) - 1)))

    @invariant()
    def never_over_the_limit_in_any_window(self):
        grants = [e for e in self.log if not e.debt]
        for first, entry in enumerate(grants):
            requests = tokens = 0.0
            for last in grants[first:]:
                requests += last.requests
                tokens += last.tokens
                assert requests <= self.request_capacity + last.at - entry.at
                assert tokens <= self.token_capacity + last.at - entry.at

    @invariant()
    def statistics_agree(self):
        seen = self.limiter.statistics(self.now)
        assert sum(e.at > self.now for e in self.log) == seen.waiting
        assert self.refused == seen.refused
        assert sum(not e.debt for e in self.log) == seen.granted
        for rate, costs_of, capacity, left in (
            (self.interval, lambda e: e.requests, self.request_capacity, seen.requests),
            (self.per_token, lambda e: e.tokens, self.token_capacity, seen.tokens),
        ):
            full = earliest(self.log, costs_of, 0.0, 0.0, self.now)
            assert left == ((capacity - (full - self.now)) / rate if rate else None)


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
            sent.append((now + got.delay, tokens))
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
    assert 6.0 == it.reserve(0.0, 0).delay
    it.cancel(first, 0.0)
    assert 6.0 == it.reserve(0.0, 0).delay, "its promise to the second stands, and the third stays behind it"


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


def test_levels_that_no_longer_matter_are_forgotten():
    """Under a steady full load the books do not grow."""
    it = limiter(requests_per_minute=6000.0, tokens_per_minute=60e6)
    for _ in range(20_000):
        it.reserve(0.0, 500)
    assert it.statistics(199.0).waiting == 100
    now = 199.0
    for _ in range(1000):
        now += it.reserve(now, 500).delay
    assert len(it._log) < 400


def test_many_threads_get_what_there_is_and_not_one_more():
    """8 threads, one burst of 1,000: granted exactly 1,000 besides those given back, and each number once."""
    it = limiter(requests_per_minute=60_000.0, tokens_per_minute=600_000.0)
    start = threading.Barrier(8)
    granted = [[] for _ in range(8)]

    def work(mine):
        start.wait()
        for turn in range(1000):
            got = it.reserve(0.0, 10, 0.0)
            if isinstance(got, Reservation):
                if turn % 4:
                    mine.append(got)
                else:
                    it.cancel(got, 0.0)

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(mine,)) for mine in granted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switching)
    everyone = [reservation for mine in granted for reservation in mine]
    assert 1000 == len(everyone) == len({reservation._number for reservation in everyone})
    seen = it.statistics(0.0)
    assert (1000, 8000 - seen.refused - 1000) == (seen.granted, seen.cancelled)
    assert (pytest.approx(0.0, abs=1e-6), pytest.approx(0.0, abs=1e-6)) == (seen.requests, seen.tokens)


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
    it = RateLimiter(RatePolicy(requests_per_minute=60.0, tokens_per_minute=60.0), lock, 0.0)
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
