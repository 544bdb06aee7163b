"""core/routing.py, core/outliers.py, config/routing.py: shares; slow, dead, new and leaving upstreams."""

import copy
import dataclasses
import math
import pickle
import threading
from collections import Counter
from random import Random

import pytest

from deepseek_resilient.config.routing import RoutingPolicy, Upstream
from deepseek_resilient.core.routing import Router, UpstreamStatistics
from deepseek_resilient.core.verdict import VerdictKind
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.errors import ConfigError

OK, FAULT, THROTTLED = VerdictKind.OK, VerdictKind.FAULT, VerdictKind.THROTTLED
WEIGHTS = {"a": 5, "b": 3, "c": 2}


def make(weights=None, seed=1, now=0.0, **policy):
    upstreams = tuple(Upstream("https://" + name, weight=weight) for name, weight in (weights or WEIGHTS).items())
    return Router(RoutingPolicy(upstreams=upstreams, **policy), threading.RLock(), Random(seed), now)


def state(router, name, now):
    return router.statistics(now)[name].state


def call(router, now, outcome=OK, seconds=0.1, only=None):
    """One call from `now` on that ends at once in our time."""
    names = router.statistics(now) if only else ()
    pick = router.pick(now, exclude=[name for name in names if name != only])
    router.finish(pick, now + seconds, outcome)
    return pick.upstream.name


class World:
    """Calls in virtual time; `service` and `outcome` say how each upstream answers. No answer takes more than 60 s."""

    def __init__(self, seed=1, tokens=None, **options):
        self.clock = VirtualScheduler()
        self.random = Random(seed)
        self.router = make(seed=seed, **options)
        names = self.router.statistics(0.0)
        self.service = dict.fromkeys(names, lambda: 0.1)
        self.outcome = dict.fromkeys(names, OK)
        self.tokens = tokens or (lambda: 0)
        self.calls = []

    def call(self, then=None):
        began = self.clock.time()
        pick = self.router.pick(began, self.tokens())
        name = pick.upstream.name
        seconds = self.service[name]()
        outcome = self.outcome[name] if seconds <= 60.0 else VerdictKind.TIMEOUT
        seconds = min(seconds, 60.0)
        self.calls.append((began, name, seconds))

        def end():
            self.router.finish(pick, self.clock.time(), outcome)
            if then is not None and self.clock.time() < self.until:
                then()

        self.clock.call_later(seconds, end)

    def arrive(self, rate, until):
        """Calls at random moments, `rate` per second."""
        when = self.clock.time()
        while (when := when + self.random.expovariate(rate)) < until:
            self.clock.call_at(when, self.call)
        self.clock.run_until(until)

    def circle(self, callers, until):
        """Callers that call again as soon as they are answered."""
        self.until = until
        again = lambda: self.call(again)  # noqa: E731
        for _ in range(callers):
            again()
        self.clock.run_until(until)

    def shares(self, since=0.0, until=math.inf):
        """Per cent of the calls per upstream."""
        count = Counter(name for began, name, _ in self.calls if since <= began < until)
        return {name: 100 * count[name] / count.total() for name in self.service}

    def p99(self, since, until):
        seconds = sorted(s for began, _, s in self.calls if since <= began < until)
        return seconds[int(0.99 * len(seconds))]


FIVE_THREE_TWO = pytest.approx({"a": 50, "b": 30, "c": 20}, abs=3)


@pytest.mark.parametrize("callers", [1, 2, 3, 10, 100])
def test_equal_upstreams_share_by_weight_whatever_the_concurrency(callers):
    """One caller or a hundred: 5/3/2 within a point."""
    world = World()
    world.circle(callers, 60.0)
    assert pytest.approx({"a": 50, "b": 30, "c": 20}, abs=1) == world.shares()


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rate", [5.0, 30.0, 300.0])
def test_equal_upstreams_share_by_weight_at_random_arrivals(rate, spread):
    """Also when answers take lognormal times of the same law, as they do where their lengths differ."""
    world = World(seed=4)
    world.service = dict.fromkeys(world.service, lambda: world.random.lognormvariate(math.log(0.1), spread))
    world.arrive(rate, max(60.0, 3000 / rate))
    assert FIVE_THREE_TWO == world.shares()


@pytest.mark.parametrize("count", [8, 20])
def test_many_share_by_weight_too(count):
    """Also beyond eight, where only some are compared."""
    world = World(weights={f"u{number:02}": 1 + number % 3 for number in range(count)})
    world.arrive(100.0, 60.0)
    total = sum(1 + number % 3 for number in range(count))
    assert [100 * (1 + number % 3) / total for number in range(count)] == pytest.approx(
        list(world.shares().values()), abs=1
    )


def test_one_by_one_follows_the_weights_in_order():
    """Ten calls in a row are spread 5/3/2, not five to the first and then three to the second."""
    router = make()
    names = [call(router, number) for number in range(40)]
    for first in range(0, 40, 10):
        assert WEIGHTS == pytest.approx(Counter(names[first : first + 10]), abs=1)
    assert 3 >= max(len(run) for run in "".join(names).replace("b", " ").replace("c", " ").split())


@pytest.mark.parametrize("slow", ["a", "b", "c"])
@pytest.mark.parametrize("seed", range(3))
def test_a_slow_one_loses_its_traffic_and_gets_it_back(slow, seed):
    """Ten times slower: under a tenth within 2 s, p99 of all as before, a trickle meanwhile; back within 30 s."""
    world = World(seed=seed)
    world.arrive(30.0, 20.0)
    world.service[slow] = lambda: 1.0
    world.arrive(30.0, 80.0)
    world.service[slow] = lambda: 0.1
    world.arrive(30.0, 150.0)
    assert 10 > world.shares(21.0, 22.0)[slow]
    assert 10 > world.shares(22.0, 24.0)[slow]
    assert 0 < world.shares(30.0, 80.0)[slow] < 1
    assert world.p99(20.0, 80.0) <= 1.3 * world.p99(0.0, 20.0)
    assert FIVE_THREE_TWO == world.shares(110.0, 150.0)


def test_a_little_slower_is_tolerated():
    """Up to twice the least latency changes no share; three times does."""
    world = World()
    world.service["b"] = lambda: 0.15
    world.arrive(30.0, 60.0)
    assert FIVE_THREE_TWO == world.shares()
    world.service["b"] = lambda: 0.3
    world.arrive(30.0, 120.0)
    assert 3 < world.shares(65.0, 120.0)["b"] < 15


@pytest.mark.parametrize("slow", ["a", "c"])
def test_one_that_hangs_loses_its_traffic_within_a_second(slow):
    """No answer at all is learnt from the calls in flight."""
    world = World()
    world.arrive(30.0, 20.0)
    world.service[slow] = lambda: math.inf
    world.arrive(30.0, 40.0)
    assert 0 == world.shares(21.0, 25.0)[slow]
    assert 2 > world.shares(21.0, 40.0)[slow]


@pytest.mark.parametrize("dead", ["a", "c"])
def test_one_that_fails_at_once_loses_its_traffic_within_a_second(dead):
    """Its fast failures do not attract calls; it is ejected, tried by few, and back when it answers."""
    world = World()
    world.arrive(30.0, 20.0)
    world.service[dead], world.outcome[dead] = lambda: 0.001, FAULT
    world.arrive(30.0, 60.0)
    assert 5 > world.shares(21.0, 22.0)[dead]
    assert 1 > world.shares(22.0, 60.0)[dead]
    assert "ejected" == state(world.router, dead, 60.0)
    world.service[dead], world.outcome[dead] = lambda: 0.1, OK
    world.arrive(30.0, 180.0)
    assert FIVE_THREE_TWO == world.shares(140.0, 180.0)
    assert "healthy" == state(world.router, dead, 180.0)


def test_all_dead_is_still_tried():
    """When everything fails every call still gets an upstream, and the shares come back with the answers."""
    world = World()
    world.arrive(30.0, 10.0)
    world.outcome = dict.fromkeys(world.outcome, FAULT)
    world.arrive(30.0, 30.0)
    states = [one.state for one in world.router.statistics(30.0).values()]
    assert 1 >= states.count("ejected")
    world.outcome = dict.fromkeys(world.outcome, OK)
    world.arrive(30.0, 120.0)
    assert FIVE_THREE_TWO == world.shares(80.0, 120.0)


def test_a_throttling_one_is_spared_but_not_ejected():
    """A 429 moves calls elsewhere; it says nothing of the server's health."""
    world = World()
    world.outcome["a"] = THROTTLED
    world.service["a"] = lambda: 0.01
    world.arrive(30.0, 60.0)
    assert 10 > world.shares(10.0, 60.0)["a"]
    assert "healthy" == state(world.router, "a", 60.0)


def test_the_less_loaded_is_preferred():
    """Of two equal ones, the one with calls in flight waits."""
    router = make({"a": 1, "b": 1})
    held = [router.pick(0.0) for _ in range(4)]
    assert {"a": 2, "b": 2} == Counter(pick.upstream.name for pick in held)
    for pick in held:
        if pick.upstream.name == "a":
            router.finish(pick, 0.1, OK)
    assert ["a", "a"] == [router.pick(0.1).upstream.name for _ in range(2)]


def test_tokens_in_flight_are_load_too():
    """A large prompt counts more than a small one, until it is answered; in the long run calls go by weight."""
    router = make({"a": 1, "b": 1})
    for number in range(100):
        router.finish(router.pick(number, 100), number + 0.1, OK)
    large = router.pick(200.0, 2000)
    name = large.upstream.name
    assert 2000 == router.statistics(200.0)[name].tokens
    others = [router.pick(200.0, 100).upstream.name for _ in range(4)]
    assert 0 == others.count(name)
    world = World(tokens=lambda: world.random.choice([10, 100, 10_000]))
    world.circle(10, 60.0)
    assert FIVE_THREE_TWO == world.shares()


def test_the_first_content_of_a_stream_counts_as_its_answer():
    """A long stream that has begun is in flight, but nobody waits: it makes its upstream no slower."""
    router = make({"a": 1, "b": 1})
    for number in range(100):
        pick = router.pick(number / 10)
        router.commit(pick, number / 10 + 0.05)
        router.commit(pick, number / 10 + 0.06)
        router.finish(pick, number / 10 + (9.0 if pick.upstream.name == "a" else 0.06), OK)
    seen = router.statistics(10.0)
    assert [0.05, 0.05] == pytest.approx([one.latency for one in seen.values()], rel=0.3)
    assert [1.0, 1.0] == [one.weight for one in seen.values()]


def test_a_stream_that_ends_badly_counts_as_failed():
    """After its first content too."""
    router = make({"a": 1, "b": 1}, eject_failures=1)
    pick = router.pick(0.0)
    router.commit(pick, 0.1)
    router.finish(pick, 1.0, VerdictKind.TRUNCATED)
    assert "ejected" == state(router, pick.upstream.name, 1.0)


@pytest.mark.parametrize("outcome", [None, VerdictKind.CALLER_FAULT, THROTTLED])
def test_what_says_nothing_of_the_health_ejects_nobody(outcome):
    """Abandoned calls, wrong requests and throttling are no failures, and end no streak of them."""
    router = make({"a": 1, "b": 1}, eject_failures=2, eject_share=None)
    for number in range(20):
        call(router, number, outcome, only="a")
    assert "healthy" == state(router, "a", 20.0)
    for result in (FAULT, outcome, FAULT):
        call(router, 20.0, result, only="a")
    assert "ejected" == state(router, "a", 20.5)


def test_excluded_ones_are_not_picked():
    """None when nobody else is left."""
    router = make()
    assert {"b"} == {router.pick(0.0, exclude=("a", "c")).upstream.name for _ in range(20)}
    assert router.pick(0.0, exclude={"a", "b", "c"}) is None
    assert Router(RoutingPolicy(), threading.RLock(), Random(1), 0.0).pick(0.0) is None


def test_of_many_the_only_free_one_is_found():
    """Also when it is not among those drawn."""
    names = [f"u{number}" for number in range(12)]
    router = make(dict.fromkeys(names, 1))
    assert {"u7"} == {router.pick(0.0, exclude=set(names) - {"u7"}).upstream.name for _ in range(30)}


def test_failures_in_a_row_eject_for_a_growing_time():
    """Five in a row eject for about 2 s; the first failure after the return for 4 s, up to the most."""
    router = make({"a": 1, "b": 1}, max_ejection=7.0)
    for number in range(5):
        assert "healthy" == state(router, "a", number)
        call(router, number, FAULT, only="a")
    now = 4.1
    for seconds in (2.0, 4.0, 7.0, 7.0):
        seen = router.statistics(now)["a"]
        assert ("ejected", 0.0) == (seen.state, seen.weight)
        assert seconds == pytest.approx(seen.out_for, rel=0.1)
        assert {"b"} == {router.pick(now).upstream.name for _ in range(5)}
        now += seen.out_for
        assert "warming" == state(router, "a", now)
        call(router, now, FAULT, seconds=0.0, only="a")


def test_a_success_after_the_return_makes_it_one_like_all_others():
    """Then it takes five failures again; and after the warm-up the first ejection is short again."""
    router = make({"a": 1, "b": 1}, eject_failures=3, warm_up=4.0)
    for now in (0.0, 0.1, 0.2):
        call(router, now, FAULT, seconds=0.0, only="a")
    assert "ejected" == state(router, "a", 0.3)
    now = 0.2 + router.statistics(0.2)["a"].out_for
    call(router, now, OK, only="a")
    for _ in range(2):
        call(router, now, FAULT, only="a")
    assert "warming" == state(router, "a", now)
    call(router, now + 4.0, OK, only="a")
    for _ in range(3):
        call(router, now + 5.0, FAULT, seconds=0.0, only="a")
    assert 2.0 == pytest.approx(router.statistics(now + 5.0)["a"].out_for, rel=0.1)


def test_a_share_of_failures_above_the_others_ejects():
    """Three in four fail, never five in a row; where the others fail as often, nobody is ejected."""
    for others, expected in ((OK, "ejected"), (FAULT, "healthy")):
        router = make({"a": 1, "b": 1})
        for number in range(24):
            call(router, number / 10, OK if number % 4 == 3 else FAULT, only="a")
            call(router, number / 10, OK if number % 4 == 3 else others, only="b")
            if state(router, "a", number / 10) == "ejected":
                break
        assert expected == state(router, "a", number / 10)


@pytest.mark.parametrize(("failures", "share"), [(None, None), (None, 0.5), (3, None)])
def test_each_kind_of_ejection_can_be_off(failures, share):
    """None turns it off; without both nobody is ejected."""
    router = make({"a": 1, "b": 1}, eject_failures=failures, eject_share=share)
    for number in range(12):
        call(router, number / 10, FAULT, only="a")
        if state(router, "a", number / 10 + 0.1) == "ejected":
            break
    assert {(None, None): 11, (None, 0.5): 5, (3, None): 2}[failures, share] == pytest.approx(number, abs=1)
    assert (failures or share) is None or "ejected" == state(router, "a", number / 10 + 0.1)


@pytest.mark.parametrize(("count", "share", "out"), [(1, 1.0, 0), (2, 0.0, 1), (2, 1.0, 1), (4, 0.5, 2), (4, 1.0, 3)])
def test_no_more_than_the_share_is_ejected_and_never_all(count, share, out):
    """Of one none, of two or more at least one may be."""
    names = [f"u{number}" for number in range(count)]
    router = make(dict.fromkeys(names, 1), max_ejected=share, eject_failures=1)
    for name in names:
        call(router, 0.0, FAULT, seconds=0.0, only=name)
        for other in names:
            if state(router, other, 0.0) == "healthy":
                call(router, 0.0, OK, only=other)
                call(router, 0.0, OK, only=other)
    assert out == [one.state for one in router.statistics(0.1).values()].count("ejected")


def test_ejections_are_disregarded_when_too_few_are_left():
    """The healthy one rests or is gone: better an ejected one than none. What fails then ejects nobody further."""
    router = make({"a": 1, "b": 1}, eject_failures=1, warm_up=0.0)
    call(router, 0.0, FAULT, seconds=0.0, only="a")
    router.rest("b", 0.1, 0.5)
    assert "a" == call(router, 0.2, FAULT, seconds=0.0)
    assert "a" == call(router, 0.3, OK, seconds=0.0)
    assert 2.2 > router.statistics(0.3)["a"].out_for
    assert {"b"} == {call(router, 0.6) for _ in range(4)}


def test_a_verdict_from_before_the_ejection_is_the_past():
    """Calls that were in flight neither eject again after the return nor clear the suspicion."""
    router = make({"a": 1, "b": 1}, eject_failures=2)
    old = [router.pick(0.0, exclude="b") for _ in range(4)]
    for pick in old[:2]:
        router.finish(pick, 1.0, FAULT)
    now = 1.0 + router.statistics(1.0)["a"].out_for
    router.finish(old[2], now, FAULT)
    assert "warming" == state(router, "a", now)
    router.finish(old[3], now, OK)
    call(router, now, FAULT, seconds=0.0, only="a")
    assert "ejected" == state(router, "a", now)


def test_a_rest_ends_to_the_instant_and_is_never_shortened():
    """No pick before its end, the first one at it; then it warms up."""
    router = make({"a": 1, "b": 1})
    assert router.rest("a", 10.0, 5.0)
    assert not router.rest("a", 11.0, 2.0)
    assert not router.rest("a", 10.0, 0.0)
    assert not router.rest("nobody", 10.0, 5.0)
    assert ("resting", 5.0) == (router.statistics(10.0)["a"].state, router.statistics(10.0)["a"].out_for)
    assert router.pick(14.999, exclude="b") is None
    assert "a" == router.pick(15.0, exclude="b").upstream.name
    assert "warming" == state(router, "a", 15.0)


def test_a_new_one_warms_up():
    """It begins at a tenth of its weight, has half of it at half time, and its share at the end; no burst before."""
    router = make({"a": 1})
    router.add(Upstream("https://c", weight=2.0), 20.0)
    assert pytest.approx([0.2, 0.2, 1.0, 2.0]) == [
        router.statistics(now)["c"].weight for now in (20.0, 20.5, 25.0, 30.0)
    ]
    world = World(weights={"a": 1, "b": 1})
    world.arrive(50.0, 20.0)
    assert world.router.add(Upstream("https://c", weight=2.0), 20.0)
    world.service["c"], world.outcome["c"] = world.service["a"], OK
    world.arrive(50.0, 21.0)
    assert 15 > world.shares(20.0, 21.0)["c"]
    world.arrive(50.0, 60.0)
    assert pytest.approx({"a": 25, "b": 25, "c": 50}, abs=3) == world.shares(31.0, 60.0)


def test_without_warm_up_it_has_its_weight_at_once():
    """`warm_up=0`."""
    router = make({"a": 1}, warm_up=0.0)
    router.add(Upstream("https://b", weight=3.0), 5.0)
    assert UpstreamStatistics("healthy", 0, 0, None, 3.0, 0, 0.0) == router.statistics(5.0)["b"]


def test_a_drained_one_ends_its_calls():
    """No new picks; those in flight count down; added again, it is back with them."""
    router = make({"a": 1, "b": 1})
    held = [router.pick(0.0) for _ in range(4)]
    mine = [pick for pick in held if pick.upstream.name == "a"]
    assert router.drain("a")
    assert not router.drain("a")
    assert not router.drain("nobody")
    assert {"b"} == {router.pick(0.1).upstream.name for _ in range(5)}
    router.finish(mine[0], 0.2, OK)
    assert ("draining", 1) == (state(router, "a", 0.2), router.statistics(0.2)["a"].in_flight)
    assert router.add(mine[1].upstream, 0.3)
    assert not router.add(mine[1].upstream, 0.4)
    assert ("warming", 1) == (state(router, "a", 0.4), router.statistics(0.4)["a"].in_flight)
    router.finish(mine[1], 0.5, OK)
    assert 0 == router.statistics(0.5)["a"].in_flight


def test_a_removed_one_is_forgotten():
    """What is in flight to it may end as it likes, also when one of the same name has come since."""
    router = make({"a": 1, "b": 1})
    pick = router.pick(0.0, 10, exclude="b")
    assert router.remove("a")
    assert not router.remove("a")
    router.add(Upstream("https://a"), 0.1)
    router.commit(pick, 0.2)
    router.finish(pick, 0.2, FAULT)
    assert UpstreamStatistics("warming", 0, 0, None, 0.1, 0, 0.0) == router.statistics(0.2)["a"]


def test_weights_can_change():
    """From then on shares follow the new weight; a replaced definition brings its own."""
    world = World(weights={"a": 1, "b": 1})
    world.arrive(30.0, 10.0)
    assert world.router.set_weight("b", 3.0)
    assert not world.router.set_weight("nobody", 3.0)
    world.arrive(30.0, 60.0)
    assert pytest.approx({"a": 25, "b": 75}, abs=3) == world.shares(10.0, 60.0)
    world.clock.run_until(61.0)
    world.router.add(Upstream("https://b", weight=1.5), 61.0)
    assert 1.5 == world.router.statistics(71.0)["b"].weight


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, 0.0009, 1001])
def test_a_weight_out_of_range_is_refused(weight):
    """By name, with what is allowed."""
    with pytest.raises(ConfigError, match=r"weight of a=.*: must be a number from 0.001 to 1000"):
        make().set_weight("a", weight)


def test_a_clock_read_before_another_threads_does_no_harm():
    """An older `now` counts as no time at all."""
    router = make()
    pick = router.pick(10.0)
    assert router.pick(9.0) is not None
    router.finish(pick, 8.0, OK)
    seen = router.statistics(9.0)
    assert 1 == sum(one.in_flight for one in seen.values())
    assert all(one.latency is None or one.latency >= 0 for one in seen.values())


def test_engines_do_not_begin_in_step():
    """The first calls of many processes do not all go to the same upstream."""
    first = Counter(make(seed=seed).pick(0.0).upstream.name for seed in range(300))
    assert 3 == len(first)
    assert 30 < min(first.values())


# the policy


@pytest.mark.parametrize(
    "url",
    ["", "api.deepseek.com", "ftp://host", "https://", "https:///v1", "https://h?q=1", "https://h#f", "https://u@h",
     "https://u:secret@h", "https://h:99999", "https://h:x", "https://h:0", "https://h/a b", "https://hé", "http://[1",
     "https://h/\n", None, 3, b"https://h"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url):
    """Scheme, host and port; no credentials, no query, and none of a secret in the error."""
    with pytest.raises(ConfigError, match=r"Upstream.base_url=.*: must be an http:// or https:// address") as caught:
        Upstream(url)
    assert "secret" not in str(caught.value)


BAD_UPSTREAM = {
    "name": [None, 3, "a\nb"],
    "api_key": ["", "a b", "schlüssel", "a\n", 3],
    "weight": [0, -1, None, True, "1", math.nan, math.inf, 0.0009, 1000.1],
    "models": [None, [], "x", {"a": 1}, {1: "a"}, {"": "a"}, {"a": ""}],
    "max_concurrency": [0, 1.5, True, "1"],
    "price": [-0.01, "1", True, math.inf],
    "kind": ["", None, "Remote"],
}
BAD_POLICY = {
    "upstreams": [None, [Upstream("http://a")], ("http://a",), (Upstream("http://a"), Upstream("https://a"))],
    "decay": [0, None, math.inf, "1"],
    "choices": [1, 2.0, None],
    "warm_up": [-1, None],
    "eject_failures": [0, 1.5, True],
    "eject_share": [0, 1.01, True],
    "ejection": [0, None, 61],
    "max_ejection": [1.9, None],
    "max_ejected": [-0.1, 1.1, None],
}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(Upstream, name, value) for name, values in BAD_UPSTREAM.items() for value in values]
    + [(RoutingPolicy, name, value) for name, values in BAD_POLICY.items() for value in values],
)
def test_a_wrong_value_is_refused_by_name(kind, name, value):
    """The error names the field, and says what is allowed."""
    with pytest.raises(ConfigError) as caught:
        kind(**({"base_url": "http://a"} if kind is Upstream else {}), **{name: value})
    assert f"{kind.__name__}.{'max_ejection' if value == 61 else name}" == caught.value.field
    assert caught.value.allowed


def test_the_edges_of_a_range_are_allowed():
    """Each documented edge is a value like any other."""
    for weight in (0.001, 1000):
        assert weight == Upstream("http://a", weight=weight, max_concurrency=1, price=0, kind="local").weight
    policy = RoutingPolicy(warm_up=0, eject_failures=1, eject_share=1, ejection=2, max_ejection=2, max_ejected=0)
    assert 1 == dataclasses.replace(policy, max_ejected=1).max_ejected


def test_a_key_is_never_shown():
    """Neither in the representation nor in an error."""
    assert "secret" not in repr(RoutingPolicy(upstreams=(Upstream("https://a", api_key="secret"),)))
    with pytest.raises(ConfigError) as caught:
        Upstream("https://a", api_key="secret key")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"), [("https://api.deepseek.com/v1", "api.deepseek.com"), ("http://[::1]:80", "[::1]:80")]
)
def test_the_name_is_the_host_unless_given(url, name):
    """With the port; a name of one's own goes before it."""
    assert name == Upstream(url).name
    assert "mine" == Upstream(url, name="mine").name


def test_models_are_renamed_or_passed_on():
    """What the table does not name is the same there."""
    table = {"deepseek-chat": "ds-v3"}
    upstream = Upstream("https://a", models=table)
    table["x"] = "y"
    assert ["ds-v3", "x"] == [upstream.model("deepseek-chat"), upstream.model("x")]
    assert {"deepseek-chat": "ds-v3"} == upstream.models
    assert 1 == len(upstream.models)


def test_policies_are_values():
    """Equal ones are one in a set; they can be copied, pickled and varied."""
    one, two = (
        RoutingPolicy(upstreams=(Upstream("https://a", models={"m": "n"}), Upstream("https://b"))) for _ in range(2)
    )
    assert {one} == {two}
    assert one == pickle.loads(pickle.dumps(one)) == copy.deepcopy(one)  # noqa: S301
    assert one != dataclasses.replace(one, upstreams=one.upstreams[:1])
    assert "{'m': 'n'}" in repr(one)
