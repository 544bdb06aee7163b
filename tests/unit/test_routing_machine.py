"""core/routing.py: whatever is picked, given back, added, drained, removed and rested, nothing is lost."""

import threading
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepseek_resilient.config.routing import RoutingPolicy, Upstream
from deepseek_resilient.core.routing import Router
from deepseek_resilient.core.verdict import VerdictKind

NAMES = [f"u{number}" for number in range(12)]


def upstream(name, weight=1.0, key=None):
    return Upstream("https://" + name, weight=weight, api_key=key)


class RouterMachine(RuleBasedStateMachine):
    """Any use, beside plain lists of who is there and what is in flight."""

    @initialize(
        count=st.sampled_from([0, 1, 2, 3, 12]),
        failures=st.sampled_from([None, 1, 3]),
        share=st.sampled_from([None, 0.3]),
        max_ejected=st.sampled_from([0.0, 0.5, 1.0]),
        warm_up=st.sampled_from([0.0, 5.0]),
        start=st.floats(0, 1e6),
    )
    def begin(self, count, failures, share, max_ejected, warm_up, start):
        self.now = start
        first = [upstream(name, 0.5 + number) for number, name in enumerate(NAMES[:count])]
        self.policy = RoutingPolicy(
            upstreams=tuple(first), eject_failures=failures, eject_share=share, max_ejected=max_ejected,
            warm_up=warm_up, ejection=1.0,
        )  # fmt: skip
        self.router = Router(self.policy, threading.RLock(), Random(7), start)
        self.known = {each.name: each for each in first}
        self.draining = set()
        self.rests = dict.fromkeys(self.known, 0.0)
        self.picks = []
        self.done = []
        self.orphans = []
        self.made = dict.fromkeys(self.known, 0)

    def alive(self):
        return {name for name in self.known if name not in self.draining and self.rests[name] <= self.now}

    def in_flight(self, name):
        return sum(pick.upstream.name == name for pick in self.picks)

    def candidates(self):
        """The alive ones that are not ejected; all of them when more than allowed are."""
        alive = self.alive()
        seen = self.router.statistics(self.now)
        ejected = {name for name in alive if seen[name].state == "ejected"}
        allowed = min(max(1, int(self.policy.max_ejected * len(alive))), len(alive) - 1)
        return alive if len(ejected) > allowed else alive - ejected

    @rule(seconds=st.one_of(st.floats(0, 0.05), st.floats(0, 30)))
    def pass_time(self, seconds):
        self.now += seconds

    @precondition(lambda self: any(rest > self.now for rest in self.rests.values()))
    @rule()
    def pass_time_to_the_end_of_a_rest(self):
        self.now = min(rest for rest in self.rests.values() if rest > self.now)

    @rule(tokens=st.integers(0, 5000), exclude=st.sets(st.sampled_from(NAMES), max_size=4))
    def pick(self, tokens, exclude):
        free = self.candidates() - exclude
        pick = self.router.pick(self.now, tokens, exclude)
        if not free:
            assert pick is None
            return
        assert pick.upstream.name in free
        assert self.known[pick.upstream.name] == pick.upstream
        assert (self.now, tokens) == (pick.started, pick.tokens)
        self.picks.append(pick)
        self.made[pick.upstream.name] += 1

    @precondition(lambda self: self.picks)
    @rule(
        index=st.integers(0, 1000),
        outcome=st.one_of(st.none(), st.sampled_from(VerdictKind)),
        committed=st.booleans(),
        late=st.floats(0, 0.01),
    )
    def finish(self, index, outcome, committed, late):
        pick = self.picks.pop(index % len(self.picks))
        if committed:
            self.router.commit(pick, self.now)
        self.router.finish(pick, self.now - late, outcome)
        self.done.append(pick)

    @precondition(lambda self: self.picks)
    @rule()
    def fail_everything(self):
        for pick in self.picks:
            self.router.finish(pick, self.now, VerdictKind.FAULT)
        self.done += self.picks
        self.picks = []

    @precondition(lambda self: self.done or self.orphans)
    @rule(outcome=st.sampled_from(VerdictKind))
    def finish_again_or_when_removed(self, outcome):
        before = self.router.statistics(self.now)
        for pick in [*self.done[-3:], *self.orphans]:
            self.router.commit(pick, self.now)
            self.router.finish(pick, self.now, outcome)
        self.orphans = []
        assert before == self.router.statistics(self.now)

    @rule(name=st.sampled_from(NAMES), weight=st.sampled_from([0.001, 1.0, 1000.0]))
    def add(self, name, weight):
        new = upstream(name, weight)
        same = self.known.get(name) == new and name not in self.draining
        assert self.router.add(new, self.now) is not same
        if not same:
            self.known[name] = new
            self.draining.discard(name)
            self.rests[name] = 0.0
            self.made.setdefault(name, 0)

    @rule(name=st.sampled_from(NAMES))
    def drain(self, name):
        assert self.router.drain(name) is (name in self.known and name not in self.draining)
        if name in self.known:
            self.draining.add(name)

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name):
        assert self.router.remove(name) is (name in self.known)
        self.draining.discard(name)
        for table in (self.known, self.rests, self.made):
            table.pop(name, None)
        self.orphans += [pick for pick in self.picks if pick.upstream.name == name]
        self.picks = [pick for pick in self.picks if pick.upstream.name != name]

    @rule(name=st.sampled_from(NAMES), seconds=st.floats(-1, 20))
    def rest(self, name, seconds):
        longer = name in self.known and seconds > 0 and self.now + seconds > self.rests[name]
        assert self.router.rest(name, self.now, seconds) is longer
        if longer:
            self.rests[name] = self.now + seconds

    @rule(name=st.sampled_from(NAMES), weight=st.floats(0.001, 1000))
    def set_weight(self, name, weight):
        assert self.router.set_weight(name, weight) is (name in self.known)

    @invariant()
    def statistics_agree(self):
        seen = self.router.statistics(self.now)
        assert set(self.known) == set(seen)
        open_ones = self.candidates()
        for name, one in seen.items():
            mine = [pick for pick in self.picks if pick.upstream.name == name]
            assert (len(mine), sum(pick.tokens for pick in mine)) == (one.in_flight, one.tokens)
            assert self.made[name] == one.picks
            assert (one.weight > 0) is (name in open_ones)
            assert one.latency is None or one.latency >= 0
            assert (name in self.draining) is (one.state == "draining")
            if one.state == "resting":
                assert self.rests[name] > self.now
            assert (one.state == "resting") is (name not in self.draining and self.rests[name] > self.now)
            assert one.out_for >= max(self.rests[name] - self.now, 0.0)


TestRouter = RouterMachine.TestCase
TestRouter.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_threads_lose_nothing():
    """Many threads that pick and give back at once leave nothing in flight, and every pick is counted."""
    router = Router(
        RoutingPolicy(upstreams=(upstream("a", 5), upstream("b", 3), upstream("c", 2))),
        threading.Lock(),
        Random(1),
        0.0,
    )

    def work():
        for number in range(500):
            router.finish(router.pick(number / 100, 10), number / 100 + 0.005, VerdictKind.OK)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seen = router.statistics(10.0)
    assert [(0, 0)] * 3 == [(one.in_flight, one.tokens) for one in seen.values()]
    assert 2000 == sum(one.picks for one in seen.values())
