"""core/layers.py: the signs of a layer above that retries too, each told once."""

import logging

import pytest

from deepseek_resilient import Policy, RetryPolicy
from deepseek_resilient.events import RetriesAbove

from .driving import ANSWER, Bench, ask, reply

GOOD = [reply(), ANSWER, b""]
BAD = [reply(503), b"", b""]


@pytest.fixture
def bench():
    """An engine that does not retry itself."""
    return Bench(Policy(retry=RetryPolicy(stop=lambda _: True), breaker=None))


def signs(bench):
    """What was told."""
    return [event.sign for event in bench.told(RetriesAbove)]


def test_the_retry_count_of_an_sdk(bench):
    """Its first attempt is none; the second is told, a third not again."""
    bench.call(GOOD, retries_above=0)
    assert [] == signs(bench)
    for count in (1, 2):
        bench.call(GOOD, retries_above=count)
    assert ["retry_count"] == signs(bench)
    assert "max_retries=0" in bench.told(RetriesAbove)[0].remedy


def test_the_same_request_again_after_it_failed(bench):
    """Twice in a row, within moments."""
    for _ in range(2):
        bench.call(BAD)
        bench.clock.now += 1.0
    assert [] == signs(bench)
    for _ in range(2):
        bench.call(BAD)
    assert ["same_request"] == signs(bench)


def test_other_requests_are_no_sign(bench):
    """However many fail."""
    for number in range(9):
        bench.call(BAD, request=ask(model=f"m{number}"))
    assert [] == signs(bench)


def test_one_who_waits_is_no_sign(bench):
    """Ten seconds between two of them."""
    for _ in range(5):
        bench.call(BAD)
        bench.clock.now += 10.0
    assert [] == signs(bench)


def test_an_answer_ends_the_row(bench):
    """The count begins anew."""
    for answers in (BAD, GOOD, BAD, GOOD, BAD, GOOD, GOOD):
        bench.call(answers)
    assert [] == signs(bench)


def test_it_is_a_warning_in_the_log(bench, caplog):
    """With what to do about it."""
    with caplog.at_level(logging.WARNING, "deepseek_resilient"):
        bench.call(GOOD, retries_above=1)
    assert "give it max_retries=0" in caplog.text
