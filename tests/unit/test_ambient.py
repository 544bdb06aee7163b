"""ambient.py: what surrounds a piece of work, and what of it a call inherits."""

import asyncio
import threading
import timeit

import pytest

from deepseek_resilient import ConfigError, Priority
from deepseek_resilient.ambient import SURROUNDINGS, Surroundings, using


def told(**said):
    """What a call hears that says that itself."""
    around = SURROUNDINGS.get()
    if around is not None:
        around.tell(said)
    return said


def test_blocks_lie_in_each_other():
    """The inner one adds to the outer one, and what it does not name stays; afterwards it is as before."""
    assert {} == told()
    with using(tenant="acme", priority="batch"):
        with using(priority=Priority.CRITICAL):
            assert {"tenant": "acme", "priority": Priority.CRITICAL} == told()
        assert {"tenant": "acme", "priority": Priority.BATCH} == told()
    assert SURROUNDINGS.get() is None


def test_a_block_that_fails_is_over():
    """Whatever came out of it."""
    with pytest.raises(ValueError, match="a bug"), using(tenant="acme"):
        raise ValueError("a bug")
    assert SURROUNDINGS.get() is None


@pytest.mark.parametrize(("outer", "inner"), [(5.0, 60.0), (60.0, 5.0)])
def test_the_shorter_deadline_wins(outer, inner):
    """Inside and outside; and the outer one is back afterwards."""
    with using(deadline=outer):
        with using(deadline=inner):
            assert 0 < told()["at_most"] <= 5.0
        assert outer - 4.0 < told()["at_most"] <= outer


def test_what_the_call_says_itself_wins_but_not_over_a_shorter_deadline():
    """Tenant and priority are its own; of two deadlines the shorter holds, of two counts the higher."""
    with using(deadline=5.0, tenant="acme", priority="batch"):
        own = told(tenant="other", priority=Priority.CRITICAL, at_most=60.0)
        assert ("other", Priority.CRITICAL) == (own["tenant"], own["priority"])
        assert own["at_most"] <= 5.0
        assert 1.0 == told(at_most=1.0)["at_most"]
    said = {"retries_above": 1}
    Surroundings(retries_above=3).tell(said)
    assert {"retries_above": 3} == said


def test_a_deadline_that_is_over_leaves_nothing():
    """Never a negative time."""
    said = {}
    Surroundings(until=0.0).tell(said)
    assert {"at_most": 0.0} == said


@pytest.mark.parametrize("wrong", [{"deadline": 0}, {"deadline": -1.0}, {"deadline": "5"}, {"priority": "urgent"}])
def test_wrong_values_are_refused(wrong):
    """And nothing stays behind."""
    with pytest.raises(ConfigError), using(**wrong):
        raise AssertionError
    assert SURROUNDINGS.get() is None


def test_tasks_inherit_it_and_do_not_give_it_back():
    """Two tasks side by side see their own, `to_thread` that of its task, and the parent none of it."""

    async def one(name, mine, others):
        with using(tenant=name):
            mine.set()
            await others.wait()
            return told()["tenant"], (await asyncio.to_thread(told))["tenant"]

    async def all_of_them():
        a, b = asyncio.Event(), asyncio.Event()
        seen = await asyncio.gather(one("a", a, b), one("b", b, a))
        return seen, SURROUNDINGS.get()

    assert ([("a", "a"), ("b", "b")], None) == asyncio.run(all_of_them())


def test_new_threads_begin_with_nothing():
    """What a thread of the caller's own does is not the request's."""
    seen = []
    with using(tenant="acme"):
        thread = threading.Thread(target=lambda: seen.append(SURROUNDINGS.get()))
        thread.start()
        thread.join()
    assert [None] == seen


def test_the_look_up_costs_less_than_a_microsecond():
    """For every call, also of those who do not use it: the best of several, in seconds."""
    assert min(timeit.repeat(SURROUNDINGS.get, number=10_000, repeat=20)) / 10_000 < 1e-6
