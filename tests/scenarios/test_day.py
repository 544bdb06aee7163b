"""A day passes and nothing grows: no table, no timer, no call that stays. In virtual time, everything on.

In the first hours the tables of bounded size fill, by a flood of made-up keys, tenants and models; then every hour ends
with as much as the one before. What is in flight is nothing at all, each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from day import KNOWN, POLICY, Day
from growth import Watch, growth

from deepseek_resilient.core.target import MAX_ACCOUNTS, MAX_TARGETS
from deepseek_resilient.events import CallStarted
from deepseek_resilient.gateway.metrics import WorkerMetrics
from deepseek_resilient.gateway.status import Decisions

if TYPE_CHECKING:
    from deepseek_resilient.events import Event

HOURS = 24
DRAINED = 60.0
"""Seconds after which nothing is left of what callers gave up."""
CALLS = 1650.0
"""In an hour, by the mean."""


def assert_nothing_is_in_flight(day: Day) -> None:
    """Whoever called has an end, and nobody and nothing waits for anything."""
    runtime = day.engine._runtime
    assert (0, 0, 0) == (day.live, day.scheduler.pending, day.engine.statistics().in_flight)
    assert [0, 0] == [server.statistics()["in_flight"] for server in day.servers.values()]
    for flights in (runtime.sharing and runtime.sharing.flights, runtime.hedges and runtime.hedges.flights):
        assert flights is not None
        assert not flights._flights
    for target in runtime.targets.all():
        now = day.scheduler.time() + DRAINED
        assert target.places is None or (0, 0) == target.places.pressure(now)[::2]
        assert target.breaker is None or 0 == target.breaker.statistics(now).probing
        assert target.rate is None or 0 == target.rate.statistics(now).waiting
    assert {0} == {each.in_flight for each in day.engine.statistics().upstreams.values()}


@pytest.mark.no_cover
@pytest.mark.usefixtures("no_log")
def test_a_day_of_an_engine() -> None:
    """50,000 calls: what there is after each hour from the third on is what there was before it."""
    metrics, decisions = WorkerMetrics(1), Decisions()
    day = Day(calls=CALLS, listeners=[metrics.listener, decisions])
    metrics.watch(day.engine)
    watch = Watch({"the engine": [day.engine], "its listeners": [metrics, decisions]})
    for hour in range(HOURS):
        day.pass_hour(hour)
        assert_nothing_is_in_flight(day)
        assert metrics.text()
        if hour >= KNOWN:
            watch.look()
    assert {} == watch.grown()
    _has_met_everything(day)


def _has_met_everything(day: Day) -> None:
    """Else the day says little: bounds are reached, and each part of the engine had work to do."""
    seen, runtime = day.engine.statistics(), day.engine._runtime
    assert seen.calls > 50_000
    assert MAX_TARGETS == len(seen.targets)
    assert MAX_ACCOUNTS == len(runtime.targets._accounts)
    assert {"guard", "admission", "breaker", "concurrency"} <= seen.refused.keys()
    assert {"ok", "throttled", "overloaded", "timeout", "truncated", "fault", "caller_fault"} <= seen.verdicts.keys()
    assert seen.cache is not None
    assert seen.hedges is not None
    assert POLICY.cache is not None
    assert POLICY.ledger is not None
    assert min(seen.cache.hits, seen.cache.stale, seen.cache.joined, seen.hedges.sent, seen.hedges.won) > 100
    assert 0.9 * POLICY.cache.max_bytes < seen.cache.bytes <= POLICY.cache.max_bytes
    assert POLICY.ledger.keep == len(day.engine.ledger.calls())


class Leak:
    """A listener that remembers every call."""

    def __init__(self) -> None:
        self.calls: list[Event] = []
        self.words: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, CallStarted):
            self.calls.append(event)
            self.words[f"call {event.call}"] = event.call


@pytest.mark.usefixtures("no_log")
def test_a_leak_is_seen() -> None:
    """One object, and one text, per call: by its type, by the table it is in, and by its bytes."""
    leak = Leak()
    day = Day(calls=100.0, strangers=0, flood=0, listeners=[leak])
    watch = Watch({"the leak": [leak]})
    for hour in range(12):
        day.pass_hour(hour)
        if hour >= KNOWN:
            watch.look()
    told = {"objects of deepseek_resilient.events.CallStarted", "objects in the leak", "bytes in the leak"}
    assert told <= watch.grown().keys()


@pytest.mark.parametrize(
    ("counts", "rose"),
    [
        ([5.0] * 20, 0.0),
        ([5.0] * 10 + [5000.0] + [5.0] * 9, 0.0),
        ([float(hour) for hour in range(21)], 20.0),
        ([hour + (50.0 if hour % 7 == 0 else 0.0) for hour in range(21)], 20.0),
    ],
)
def test_how_much_something_grew(counts: list[float], rose: float) -> None:
    """What goes on is told apart from what was once."""
    assert rose == pytest.approx(growth(counts), rel=0.1)
