"""core/concurrency.py: whatever enters, waits, leaves, ends and is told, no place and no waiter is lost."""

import math
import threading

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepseek_resilient.config import ConcurrencyPolicy
from deepseek_resilient.core.concurrency import Places
from deepseek_resilient.core.limit import Sample, size_class

SIZES = [size_class(1000, 1000, stream=False), size_class(1000, 100_000, stream=False), size_class(9, 9, stream=True)]
INDEX = st.integers(0, 1000)


class PlacesMachine(RuleBasedStateMachine):
    """Any use, beside plain lists of who is in flight and who waits. The limit is taken from the places' own word."""

    @initialize(
        initial=st.sampled_from([1, 2, 5]),
        maximum=st.sampled_from([5, 40]),
        queue=st.sampled_from([0, 1, 3, 50]),
        start=st.floats(0, 1e6),
    )
    def begin(self, initial, maximum, queue, start):
        self.now = start
        self.policy = ConcurrencyPolicy(initial=initial, maximum=maximum, queue=queue, probe_interval=5.0)
        self.places = Places(self.policy, threading.Lock(), start)
        self.attempts = []  # when each of those in flight began
        self.abandoned = []  # (until, when it began): given up, the place still taken
        self.waiting = []  # (waiter, hurries at), by age
        self.granted = []
        self.gone = []
        self.refused = 0
        self.woken = set()

    def limit(self):
        return self.places.statistics(self.now).limit

    def in_flight(self):
        return len(self.attempts) + len(self.granted) + len(self.abandoned)

    def expire(self):
        """What was given up and is over by now leaves its place, and a stated limit is tried one higher in its time.
        Looked at whenever places are given out."""
        self.places._limit.has_room(self.now)
        self.abandoned = [entry for entry in self.abandoned if entry[0] > self.now]

    def admit(self):
        """Give free places to those who wait, as the module's docstring says."""
        self.expire()
        while self.waiting and self.in_flight() < self.limit():
            highest = max(waiter.priority for waiter, _ in self.waiting)
            candidates = [entry for entry in self.waiting if entry[0].priority == highest]
            chosen = candidates[-1 if self.now > candidates[0][1] else 0]
            self.waiting.remove(chosen)
            self.granted.append(chosen[0])
            assert self.in_flight() <= math.ceil(self.limit())

    @rule(seconds=st.one_of(st.floats(0, 0.1), st.floats(0, 20)))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def try_enter(self):
        if not self.waiting:
            self.expire()
        free = self.in_flight() < self.limit()
        assert (free and not self.waiting) is self.places.try_enter(self.now)
        if free and not self.waiting:
            self.attempts.append(self.now)
            assert self.in_flight() <= math.ceil(self.limit())

    @rule()
    def fill(self):
        if not self.waiting:
            self.expire()
        while self.places.try_enter(self.now):
            self.attempts.append(self.now)
            assert self.in_flight() <= math.ceil(self.limit())

    @rule(priority=st.integers(-1, 2), patience=st.one_of(st.none(), st.floats(0, 10)), attach_late=st.booleans())
    def queue(self, priority, patience, attach_late):
        until = None if patience is None else self.now + patience
        self.expire()
        full = len(self.waiting) >= self.policy.queue and self.in_flight() >= self.limit()
        loser = None
        if full and self.waiting:
            least = min(waiter.priority for waiter, _ in self.waiting)
            loser = next(entry for entry in self.waiting if entry[0].priority == least)
        waiter = self.places.queue(self.now, priority, until)
        if full:
            self.refused += 1
            if loser is None or loser[0].priority >= priority:
                assert self.places.seconds_to_empty() == waiter
                return
            self.waiting.remove(loser)
            assert loser[0].refused
            self.gone.append(loser[0])
        if not attach_late:
            waiter.attach(lambda: self.woken.add(waiter))
        self.waiting.append((waiter, waiter.hurries_at))
        self.admit()
        if attach_late:
            waiter.attach(lambda: self.woken.add(waiter))

    @precondition(lambda self: self.waiting)
    @rule(index=INDEX)
    def leave_waiting(self, index):
        waiter, _ = self.waiting.pop(index % len(self.waiting))
        self.places.leave(waiter, self.now)
        self.gone.append(waiter)
        self.admit()

    @precondition(lambda self: self.granted)
    @rule(index=INDEX)
    def leave_with_a_place(self, index):
        waiter = self.granted.pop(index % len(self.granted))
        self.places.leave(waiter, self.now)
        self.gone.append(waiter)
        self.admit()

    @precondition(lambda self: any(waiter.left or waiter.refused for waiter in self.gone))
    @rule()
    def leave_again_or_refused(self):
        before = self.places.statistics(self.now)
        for waiter in self.gone[-4:]:
            if waiter.left or waiter.refused:
                self.places.leave(waiter, self.now)
        assert before == self.places.statistics(self.now)

    @precondition(lambda self: self.granted)
    @rule(index=INDEX)
    def begin_attempt(self, index):
        """Who was granted a place goes on with it."""
        self.gone.append(self.granted.pop(index % len(self.granted)))
        self.attempts.append(self.now)

    @precondition(lambda self: self.attempts)
    @rule(index=INDEX, size=st.sampled_from(SIZES))
    def first_content(self, index, size):
        """An answer is told while its attempt stays in flight."""
        started = self.attempts[index % len(self.attempts)]
        self.answer(Sample(started, self.now - started, size, None))

    def answer(self, sample):
        self.places.answered(self.now, sample)
        self.abandoned = [entry for entry in self.abandoned if entry[1] >= sample.started]
        if self.waiting:
            self.admit()

    @precondition(lambda self: self.attempts)
    @rule(index=INDEX, size=st.sampled_from(SIZES))
    def abandon(self, index, size):
        """An attempt is given up: its place is free when the usual time is over, or twice the time that it took."""
        started = self.attempts.pop(index % len(self.attempts))
        usual, elapsed = self.places.expected(stream=size[0]), self.now - started
        self.places.abandon(self.now, Sample(started, elapsed, size, None))
        left = min(max(usual - elapsed, elapsed), 10 * (usual or 1.0))
        self.abandoned.append((self.now + left, started))
        self.admit()

    @precondition(lambda self: self.waiting)
    @rule(index=INDEX)
    def look_again(self, index):
        """A call that waits comes back to give out what is over by now; it is told to do so again later."""
        assert self.places.look_again(self.now, self.waiting[index % len(self.waiting)][0]) >= self.now
        self.admit()

    @precondition(lambda self: self.attempts)
    @rule(
        index=INDEX,
        count=st.sampled_from([1, 4, 20]),
        how=st.sampled_from(["begun to answer", "answered", "overloaded", "timed out"]),
        size=st.sampled_from(SIZES),
        allowed=st.sampled_from([None, 1.0]),
    )
    def end(self, index, count, how, size, allowed):
        """Some attempts come to an end: each tells how, unless its first content did, then gives its place back."""
        for _ in range(min(count, len(self.attempts))):
            started = self.attempts.pop(index % len(self.attempts))
            sample = Sample(started, self.now - started, size, allowed)
            if how == "answered":
                self.attempts.append(started)
                self.answer(sample)
                self.attempts.remove(started)
            elif how == "overloaded":
                self.places.overloaded(self.now, started)
            elif how == "timed out":
                self.places.timed_out(self.now, sample)
            self.places.exit(self.now, self.now)
            self.admit()

    @precondition(lambda self: self.attempts)
    @rule(index=INDEX, limit=st.integers(0, 12))
    def state(self, index, limit):
        started = self.attempts.pop(index % len(self.attempts))
        self.places.overloaded(self.now, started, stated=limit)
        assert self.limit() <= max(limit, 1)
        self.places.exit(self.now, self.now)
        self.admit()

    @invariant()
    def nothing_is_lost(self):
        seen = self.places.statistics(self.now)
        over = sum(until <= self.now for until, _ in self.abandoned)
        assert (self.in_flight() - over, len(self.waiting), self.refused) == (seen.in_flight, seen.queued, seen.refused)
        assert 0 <= seen.in_flight
        assert seen.queued <= self.policy.queue
        assert not seen.queued or seen.in_flight + over >= seen.limit
        assert 1 <= seen.limit <= self.policy.maximum
        assert not math.isnan(seen.load)

    @invariant()
    def waiters_know_where_they_are(self):
        for waiter, _ in self.waiting:
            assert not any((waiter.granted, waiter.refused, waiter.left, waiter.rung))
        for waiter in self.granted:
            assert waiter.granted
            assert not waiter.refused
        for waiter in [*self.granted, *self.gone]:
            assert not (waiter.granted and waiter.refused)
            assert (waiter.granted or waiter.refused) is waiter.rung is (waiter in self.woken)


TestPlaces = PlacesMachine.TestCase
TestPlaces.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
