"""The plan of a storm and what is measured in it, without a storm."""

from __future__ import annotations

from datetime import date

import pytest

from deepseek_resilient.lab.contenders import LABELS
from deepseek_resilient.lab.picture import draw
from deepseek_resilient.lab.plan import CallRecord, Outcome, Plan, measure, per_second, percentile, recovery
from deepseek_resilient.lab.report import doubts, reading, recovered, table

PLAN = Plan.of(seconds=25, capacity=200, seed=3)


def calls(begin: float, end: float, *, answered: bool) -> list[CallRecord]:
    """Ten per second."""
    return [
        CallRecord(begin + n / 10, begin + n / 10 + 0.1 if answered else None, answered)
        for n in range(round((end - begin) * 10))
    ]


def test_arrivals_follow_the_loads_and_the_seed() -> None:
    """A Poisson process with each phase's rate: the same for the same seed, another for another."""
    times = PLAN.arrivals()
    assert PLAN.arrivals() == times == sorted(times)
    assert Plan.of(seconds=25, capacity=200, seed=4).arrivals() != times
    for phase, begin, end in PLAN.spans()[:-1]:
        expected = phase.load * 200 * (end - begin)
        assert expected == pytest.approx(sum(begin <= at < end for at in times), abs=4 * expected**0.5)
    assert times[-1] < PLAN.seconds - PLAN.drain


def test_the_server_holds_a_second_and_a_tenth_of_waiting() -> None:
    """So that whoever waits at a full queue waits in vain."""
    assert 220 == PLAN.server["queue_limit"]
    assert PLAN.server["wasted"]


def test_recovery_is_counted_from_the_last_bad_half_second() -> None:
    """At once, after a while, never; what is bad again later has not recovered."""
    good, bad = calls(10, 15, answered=True), calls(10, 15, answered=False)
    assert 0.0 == recovery(good, 10, 15)
    assert recovery(bad, 10, 15) is None
    assert 2.0 == recovery(bad[:20] + good[20:], 10, 15)
    assert 4.0 == recovery(good[:35] + bad[35:40] + good[40:], 10, 15)


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank; nothing of nothing."""
    values = [float(n) for n in range(1, 101)]
    assert (51.0, 100.0) == (percentile(values, 0.5), percentile(values, 0.99))
    assert percentile([], 0.5) is None


def test_rates_are_per_second() -> None:
    """Counts of half seconds, doubled; times outside are left out."""
    assert [4.0, 0.0, 2.0] == per_second([0.1, 0.2, 1.4, 1.6, -1], 1.5)


def test_a_contender_that_got_nothing_is_told_too() -> None:
    """No answer at all: no times, never back, and a table, a reading and a picture all the same."""
    outcome = Outcome(name="ours", calls=calls(0, 24, answered=False), attempts=[0] * 51)
    found = measure(PLAN, outcome)
    assert (0.0, None, None) == (found.answered, found.p50, found.after_outage)
    assert "never" in table(PLAN, [outcome])
    assert "never recovered" in reading(PLAN, [outcome])
    assert draw(PLAN, [outcome], date(2026, 11, 23)).startswith("<svg")


def test_ours_is_not_praised_where_it_did_worse() -> None:
    """When another had as many calls answered, the reading says so."""
    good = Outcome(name="naive", calls=calls(0, 24, answered=True), attempts=[5] * 51)
    bad = Outcome(name="ours", calls=calls(0, 24, answered=False), attempts=[5] * 51)
    assert "did not help" in reading(PLAN, [good, bad])
    assert set(LABELS) == {"naive", "openai", "ours"}


def test_a_machine_that_was_too_busy_is_not_passed_over() -> None:
    """Late callers and a server at the limit of its core raise doubts; an idle machine none."""
    assert [] == doubts([Outcome(name="ours", late=0.01, server={"busy": 0.5})])
    assert 2 == len(doubts([Outcome(name="ours", late=0.4, server={"busy": 1.0})]))


def test_times_to_recover_are_words() -> None:
    """At once, in seconds, never."""
    assert ["at once", "1.5 s", "never"] == [recovered(value) for value in (0.0, 1.5, None)]
