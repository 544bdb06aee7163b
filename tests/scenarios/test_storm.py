"""What must always hold, under random faults and cancellations, and how an outage ends. All in virtual time."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from statistics import median

import pytest
from storm import Storm
from worlds import Caller, Scenario, quick, run_everywhere

from deepseek_resilient import BreakerPolicy, Policy, StreamPolicy
from deepseek_resilient.core.messages import Response
from deepseek_resilient.events import AttemptStarted, CallEnded, CallStarted, Event, GateClosed, StreamCommitted

FAULTS = [
    "outage_503", "outage_503;retry_after=0.5", "throttle_429", "throttle_429;retry_after_ms=300", "status;status=500",
    "html_502", "blank_200", "blank_200;duration=1;interval=0.2", "keep_alive;duration=0.5", "keep_alive_forever",
    "hang", "refuse", "reset", "stall;after=5", "cut;after=0", "cut;after=8", "cut;after=8;how=reset", "no_done",
    "insufficient_system_resource", "error_in_stream;after=0", "error_in_stream;after=4", "status;status=400",
    "garbage;after=0", "slow_first_token;delay=1", "brown_out;factor=4", "empty_content",
]  # fmt: skip

POLICIES: list[Policy] = [
    Policy(),
    quick(attempt_timeout=1.0, stream=StreamPolicy(first_content=1.0, silence=1.0)),
    quick(breaker=BreakerPolicy(when_open="wait", minimum_throughput=5, slow_call_duration=0.4)),
    quick(breaker=None, stream=StreamPolicy(silence=8.0, first_content=2.0)),
]

SEEDS = range(40)
CALLS = 300


def random_storm(seed: int) -> Storm:
    """A storm that depends on nothing but its seed."""
    random = Random(seed)
    windows = []
    for _ in range(random.randint(3, 8)):
        fault, start = random.choice(FAULTS), random.uniform(0, 12)
        windows.append((fault, start, random.uniform(0.2, 5), random.choice([0.05, 0.3, 1.0])))
    settings = {
        "rate": random.choice([20, 40, 100]),
        "service_time": random.choice([0.05, 0.2]),
        "distribution": random.choice(["fixed", "exponential"]),
        "queue_limit": random.choice([None, 5, 40]),
        "concurrency_limit": random.choice([None, 30]),
        "keep_alive_interval": random.choice([None, 0.3]),
        "wasted": random.choice([True, False]),
        "answer_tokens": random.choice([0, 20]),
    }
    storm = Storm(random.choice(POLICIES), seed, settings, windows)
    at = 0.0
    for _ in range(CALLS):
        at += random.expovariate(25.0)
        timeout = random.choice([0.3, 2.0, 10.0, 60.0])
        gone = at + random.expovariate(2.0) if random.random() < 0.2 else None
        storm.call(at, stream=random.random() < 0.5, timeout=timeout, gone_at=gone)
    storm.run()
    return storm


@pytest.fixture(scope="module")
def storms() -> list[Storm]:
    """40 seeds of 300 calls: 12,000 calls."""
    return [random_storm(seed) for seed in SEEDS]


def test_attempts_stay_within_the_retry_budget(storms: list[Storm]) -> None:
    """attempts <= calls * (1 + ratio) + reserve + per_second * t, whatever fails."""
    for storm in storms:
        counts, budget = storm.engine.statistics(), storm.policy.budget
        bound = counts.calls * (1 + budget.ratio) + budget.reserve + budget.per_second * storm.scheduler.time()
        assert CALLS == counts.calls
        assert counts.attempts <= bound


def test_nothing_is_sent_to_a_target_before_its_gate_opens(storms: list[Storm]) -> None:
    """No attempt starts while the gate of its target is closed."""
    closings = 0
    for storm in storms:
        opens_at = 0.0
        for event in storm.events:
            if isinstance(event, GateClosed):
                opens_at = max(opens_at, event.at + event.seconds)
                closings += 1
            elif isinstance(event, AttemptStarted):
                assert event.at >= opens_at
    assert closings > 50


def test_every_call_ends_and_gives_everything_back(storms: list[Storm]) -> None:
    """No call is lost, none in flight, no permit held: half-open circuits have all their probes free."""
    for storm in storms:
        assert all(record.ended is not None for record in storm.calls)
        assert 0 == storm.engine.statistics().in_flight
        assert 0 == storm.model.statistics()["in_flight"]
        for target in storm.engine._runtime.targets.all():
            assert target.breaker is None or 0 == target.breaker.statistics(storm.scheduler.time()).probing


def test_no_call_outlives_its_deadline(storms: list[Storm]) -> None:
    """A buffered call is over at its deadline; a stream has its first content by then."""
    for storm in storms:
        limits = {event.call: event.at for event in storm.events if isinstance(event, CallStarted)}
        records = dict(zip(limits, sorted(storm.calls, key=lambda record: record.started), strict=True))
        committed: set[int] = set()
        for event in storm.events:
            if isinstance(event, StreamCommitted):
                committed.add(event.call)
                assert event.at <= limits[event.call] + records[event.call].timeout + 1e-6
            elif isinstance(event, CallEnded) and event.call not in committed:
                assert event.duration <= records[event.call].timeout + 1e-6


def test_what_was_handed_over_is_what_the_server_sent(storms: list[Storm]) -> None:
    """Never retracted, repeated or reordered: a prefix of the last attempt, whole if the answer is good."""
    streamed = 0
    for storm in storms:
        for record in storm.calls:
            call = record.call
            assert call is not None
            got = b"".join(call.received)
            if got:
                streamed += 1
                assert record.sent[-1].startswith(got)
                if record.good:
                    assert bytes(record.sent[-1]) == got
            elif isinstance(call.outcome, Response) and call.outcome.status == 200:
                body = call.outcome.body or b""
                if b"x-resilient-simplified" in dict(call.outcome.headers):
                    said = json.loads(body)
                    assert said.pop("resilient")
                    assert json.loads(record.sent[-1]) == said
                else:
                    assert bytes(record.sent[-1]) == body
    assert streamed > 1000


def test_the_same_seed_gives_the_same_run() -> None:
    """Event for event, byte for byte."""

    def told(events: list[Event]) -> list[str]:
        return [f"{event.at!r} {event}" for event in events]

    first, second = random_storm(5), random_storm(5)
    assert told(first.events) == told(second.events)
    assert [r.call and r.call.received for r in first.calls] == [r.call and r.call.received for r in second.calls]


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_is_the_same_on_all_drivers(seed: int) -> None:
    """Forty calls at random times through random faults leave equal traces under simulator, asyncio and threads."""
    random = Random(seed)
    callers = tuple(
        Caller(at=random.uniform(0, 3), stream=random.random() < 0.5, timeout=random.choice([0.517, 20.03]))
        for _ in range(40)
    )
    windows = tuple((random.choice(FAULTS), random.uniform(0, 3), random.uniform(0.1, 1)) for _ in range(5))
    run_everywhere(Scenario(callers=callers, windows=windows, policy=POLICIES[seed], seed=seed))


OUTAGES = ["outage_503", "hang", "refuse", "blank_200", "html_502"]


@pytest.mark.parametrize("outage", OUTAGES)
def test_full_goodput_returns_within_two_seconds_of_an_outage(outage: str) -> None:
    """8 s of outage at 90 % load, attempts limited to 1 s: recovery <= 2 s, attempts per call <= 1.2 meanwhile."""
    recoveries, amplifications = [], []
    for seed in range(10):
        storm = Storm(
            replace(Policy(), attempt_timeout=1.0), seed, {"rate": 40, "service_time": 0.1}, [(outage, 5.0, 8.0, 1.0)]
        )
        at = 0.0
        while at < 30.0:
            at += storm.random.expovariate(36.0)
            storm.call(at, timeout=2.0)
        storm.run()
        recoveries.append(recovery(storm, 13.0))
        during = [record for record in storm.calls if 5.0 <= record.started < 13.0]
        amplifications.append(sum(len(record.sent) for record in during) / len(during))
    assert max(recoveries) <= 2.0, (recoveries, median(recoveries))
    assert max(amplifications) <= 1.2


def recovery(storm: Storm, over: float) -> float:
    """Seconds after `over` from which on every half second has at least 95 % of its calls answered."""
    slot, last_bad = 0.5, over
    for number in range(int((28.0 - over) / slot)):
        begin = over + number * slot
        calls = [record for record in storm.calls if begin <= record.started < begin + slot]
        if sum(record.good for record in calls) < 0.95 * len(calls):
            last_bad = begin + slot
    return last_bad - over
