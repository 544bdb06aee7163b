"""core/hedge.py: what is late, and the ends that no server brings about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient import AdmissionPolicy, HedgePolicy, Policy, wire
from deepseek_resilient.core.effects import Emit, Respond, Spawn, Wait
from deepseek_resilient.core.hedge import Latencies
from deepseek_resilient.core.messages import FailureKind
from deepseek_resilient.core.verdict import Verdict, VerdictKind

from .driving import ANSWER, Bench, Driven, ask, chunk, reply


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0.5, 0.9999))
def test_the_quantile_is_that_of_the_sorted_list(seconds, share):
    """Of all that were added."""
    known = Latencies()
    for one in seconds:
        known.add(one)
    assert sorted(seconds)[int(share * len(seconds))] == known.quantile(share, 1)
    assert known.quantile(share, len(seconds) + 1) is None


def test_the_oldest_makes_room():
    """Of 1,000 slow ones nothing is left after 1,000 fast ones."""
    known = Latencies()
    for seconds in [9.0] * 1000 + [1.0] * 990:
        known.add(seconds)
    assert 9.0 == known.quantile(0.9999, 10)
    for _ in range(10):
        known.add(1.0)
    assert 1.0 == known.quantile(0.9999, 10)


def test_what_was_made_simpler_teaches_nothing():
    """It is another kind of call, and the next one may not be."""
    bench = Bench(Policy(hedge=HedgePolicy(minimum_samples=10)))
    hedges = bench.engine._runtime.hedges
    call = Simple(simplified=("model",))
    for _ in range(20):
        hedges.learn(call, 1.0)
    call.simplified = ()
    assert hedges.delay(call) is None
    for _ in range(10):
        hedges.learn(call, 1.0)
    assert 1.0 < hedges.delay(call) < 1.2


class Simple:
    """As much of a call as hedging looks at."""

    def __init__(self, simplified):
        self.simplified = simplified
        self.max_retries = None
        self.request = ask()
        self.info, _ = wire.identify("POST", self.request.path, self.request.body)


class Beside:
    """A call that may be hedged, by hand: what it begins is there to be driven."""

    def __init__(self, policy=None, *, stream=False, seconds=1.0, **options):
        self.bench = bench = Bench(policy or Policy(hedge=HedgePolicy(minimum_samples=10)))
        answer = [chunk("a", "stop"), b"data: [DONE]\n\n", b""] if stream else [ANSWER, b""]
        for _ in range(10):
            bench.call([reply(), seconds, *answer], request=ask(stream=stream))
        self.coroutine = bench.engine.call(ask(stream=stream, **options), timeout=600.0)
        self.spawned = []
        self.chunks = []
        self.waiting = None

    def go(self):
        """Go on until it waits; a bell that has not rung is waited for in vain if there is a limit."""
        if self.waiting is not None and not self.waiting.bell.rung:
            self.bench.clock.now = self.waiting.until
        answer = None
        while True:
            effect = self.coroutine.send(answer)
            answer = None
            if isinstance(effect, Spawn):
                self.spawned.append(effect)
                answer = effect.coroutine.close
            elif isinstance(effect, Emit):
                self.chunks.append(effect.chunk)
            elif isinstance(effect, Wait) and not effect.bell.rung:
                self.waiting = effect
                return
            else:
                assert isinstance(effect, (Respond, Wait)), effect

    def flight(self, number, answers=()):
        """The call that it began, as a driver has it."""
        return Driven(self.spawned[number].coroutine, self.bench.clock, answers)

    def lose(self, number):
        """Its driver is stopped."""
        self.spawned[number].coroutine.close()
        self.spawned[number].ended()


def outcome_of(beside):
    """What it ends with."""
    with pytest.raises(StopIteration) as stop:
        beside.go()
    return stop.value.value


def test_a_mistake_is_raised():
    """As it would be without a hedge."""
    beside = Beside()
    beside.go()
    flight = beside.flight(0)
    flight.run(limit=1)
    with pytest.raises(StopIteration):
        flight.throw(ValueError("a sender's mistake"))
    with pytest.raises(ValueError, match="a sender's mistake"):
        beside.go()


def test_a_driver_that_was_stopped_is_a_broken_call():
    """Before anything of it came."""
    beside = Beside()
    beside.go()
    beside.lose(0)
    assert FailureKind.BROKEN is outcome_of(beside).kind


def test_a_stream_whose_driver_was_stopped_is_cut():
    """With what came so far."""
    beside = Beside(stream=True)
    beside.go()
    beside.flight(0, [reply(), chunk("hel")]).run(limit=3)
    beside.lose(0)
    assert FailureKind.CUT is outcome_of(beside).kind
    assert [chunk("hel")] == beside.chunks


def test_none_is_begun_under_load():
    """A late answer is then a lack of capacity, and one more request makes it worse."""
    policy = AdmissionPolicy(half_life=0.01, throttle_ratio=0.1, minimum_throughput=10)
    beside = Beside(Policy(hedge=HedgePolicy(minimum_samples=10), admission=policy))
    beside.go()
    beside.flight(0).run(limit=1)
    (target,) = beside.bench.engine._runtime.targets.all()
    for _ in range(50):
        beside.bench.clock.now += 0.001
        target.admission.meter.report_verdict(beside.bench.clock.now, Verdict(VerdictKind.THROTTLED, "busy", True, 429))
    assert 0 < target.admission.meter.look(beside.bench.clock.now)[0]
    beside.go()
    assert 1 == len(beside.spawned)
    assert 1 == beside.bench.engine.statistics().hedges.refused


def test_nor_for_an_attempt_that_has_just_ended():
    """It failed in the moment in which it became late, and its wait for the next one begins."""
    beside = Beside(Policy(hedge=HedgePolicy(minimum_samples=10)), seconds=0.0)
    beside.go()
    beside.go()
    assert 1 == len(beside.spawned)


def test_a_second_one_that_is_stopped_leaves_the_first():
    """Whose answer comes later; a first one that is stopped leaves the second. With a bridge, and without one."""
    for loser, winner, options in ((1, 0, {}), (0, 1, {"adapt": None})):
        beside = Beside(**options)
        beside.go()
        flights = [beside.flight(0, [reply(), ANSWER, b""])]
        flights[0].run(limit=1)
        beside.go()
        flights.append(beside.flight(1, [reply(), ANSWER, b""]))
        flights[1].run(limit=1)
        beside.lose(loser)
        beside.go()
        flights[winner].run()
        assert ANSWER == outcome_of(beside).body
