"""core/ceiling.py: a stated limit is believed at once, tried again ever more rarely, and left behind step by step."""

import math

import pytest

from deepseek_resilient.core.ceiling import StatedCeiling


def stated(limit, interval=30.0):
    """The ceiling after the server stated it at 0."""
    it = StatedCeiling(interval)
    it.state(0.0, limit)
    return it


def probe(it, now):
    """Take all places that there are, the one more too; and begin an attempt with it."""
    it.look(now)
    it.entered(now, it.value)


def refusals(limit, until, interval=30.0):
    """When the one more is let in, at a server that stands by its limit."""
    it, now, found = stated(limit, interval), 0.0, []
    while now < until:
        now += 0.125
        probe(it, now)
        if it.value > limit:
            found.append(now)
            it.state(now, limit)
    return found


def test_nothing_is_a_ceiling_before_the_server_stated_one():
    """However many are in flight, and answered."""
    it = StatedCeiling(30.0)
    it.look(100.0)
    it.entered(100.0, 10_000)
    it.answered(101.0, 100.0)
    assert (math.inf, False) == (it.value, it.stated)


@pytest.mark.parametrize("limit", [3, 25])
def test_a_statement_holds_at_once_down_and_up(limit):
    """The server knows."""
    it = stated(10)
    it.state(0.1, limit)
    assert (limit, True) == (it.value, it.stated)


def test_one_more_is_let_in_after_half_a_second():
    """Not before, and no second one."""
    it = stated(3)
    it.look(0.49)
    assert 3 == it.value
    it.look(0.5)
    it.look(5.0)
    assert 4 == it.value


def test_while_it_is_refused_it_is_tried_after_half_as_long_again():
    """Up to the interval: a rise is noticed within a third of the time for which the limit stood."""
    found = refusals(3, 300.0)
    assert [0.5, 1.0, 1.5, 2.25, 3.375] == found[:5]
    assert 12 == sum(at <= 60.0 for at in found)
    assert pytest.approx([30.0] * 3, abs=0.2) == [later - at for at, later in zip(found[-4:], found[-3:], strict=False)]


def test_the_interval_is_the_longest_wait_even_if_it_is_short():
    """`probe_interval` below half a second."""
    assert [0.25, 0.5, 0.75] == refusals(3, 0.8, interval=0.25)


def test_a_limit_that_moves_is_tried_as_soon_as_the_first():
    """It may move again."""
    it = stated(3)
    it.state(100.0, 3)
    it.look(129.0)
    assert 3 == it.value
    it.state(130.0, 2)
    it.look(130.5)
    assert 3 == it.value


def test_answers_raise_it_by_one_two_four_up_to_a_quarter():
    """Each to an attempt that began when all places were taken."""
    it, now, found = stated(3), 0.5, []
    for _ in range(12):
        probe(it, now)
        it.answered(now + 0.1, now)
        now += 0.1
        found.append(it.value)
    assert [5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 41] == found


def test_an_answer_to_an_attempt_from_before_is_no_proof():
    """It had a place among those that were stated."""
    it = stated(3)
    probe(it, 0.5)
    it.answered(0.6, 0.49)
    assert 4 == it.value


def test_what_was_not_used_is_not_proven():
    """Nine of twelve in flight: nine are taken, and so is the step that was made."""
    it = stated(8)
    probe(it, 0.5)
    it.answered(0.6, 0.5)
    assert 11 == it.value
    it.entered(0.7, 10)
    it.answered(0.8, 0.7)
    assert 12 == it.value


def test_a_refusal_ends_it_with_the_new_number():
    """And the next is one more than that, after half a second."""
    it = stated(3)
    for now in (0.5, 0.6, 0.7):
        probe(it, now)
        it.answered(now + 0.1, now)
    it.state(0.9, 5)
    assert 5 == it.value
    it.answered(1.0, 0.95)
    it.look(1.4)
    assert 6 == it.value
