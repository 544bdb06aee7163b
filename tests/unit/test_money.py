"""core/money.py: prices at an instant, and the budget for what is extra, beside naive ones."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepseek_resilient import LedgerPolicy, Price
from deepseek_resilient.config.ledger import HOLIDAYS, PRICES
from deepseek_resilient.core.money import DUST, MoneyBudget, Prices
from deepseek_resilient.usage import Usage

NIGHT = datetime(2026, 11, 25, 20, 0, tzinfo=UTC).timestamp()
MORNING = datetime(2026, 11, 25, 2, 0, tzinfo=UTC).timestamp()
MILLION = 1_000_000


def prices(*own, **changes):
    return Prices(LedgerPolicy(prices=own, **changes), PRICES)


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(0, 0, 0), 0.0),
        (Usage(MILLION, 0, 0), 0.66),
        (Usage(MILLION, MILLION, 0), 0.022),
        (Usage(0, 0, MILLION), 1.98),
        (Usage(2 * MILLION, MILLION, MILLION), 0.022 + 0.66 + 1.98),
    ],
)
def test_each_kind_of_token_has_its_price(usage, cost):
    """Of the prompt what is cached and the rest, and the answer; all of it twice as much at peak hours."""
    assert cost == pytest.approx(prices().cost("deepseek-v4-pro", usage, NIGHT), abs=1e-15)
    assert 2 * cost == pytest.approx(prices().cost("deepseek-v4-pro", usage, MORNING), abs=1e-15)


def test_ones_own_prices_go_before():
    """For a model that is known and one that is not; what has none costs None, not nothing."""
    own = prices(Price("deepseek-flash", hit=1, miss=2, output=3), Price("mine", hit=0, miss=0, output=0, peak=5))
    usage = Usage(2 * MILLION, MILLION, MILLION)
    assert [6.0, 6.0] == [own.cost("deepseek-flash", usage, when) for when in (NIGHT, MORNING)]
    assert 0.0 == own.cost("mine", usage, MORNING)
    assert own.cost("other", usage, NIGHT) is None
    assert prices().cost("mine", usage, NIGHT) is None
    assert prices().cost("deepseek-v4-pro", usage, NIGHT) == own.cost("deepseek-v4-pro", usage, NIGHT)


@pytest.mark.parametrize(
    ("when", "peak"),
    [
        ("2026-11-25T00:59:59.999", False),
        ("2026-11-25T01:00:00", True),
        ("2026-11-25T03:59:59.999", True),
        ("2026-11-25T04:00:00", False),
        ("2026-11-25T05:59:59.999", False),
        ("2026-11-25T06:00:00", True),
        ("2026-11-25T09:59:59.999", True),
        ("2026-11-25T10:00:00", False),
        ("2026-11-27T02:00:00", True),  # Friday
        ("2026-11-28T02:00:00", False),
        ("2026-11-29T02:00:00", False),
        ("2026-11-30T02:00:00", True),  # Monday
        ("2026-10-01T02:00:00", False),  # a Thursday, and a holiday
        ("2026-10-08T02:00:00", True),  # the first day after it
    ],
)
def test_peak_hours_begin_and_end_on_the_second(when, peak):
    """UTC, Monday to Friday, and not on China's holidays."""
    assert peak is prices().is_peak(at(when))


def test_peak_hours_and_holidays_can_be_others():
    """Halves of hours, whole days, none."""
    own = prices(peak_hours=((0, 0.5), (23, 24)), holidays=("2026-11-26",))
    days = ("2026-11-25", "2026-11-26")
    seen = [[own.is_peak(at(f"{day}T{time}")) for time in ("00:29:59", "00:30:00", "23:59:59")] for day in days]
    assert [[True, False, True], [False, False, False]] == seen
    assert own.is_peak(at("2026-10-01T00:00:00"))
    assert not prices(peak_hours=()).is_peak(MORNING)


@given(st.floats(0, 4e9))
def test_the_calendar_is_the_usual_one(wall):
    """Days of the week and dates, without a calendar's help."""
    day = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=wall // 86400 * 86400)
    hour = wall % 86400 / 3600
    free = day.weekday() >= 5 or day.date().isoformat() in HOLIDAYS
    assert (not free and (1 <= hour < 4 or 6 <= hour < 10)) is prices().is_peak(wall)


@given(st.lists(st.one_of(st.floats(0, 4e9), st.sampled_from([MORNING, NIGHT, MORNING + 7200.0])), max_size=20))
def test_the_price_is_that_of_its_instant(walls):
    """Whatever was asked for before, forwards and backwards."""
    known = prices(peak_hours=((1, 4), (3, 5.5), (23, 24)))
    usage = Usage(0, 0, MILLION)
    for wall in walls:
        factor = 2 if prices(peak_hours=((1, 5.5), (23, 24))).is_peak(wall) else 1
        assert 0.6 * factor == known.cost("deepseek-flash", usage, wall)


class MoneyMachine(RuleBasedStateMachine):
    """Any spending and taking back over hours, beside a list of all of it."""

    @initialize(minute=st.floats(0, 5), day=st.floats(0, 20), start=st.floats(0, 1e7))
    def begin(self, minute, day, start):
        self.limits = {60.0: minute, 86400.0: day}
        self.budget = MoneyBudget(minute, day)
        self.now = start
        self.spent = []

    @rule(seconds=st.one_of(st.floats(0, 70), st.floats(0, 50_000)))
    def pass_time(self, seconds):
        self.now += seconds

    @rule(amount=st.floats(0, 3))
    def spend_if_allowed(self, amount):
        allowed = self.budget.has(self.now, amount)
        if allowed:
            self.budget.spend(self.now, amount)
            self.spent.append([self.now, amount])
        else:  # it may refuse for what is at most a sixtieth of the span too old
            assert any(self.within(span * 61 / 60) + amount > limit - 1e-9 for span, limit in self.limits.items())

    @precondition(lambda self: self.spent)
    @rule(choice=st.integers(0, 1000), share=st.floats(0, 1))
    def take_back(self, choice, share):
        one = self.spent[choice % len(self.spent)]
        self.budget.take_back(one[0], one[1] * share)
        one[1] -= one[1] * share

    def within(self, span):
        return float(sum(Fraction(amount) for when, amount in self.spent if when > self.now - span))

    @invariant()
    def no_span_has_more_than_its_limit(self):
        for span, limit in self.limits.items():
            assert self.within(span) <= limit + len(self.spent) * DUST

    @invariant()
    def nothing_is_forgotten_too_soon_or_kept_too_long(self):
        for span, told in zip(self.limits, self.budget.spent(self.now), strict=True):
            assert self.within(span) - 1e-9 <= told <= self.within(span * 61 / 60) + 1e-9


TestMoneyBudget = MoneyMachine.TestCase


def test_exactly_what_is_left_may_be_spent():
    """Tenths do not add up in floats, and a budget of one dollar is ten of them."""
    budget = MoneyBudget(1.0, None)
    for _ in range(10):
        assert budget.has(0.0, 0.1)
        budget.spend(0.0, 0.1)
    assert not budget.has(59.9, 0.000001)
    assert budget.has(59.9, 0.0)
    assert budget.has(61.0, 1.0)


@pytest.mark.parametrize(("minute", "day", "allowed"), [(None, None, True), (0.0, None, False), (None, 0.0, False)])
def test_each_limit_holds_alone(minute, day, allowed):
    """None is no limit, 0 is nothing at all; what costs nothing is always allowed."""
    budget = MoneyBudget(minute, day)
    assert allowed is budget.has(5.0, 0.01)
    assert budget.has(5.0, 0.0)


def test_what_is_old_takes_no_room():
    """A month of it leaves no more than one span's slots, though nobody looks."""
    budget = MoneyBudget(None, None)
    for minute in range(60 * 24 * 30):
        budget.spend(60.0 * minute, 1.0)
    assert 61 >= max(len(span._slots) for span in (budget._minute, budget._day))
    assert 60 * 24 <= budget.spent(60.0 * minute)[1] <= 61 * 24


def test_what_was_long_ago_cannot_be_taken_back():
    """It counts no more."""
    budget = MoneyBudget(1.0, None)
    budget.spend(0.0, 1.0)
    budget.spend(100.0, 0.5)
    budget.take_back(0.0, 1.0)
    assert 0.5 == budget.spent(100.0)[0]
