"""core/concurrency.py and core/waiting.py: who gets a place, who waits, who is refused, and whose bell rings."""

import math
import threading

import pytest

from deepseek_resilient.config import ConcurrencyPolicy
from deepseek_resilient.core.concurrency import ConcurrencyStatistics, Places
from deepseek_resilient.core.limit import Sample, size_class
from deepseek_resilient.core.waiting import Bell

SIZE = size_class(1000, 1000, stream=False)
STREAM = size_class(1000, 1000, stream=True)


class WatchedLock:
    """A lock that knows whether it is held."""

    def __init__(self):
        self.held = False

    def __enter__(self):
        assert not self.held, "taken twice"
        self.held = True

    def __exit__(self, *_):
        self.held = False


def places(initial=1, *, full=True, **policy):
    """Places, all of them taken."""
    it = Places(ConcurrencyPolicy(initial=initial, **policy), WatchedLock(), 0.0)
    for _ in range(initial if full else 0):
        assert it.try_enter(0.0)
    return it


def wait(it, priority=0, until=None, now=0.0):
    """A waiter; its bell notes that it rang, and that it did so without the lock."""
    waiter = it.queue(now, priority, until)

    def wake():
        assert not it._lock.held

    waiter.attach(wake)
    return waiter


def granted(*waiters):
    """Which of these have a place; the bells of those, and no others, have rung."""
    for waiter in waiters:
        assert (waiter.granted or waiter.refused) is waiter.rung
    return [waiter.granted for waiter in waiters]


def test_as_many_enter_as_the_limit_says():
    """And one more when one has left."""
    it = places(3, full=False)
    assert [True, True, True, False, False] == [it.try_enter(0.0) for _ in range(5)]
    it.exit(0.0, 0.0)
    assert [True, False] == [it.try_enter(0.0) for _ in range(2)]


def test_nobody_enters_past_those_who_wait():
    """Where the limit grew at an overload, few as they are, the place given back after it lets the queue in first."""
    it = places(5)
    waiter = wait(it)
    for _ in range(4):
        it.answered(1.0, Sample(0.0, 1.0, SIZE, None))
    it.overloaded(1.0, 0.0)
    assert (10, 5, 1) == (it.statistics(0.0).limit, it.statistics(0.0).in_flight, it.statistics(0.0).queued)
    assert not it.try_enter(0.0)
    it.exit(1.0, 1.0)
    assert [True] == granted(waiter)
    assert it.try_enter(1.0)


def test_the_oldest_goes_first():
    """A place given back goes to the one who has waited longest."""
    it = places()
    waiters = [wait(it) for _ in range(3)]
    assert [False] * 3 == granted(*waiters)
    for count in (1, 2, 3):
        it.exit(1.0, 1.0)
        assert [number < count for number in range(3)] == granted(*waiters)
    assert 1 == it.statistics(0.0).in_flight
    assert 0 == it.statistics(0.0).queued


def test_with_a_lot_of_time_the_newest_goes_first_after_the_time_of_ten_answers():
    """A queue that an overload left behind does not delay who comes after it."""
    it = places(initial=1)
    it.answered(0.0, Sample(0.0, 2.0, SIZE, None))
    old, new = wait(it, until=None, now=0.0), wait(it, until=600.0, now=19.0)
    newest = wait(it, until=600.0, now=20.1)
    it.exit(20.1, 20.1)
    assert [False, False, True] == granted(old, new, newest)


def test_the_newest_goes_first_once_the_oldest_has_waited_for_half_of_its_time():
    """Up to the half, the oldest; after it, the newest, until one stands first who has time."""
    it = places()
    first, second, third, last = wait(it, until=10.0), wait(it, until=11.0), wait(it, until=40.0), wait(it, until=50.0)
    it.exit(5.0, 5.0)
    assert [True, False, False, False] == granted(first, second, third, last)
    it.exit(5.51, 5.51)
    assert [False, False, True] == granted(second, third, last)
    it.leave(second, 6.0)
    newest = wait(it, until=90.0, now=6.0)
    it.exit(7.0, 7.0)
    assert [True, False] == granted(third, newest)


def test_half_of_the_time_counts_from_the_instant_of_queueing():
    """Who came at 100 and can wait until 110 is in a hurry after 105."""
    for now, order in ((105.0, [True, False]), (105.01, [False, True])):
        it = places()
        waiters = [wait(it, until=110.0, now=100.0), wait(it, until=200.0, now=100.0)]
        it.exit(now, now)
        assert order == granted(*waiters)


def test_who_can_wait_for_ever_is_never_in_a_hurry():
    """Then the oldest goes first, however long it has been there."""
    it = places()
    waiters = [wait(it), wait(it, until=1.0)]
    it.exit(1e9, 1e9)
    assert [True, False] == granted(*waiters)


def test_a_higher_priority_goes_first():
    """Whenever it came; within a priority by age."""
    it = places()
    low, first, second, middle = wait(it, -1), wait(it, 5), wait(it, 5), wait(it, 0)
    for order in ([first], [second], [middle], [low]):
        it.exit(0.0, 0.0)
        assert [True] == granted(*order)
    assert 0 == it.statistics(0.0).queued


def test_each_priority_has_its_own_hurry():
    """A low priority that stands does not turn the order of a higher one."""
    it = places()
    wait(it, 0, until=1.0)
    waiters = [wait(it, 1, until=100.0), wait(it, 1, until=100.0)]
    it.exit(2.0, 2.0)
    assert [True, False] == granted(*waiters)


def test_a_full_queue_refuses_the_newcomer():
    """Who matters no more than those who wait is told how long the queue would take."""
    it = places(queue=2)
    waiters = [wait(it, 1), wait(it, 1)]
    it.answered(0.0, Sample(0.0, 3.0, SIZE, None))
    assert [6.0, 6.0] == [it.queue(0.0, priority, None) for priority in (0, 1)]
    assert [False, False] == granted(*waiters)
    assert (2, 2) == (it.statistics(0.0).queued, it.statistics(0.0).refused)


def test_a_full_queue_gives_way_to_who_matters_more():
    """The least and oldest goes; its bell rings with a refusal."""
    it = places(queue=3)
    high, old, young = wait(it, 5), wait(it, 0), wait(it, 0)
    new = wait(it, 1)
    assert (True, True, False) == (old.refused, old.rung, old.granted)
    assert [False] * 3 == granted(high, young, new)
    assert (3, 1) == (it.statistics(0.0).queued, it.statistics(0.0).refused)
    it.exit(0.0, 0.0)
    it.exit(0.0, 0.0)
    assert [True, True, False] == granted(high, new, young)


def test_a_queue_of_nothing_refuses_everybody():
    """At once, whatever the priority."""
    it = places(queue=0)
    assert [0.0, 0.0] == [it.queue(0.0, priority, None) for priority in (0, 99)]
    assert 2 == it.statistics(0.0).refused


def test_a_place_that_came_free_meanwhile_is_given_at_once():
    """Between `try_enter` and `queue` another call may have ended."""
    it = places()
    assert not it.try_enter(0.0)
    it.exit(0.0, 0.0)
    assert [True] == granted(wait(it))
    assert 1 == it.statistics(0.0).in_flight


def test_a_place_that_came_free_meanwhile_is_given_without_a_queue_too():
    """With `queue=0` nobody may wait, and nobody has to."""
    it = places(queue=0)
    assert not it.try_enter(0.0)
    it.exit(0.0, 0.0)
    assert not isinstance(it.queue(0.0, 0, None), float)


def test_who_leaves_the_queue_is_not_granted_a_place():
    """The next one is. Leaving twice is leaving once."""
    it = places()
    first, second = wait(it), wait(it)
    it.leave(first, 1.0)
    it.leave(first, 1.0)
    assert 1 == it.statistics(0.0).queued
    it.exit(2.0, 2.0)
    assert [False, True] == granted(first, second)


def test_who_leaves_with_a_place_gives_it_to_the_next():
    """The bell rang too late for it. Leaving twice gives one place."""
    it = places()
    first, second, third = wait(it), wait(it), wait(it)
    it.exit(1.0, 1.0)
    it.leave(first, 2.0)
    it.leave(first, 2.0)
    assert [True, True, False] == granted(first, second, third)
    assert (1, 1) == (it.statistics(0.0).in_flight, it.statistics(0.0).queued)


def test_who_leaves_after_a_refusal_changes_nothing():
    """It is in no queue any more."""
    it = places(queue=1)
    loser = wait(it, 0)
    winner = wait(it, 1)
    before = it.statistics(0.0)
    it.leave(loser, 1.0)
    it.leave(loser, 1.0)
    assert before == it.statistics(0.0)
    assert [False] == granted(winner)


def test_who_leaves_from_the_middle_leaves_the_order():
    """Also as the last of its priority."""
    it = places()
    first, middle, last, alone = wait(it), wait(it), wait(it), wait(it, 7)
    it.leave(alone, 0.0)
    it.leave(middle, 0.0)
    it.exit(0.0, 0.0)
    it.exit(0.0, 0.0)
    assert [True, False, True] == granted(first, middle, last)


def test_an_answer_lets_waiters_in():
    """Where it raises the limit: a stream holds its place on, the others need not wait for its end."""
    it = places(4)
    waiters = [wait(it) for _ in range(6)]
    for _ in range(3):
        it.answered(1.0, Sample(0.0, 1.0, STREAM, None))
    assert [False] * 6 == granted(*waiters)
    it.answered(1.0, Sample(0.0, 1.0, STREAM, None))
    assert 8 == it.statistics(0.0).limit
    assert [True] * 4 + [False] * 2 == granted(*waiters)
    assert 8 == it.statistics(0.0).in_flight


def test_an_answer_to_an_empty_queue_lets_the_next_enter():
    """The limit has grown for those who come."""
    it = places(4)
    for _ in range(4):
        it.answered(1.0, Sample(0.0, 1.0, SIZE, None))
    assert [True] * 4 + [False] == [it.try_enter(0.0) for _ in range(5)]


def test_overloads_lower_the_limit_and_nobody_enters_above_it():
    """Who is in flight stays; a place given back above the limit is gone."""
    it = places(10)
    waiter = wait(it)
    for _ in range(4):
        it.overloaded(1.0, 0.0)
    assert 7 == it.statistics(0.0).limit
    for in_flight in (9, 8, 7):
        it.exit(1.0, 1.0)
        assert in_flight == it.statistics(0.0).in_flight
        assert [False] == granted(waiter)
    it.exit(1.0, 1.0)
    assert [True] == granted(waiter)


def test_the_end_of_an_outage_lets_waiters_in():
    """As many as were taken before it: a round of four, whose failures then took the limit down to one."""
    it = places(4)
    for number in range(4):
        it.answered(1.0 + number, Sample(0.0, 1.0, (False, 10, 10), None))
    for now in range(5, 15):
        for _ in range(4):
            it.overloaded(float(now), float(now))
    for _ in range(4):
        it.exit(20.0, 0.0)
    assert it.try_enter(20.0)
    waiters = [wait(it, now=20.0) for _ in range(5)]
    it.resume(21.0)
    assert [True, True, True, False, False] == granted(*waiters)


def test_timeouts_lower_the_limit():
    """As overloads do."""
    it = places(10)
    for _ in range(4):
        it.timed_out(1.0, Sample(0.0, 1.0, SIZE, 1.0))
    assert 7 == it.statistics(0.0).limit


def test_a_stated_limit_holds_at_once():
    """It is no overload besides."""
    it = places(20)
    for _ in range(10):
        it.overloaded(1.0, 0.0, stated=15)
    assert 15 == it.statistics(0.0).limit


def test_a_stated_limit_of_zero_is_stated_too():
    """The least that is allowed remains."""
    it = places(20, minimum=2)
    it.overloaded(1.0, 0.0, stated=0)
    assert 2 == it.statistics(0.0).limit


def test_the_queue_empties_at_the_rate_of_the_slower_kind():
    """queued * latency / limit; 0 where nothing is known, or nobody waits."""
    it = places(4)
    assert (0.0, 0.0) == (it.seconds_to_empty(), it.expected(stream=True))
    for _ in range(6):
        wait(it)
    assert 0.0 == it.seconds_to_empty()
    it.answered(0.0, Sample(-1.0, 2.0, STREAM, None))
    assert (2.0, 0.0) == (it.expected(stream=True), it.expected(stream=False))
    assert 3.0 == it.seconds_to_empty()
    it.answered(0.0, Sample(-1.0, 8.0, SIZE, None))
    assert (2.0, 8.0) == (it.expected(stream=True), it.expected(stream=False))
    assert 12.0 == it.seconds_to_empty()


def test_statistics_show_limit_queue_refusals_and_load():
    """The load is that of the last round, in units of the least one."""
    it = places(4, full=False, queue=2, maximum=4)
    assert ConcurrencyStatistics(4.0, 0, 0, 0, 1.0) == it.statistics(0.0)
    for _ in range(4):
        assert it.try_enter(0.0)
    for seconds in (2.0, 3.0):
        for _ in range(4):
            it.answered(seconds, Sample(seconds - 0.5, seconds, SIZE, None))
    wait(it)
    wait(it)
    it.queue(3.0, 0, None)
    assert ConcurrencyStatistics(4.0, 4, 2, 1, 1.5) == it.statistics(0.0)


def test_threads_lose_no_place_and_no_waiter():
    """Many threads that enter, wait and leave at once: all get in, none is left."""
    it = Places(ConcurrencyPolicy(initial=2, maximum=2), threading.Lock(), 0.0)
    most = []

    def work():
        for _ in range(200):
            if not it.try_enter(0.0):
                waiter = it.queue(0.0, 0, None)
                rung = threading.Event()
                waiter.attach(rung.set)
                assert rung.wait(60)
                assert waiter.granted
            most.append(it.statistics(0.0).in_flight)
            it.exit(0.0, 0.0)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert 800 == len(most)
    assert max(most) <= 2
    assert ConcurrencyStatistics(2.0, 0, 0, 0, 1.0) == it.statistics(0.0)


def test_a_bell_that_rings_wakes_who_waits():
    """Not before."""
    bell, woken = Bell(), []
    bell.attach(lambda: woken.append(1))
    assert ([], False) == (woken, bell.rung)
    bell.ring()
    assert ([1], True) == (woken, bell.rung)


def test_a_bell_that_has_rung_wakes_at_once():
    """With nobody there it only remembers."""
    bell, woken = Bell(), []
    bell.ring()
    assert bell.rung
    bell.attach(lambda: woken.append(1))
    assert [1] == woken


@pytest.mark.parametrize("attached_late", [True, False])
def test_no_ring_is_lost_between_two_threads(attached_late):
    """Whatever the one does while the other is between its two steps."""
    woken = []

    class Meanwhile(Bell):
        """Rings, or is attached, at the worst moment: when the other side has set its part and not yet looked."""

        __slots__ = ()

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "rung" and value and attached_late and not woken:
                self.attach(lambda: woken.append("late"))
            if name == "_wake" and value is not None and not attached_late and not woken:
                self.ring()

    bell = Meanwhile()
    if attached_late:
        bell.ring()
    else:
        bell.attach(lambda: woken.append("early"))
    assert woken


def test_work_that_is_given_up_keeps_its_place_for_the_usual_time():
    """Counted from its beginning: the server may be at it until then."""
    it = places(2)
    it.answered(4.0, Sample(0.0, 4.0, SIZE, None))
    it.exit(4.0, 0.0)
    assert it.try_enter(4.0)
    it.abandon(5.0, Sample(4.0, 1.0, SIZE, None))
    waiter = wait(it, now=5.0)
    assert (2, 1) == (it.statistics(0.0).in_flight, it.statistics(0.0).queued)
    assert 8.0 == it.look_again(7.9, waiter)
    assert [False] == granted(waiter)
    it.look_again(8.0, waiter)
    assert [True] == granted(waiter)


def test_work_given_up_late_keeps_its_place_for_as_long_again_but_not_for_ever():
    """Ten times the usual time at most; without a usual time, ten seconds."""
    for usual, elapsed, more in ((4.0, 6.0, 6.0), (1.0, 50.0, 10.0), (None, 5.0, 5.0), (None, 50.0, 10.0)):
        it = places(2)
        if usual is not None:
            it.answered(usual, Sample(0.0, usual, SIZE, None))
        it.exit(100.0, 0.0)
        assert it.try_enter(100.0)
        it.abandon(100.0 + elapsed, Sample(100.0, elapsed, SIZE, None))
        until = 100.0 + elapsed + more
        assert not it.try_enter(until - 0.01)
        assert it.try_enter(until)


def test_an_answer_frees_the_places_of_what_was_given_up_before_it_began():
    """Not those of what began later, or with it."""
    it = places(4)
    it.answered(0.0, Sample(-10.0, 10.0, SIZE, None))
    for started in (0.0, 1.0, 2.0):
        it.abandon(9.0, Sample(started, 9.0 - started, SIZE, None))
    it.answered(9.5, Sample(1.0, 8.5, SIZE, None))
    assert 3 == it.statistics(0.0).in_flight
    assert it.try_enter(9.5)
    assert not it.try_enter(9.5)


def test_work_given_up_after_more_than_the_usual_time_is_a_sign_of_overload():
    """Before that it says nothing of the server. Where nothing was answered yet, it is all that is known of it."""
    for usual, elapsed, limit in ((2.0, 2.0, 14.0), (2.0, 1.9, 20.0), (None, 1.0, 14.0)):
        it = places(20)
        if usual is not None:
            it.answered(0.0, Sample(-usual, usual, SIZE, None))
        for _ in range(5):
            it.abandon(100.0, Sample(100.0 - elapsed, elapsed, SIZE, None))
        assert limit == it.statistics(0.0).limit


def test_the_patience_that_callers_show_turns_the_queue_round():
    """Who left after 4 s without a word: half of that is calm, afterwards the newest goes first."""
    it = places()
    gone = wait(it, now=0.0)
    it.leave(gone, 4.0)
    for now, order in ((12.0, [True, False]), (12.01, [False, True])):
        waiters = [wait(it, now=10.0), wait(it, now=11.0)]
        it.exit(now, now)
        assert order == granted(*waiters)
        for waiter in waiters:
            it.leave(waiter, 10.0)
        assert it.try_enter(now)


def test_longer_waits_show_more_patience():
    """Of callers who leave (a moving average), and of those who got a place after a longer wait; not of others."""
    it = places()
    for waited in (4.0, 14.0):
        it.leave(wait(it, now=0.0), waited)
    assert 12.5 == it.queue(10.0, 0, None).hurries_at
    it = places()
    it.leave(wait(it, now=0.0), 4.0)
    for waited in (14.0, 1.0):
        waiter = wait(it, now=0.0)
        it.exit(waited, waited)
        assert [True] == granted(waiter)
    assert 12.5 == it.queue(10.0, 0, None).hurries_at


def test_a_deadline_that_is_over_shows_no_patience():
    """Its call had said so before."""
    it = places()
    it.leave(wait(it, until=4.0, now=0.0), 4.0)
    assert math.inf == it.queue(10.0, 0, None).hurries_at


def test_who_waits_comes_back_after_the_usual_time_then_after_twice_as_long_each_time():
    """So a place that nobody gives back is found. A second, where nothing is known."""
    it = places(4)
    waiter = wait(it, now=10.0)
    assert 11.0 == it.look_again(10.0, waiter)
    it.answered(10.0, Sample(7.0, 3.0, SIZE, None))
    assert [13.0, 18.0] == [it.look_again(now, waiter) for now in (10.0, 14.0)]


def test_one_of_those_who_wait_looks_out_for_the_end_of_what_was_given_up():
    """Not all, at every such end. When that one waits no longer, the next who looks does it."""
    it = places(2)
    first, second, third = (wait(it, now=1.0) for _ in range(3))
    it.abandon(1.0, Sample(0.0, 1.0, SIZE, None))
    it.abandon(1.0, Sample(-2.0, 3.0, SIZE, None))
    assert [2.0, 2.5, 2.5, 2.0] == [
        it.look_again(*each) for each in ((1.0, first), (1.5, second), (1.5, third), (1.6, first))
    ]
    assert [4.0, 4.0] == [it.look_again(*each) for each in ((2.0, first), (3.5, second))]
    assert [True, False, False] == granted(first, second, third)
    it.leave(second, 3.6)
    assert 4.0 == it.look_again(3.7, third)
