"""backoff.py: full jitter, alone and combined with tenacity's own strategies."""

import copy
import pickle
from random import Random

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.backoff import AttemptState, wait_full_jitter


def state(attempt=1, seed=1, **fields):
    known = {"started": 10.0, "now": 13.0, "idle": 2.0, "reason": "busy", "retry_after": None, **fields}
    return AttemptState(attempt=attempt, random=Random(seed), **known)


@given(st.integers(1, 10_000), st.floats(0.001, 100), st.floats(1, 1000), st.floats(1, 10), st.integers(0, 1000))
def test_the_wait_lies_under_its_ceiling(attempt, initial, factor, base, seed):
    """0 <= wait <= min(maximum, initial * base ** (n - 1)) for any attempt, without overflow."""
    maximum = initial * factor
    try:
        ceiling = min(maximum, initial * base ** (attempt - 1))
    except OverflowError:
        ceiling = maximum
    wait = wait_full_jitter(initial, maximum, base)(state(attempt, seed))
    assert 0.0 <= wait <= ceiling * (1 + 1e-9)


@pytest.mark.parametrize(("attempt", "ceiling"), [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (6, 8.0), (2000, 8.0)])
def test_the_waits_fill_the_whole_range(attempt, ceiling):
    """Uniform from 0 to the ceiling: both ends and the middle are met."""
    shared = Random(7)
    asked = AttemptState(
        attempt=attempt, started=0.0, now=0.0, idle=0.0, random=shared, reason="busy", retry_after=None
    )
    waits = sorted(wait_full_jitter()(asked) for _ in range(2000))
    assert 0.0 <= waits[0] < ceiling * 0.01
    assert ceiling * 0.45 < waits[1000] < ceiling * 0.55
    assert ceiling * 0.99 < waits[-1] <= ceiling


def test_the_same_seed_waits_the_same():
    """All randomness is the engine's own."""
    assert wait_full_jitter()(state(3, seed=5)) == wait_full_jitter()(state(3, seed=5))
    assert wait_full_jitter()(state(3, seed=5)) != wait_full_jitter()(state(3, seed=6))


@pytest.mark.parametrize(
    "arguments", [(0,), (-1,), (2, 1), (1, 2, 0.5), (float("nan"),), (1, float("nan")), (1, 2, float("nan"))]
)
def test_arguments_outside_their_range_are_refused(arguments):
    """A ValueError names what is needed."""
    with pytest.raises(ValueError, match="wait_full_jitter needs 0 < initial <= maximum and base >= 1"):
        wait_full_jitter(*arguments)


@pytest.mark.parametrize("arguments", [(1, 1), (1, 1, 1), (0.001, 9.5, 3)])
def test_the_edges_of_the_range_are_allowed(arguments):
    """initial == maximum and base == 1 are fine."""
    assert wait_full_jitter(*arguments)(state()) <= arguments[1]


def test_it_reads_as_it_is_written_and_compares_by_value():
    """repr, equality, hash and pickling go by the three numbers."""
    wait = wait_full_jitter(1.0, 4.0, 3.0)
    assert "wait_full_jitter(initial=1.0, maximum=4.0, base=3.0)" == repr(wait)
    assert wait == pickle.loads(pickle.dumps(wait)) == copy.deepcopy(wait)  # noqa: S301 -- our own bytes
    assert hash(wait) == hash(wait_full_jitter(1.0, 4.0, 3.0))
    assert wait != wait_full_jitter(1.0, 4.0, 2.0)
    assert wait != tenacity.wait_fixed(1)


def test_it_combines_with_tenacitys_strategies():
    """Sums, chains and stops of tenacity can look at our state."""
    assert 5.0 <= (wait_full_jitter(1, 1) + tenacity.wait_fixed(5))(state()) <= 6.0
    assert tenacity.stop_after_attempt(3)(state(3))
    assert not tenacity.stop_after_attempt(3)(state(2))
    assert tenacity.stop_after_delay(3)(state())
    assert not tenacity.stop_after_delay(3.5)(state())


def test_it_works_inside_tenacity_itself():
    """With tenacity's own state it waits by tenacity's own randomness."""
    ordinary = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    assert 0.0 <= wait_full_jitter(0.25, 0.25)(ordinary) <= 0.25


def test_a_strategy_sees_what_happened():
    """The verdict's reason, the server's wish, the attempt and the times are there."""
    seen = state(4, retry_after=1.5)
    assert (4, 3.0, 2.0, "busy", 1.5) == (
        seen.attempt_number, seen.seconds_since_start, seen.idle_for, seen.reason, seen.retry_after,
    )  # fmt: skip
