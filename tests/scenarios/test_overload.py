"""Overload, in virtual time, with the default policy: what the server can do is done, and who matters is served.

The server works on `rate / 10` requests at a time, 0.1 s each, and has a queue 1.1 s deep; above that it says 503.
Callers come at random (Poisson) and, unless a test says otherwise, go after 1 s: who waits at the server for its whole
queue has waited in vain. The first 2 s, in which nothing is known of the server yet, are not counted.

A case that does not reach its figure is a strict xfail that states the figure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from storm import CallRecord, Storm

from deepseek_resilient import Policy, Priority, RoutingPolicy, Upstream
from deepseek_resilient.lab.faults import Fault, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

pytestmark = pytest.mark.no_cover  # long, and what they go through is covered by the unit tests

KNOWN = 2.0
"""From when on calls are counted."""


def size(rate: float, **changes: Any) -> dict[str, Any]:
    """The settings of a server of so many requests per second."""
    return {"slots": round(rate / 10), "service_time": 0.1, "queue_limit": round(rate * 1.1)} | changes


def let_in(
    storm: Storm,
    rate: float | Callable[[float], float],
    until: float,
    *,
    begin: float = 0.0,
    timeout: float = 1.0,
    mix: Mapping[Priority, float] | None = None,
    client: int = 0,
) -> None:
    """Callers at random times, so many per second."""
    at = begin
    while True:
        at += storm.random.expovariate(rate if isinstance(rate, float) else rate(at))
        if at >= until:
            return
        priority = storm.random.choices(list(mix), list(mix.values()))[0] if mix else None
        storm.call(at, timeout=timeout, priority=priority, client=client)


def answered(calls: Iterable[CallRecord], since: float, until: float) -> int:
    """How many good answers came in that time."""
    return sum(call.good and since <= call.started + call.lasted < until for call in calls)


def begun(storm: Storm, since: float, until: float) -> list[CallRecord]:
    """The calls that began in that time."""
    return [call for call in storm.calls if since <= call.started < until]


def p99(calls: Iterable[CallRecord]) -> float:
    """Of the seconds that good answers took."""
    lasted = sorted(call.lasted for call in calls if call.good)
    return lasted[int(0.99 * len(lasted))]


# more callers than the server can answer

FACTORS = (1.5, 3.0)
SEEDS = range(6)
RATE, SECONDS = 40.0, 30.0


@cache
def overload(factor: float, seed: int) -> Storm:
    """30 s of `factor` times what the server can do."""
    storm = Storm(Policy(), seed, size(RATE))
    let_in(storm, factor * RATE, SECONDS)
    storm.run()
    return storm


def goodput(factor: float, seed: int) -> float:
    """Good answers, as a share of what the server can do."""
    return answered(overload(factor, seed).calls, KNOWN, SECONDS) / (SECONDS - KNOWN) / RATE


@pytest.mark.parametrize("factor", FACTORS)
def test_overload_costs_no_goodput(factor: float) -> None:
    """97 % of the server's capacity is useful (median of the seeds), and never less than 95 %."""
    shares = [goodput(factor, seed) for seed in SEEDS]
    assert median(shares) >= 0.97, shares
    assert min(shares) >= 0.95, shares


@pytest.mark.parametrize("factor", FACTORS)
def test_overload_is_not_made_worse(factor: float) -> None:
    """At most 1.1 attempts per call, and answers within the callers' time."""
    for seed in SEEDS:
        storm = overload(factor, seed)
        assert sum(len(call.asked) for call in storm.calls) <= 1.1 * len(storm.calls)
        assert p99(begun(storm, KNOWN, SECONDS)) <= 1.0


@pytest.mark.parametrize("factor", FACTORS)
def test_who_is_refused_is_told_in_time(factor: float) -> None:
    """Who is shed is told within 50 ms; who waited for a place, early enough to do something else before its deadline.

    Hardly anybody learns it from the deadline itself.
    """
    late = calls = 0
    for seed in SEEDS:
        storm = overload(factor, seed)
        for call in storm.calls:
            assert call.lasted <= call.timeout + 1e-6
            if call.refused_by == "admission":
                assert call.lasted <= 0.05
        counted = begun(storm, KNOWN, SECONDS)
        calls += len(counted)
        late += sum(not call.good and not call.refused_by for call in counted)
    assert late <= 0.01 * calls


# capacity and load that change


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("rate", "less", "more"),
    [
        (40.0, {"slots": 2}, {"slots": 4}),
        (40.0, {"service_time": 0.2}, {"service_time": 0.1}),
        (200.0, {"slots": 10}, {"slots": 20}),
    ],
)
def test_the_limit_follows_the_capacity(rate: float, less: dict[str, Any], more: dict[str, Any], seed: int) -> None:
    """At 1.5 times the load the server halves, and comes back: within 5 s all that it can do is useful again."""
    storm = Storm(Policy(), seed, size(rate))
    let_in(storm, 1.5 * rate, 24.0)
    storm.change(8.0, **less)
    storm.change(16.0, **more)
    storm.run()
    assert answered(storm.calls, 13.0, 16.0) >= 0.95 * 3 * rate / 2
    assert answered(storm.calls, 21.0, 24.0) >= 0.95 * 3 * rate


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("rate", [40.0, 200.0])
def test_a_tide_is_met_within_five_seconds(rate: float, seed: int) -> None:
    """Five times the load from one moment to the next, 2.5 times what the server can do; and back."""
    storm = Storm(Policy(), seed, size(rate))
    let_in(storm, lambda at: rate * (2.5 if 8.0 <= at < 16.0 else 0.5), 24.0)
    storm.run()
    assert answered(storm.calls, 13.0, 16.0) >= 0.95 * 3 * rate
    back = begun(storm, 21.0, 24.0)
    assert sum(call.good for call in back) >= 0.99 * len(back)


OUTAGES = ("outage_503", "hang")


@cache
def recovery(outage: str, rate: float, seed: int) -> float:
    """Seconds after 8 s of outage, at 90 % load, from which on 95 % of the calls of every half second are answered."""
    storm = Storm(Policy(), seed, size(rate), [(outage, 6.0, 8.0, 1.0)])
    let_in(storm, 0.9 * rate, 19.0)
    storm.run()
    last_bad = 0.0
    for end in (0.5 * number for number in range(1, 10)):
        calls = begun(storm, 13.5 + end, 14.0 + end)
        if sum(call.good for call in calls) < 0.95 * len(calls):
            last_bad = end
    return last_bad


@pytest.mark.parametrize(("rate", "seeds"), [(40.0, 8), (200.0, 3)])
@pytest.mark.parametrize("outage", OUTAGES)
def test_goodput_is_back_two_seconds_after_an_outage(outage: str, rate: float, seeds: int) -> None:
    """The median of the seeds."""
    seconds = [recovery(outage, rate, seed) for seed in range(seeds)]
    assert median(seconds) <= 2.0, seconds


def missed(outage: str, figure: str) -> Any:
    """A case that takes longer."""
    return pytest.param(outage, 40.0, 8, marks=pytest.mark.xfail(strict=True, reason=figure))


@pytest.mark.parametrize(
    ("outage", "rate", "seeds"),
    [
        ("outage_503", 200.0, 3),
        ("hang", 200.0, 3),
        missed("outage_503", "4.5 s; 3 of 16 seeds need more than 2 s, the median is 0.75 s"),
        missed("hang", "2.5 s; 6 of 16 seeds need more than 2 s (one 3.5 s), the median is 1.5 s"),
    ],
)
def test_goodput_is_back_two_seconds_after_an_outage_whatever_the_seed(outage: str, rate: float, seeds: int) -> None:
    """The worst of the seeds."""
    seconds = [recovery(outage, rate, seed) for seed in range(seeds)]
    assert max(seconds) <= 2.0, seconds


# who matters is served

MIX = {Priority.CRITICAL: 0.1, Priority.INTERACTIVE: 0.3, Priority.STANDARD: 0.3, Priority.BATCH: 0.3}


@cache
def mixed(rate: float, seed: int) -> Storm:
    """30 s of twice what the server can do, then 15 s of half of it."""
    storm = Storm(Policy(), seed, size(rate))
    let_in(storm, 2.0 * rate, 30.0, mix=MIX)
    let_in(storm, 0.5 * rate, 45.0, mix=MIX, begin=30.0)
    storm.run()
    return storm


def served(storms: Iterable[Storm], priority: Priority, since: float = KNOWN) -> float:
    """The share of the calls of that priority that were answered during the overload."""
    calls = [call for storm in storms for call in begun(storm, since, 30.0) if call.priority is priority]
    return sum(call.good for call in calls) / len(calls)


MIXED = [(40.0, seed) for seed in (0, 1, 10, 15)] + [(200.0, seed) for seed in range(2)]
"""At 40 the last two are the worst of 16."""


@pytest.mark.parametrize(
    ("rate", "since"),
    [
        (200.0, 2.0),
        (40.0, 3.0),
        pytest.param(
            40.0,
            2.0,
            marks=pytest.mark.xfail(strict=True, reason="99.7 % of 16 seeds: 4 slots are not known after 2 s yet"),
        ),
    ],
)
def test_critical_calls_are_served(rate: float, since: float) -> None:
    """99.9 % of them, at twice the load."""
    storms = [mixed(each, seed) for each, seed in MIXED if each == rate]
    assert served(storms, Priority.CRITICAL, since) >= 0.999


@pytest.mark.parametrize(("rate", "seed"), MIXED)
def test_batch_is_shed_first_and_critical_never(rate: float, seed: int) -> None:
    """Hardly any batch call is let in, some standard ones are, and no critical one is shed."""
    storm = mixed(rate, seed)
    got = [served([storm], priority, 3.0) for priority in Priority]
    assert sorted(got) == got
    assert got[Priority.BATCH] <= 0.02
    assert 0.25 <= got[Priority.STANDARD] <= 0.5
    shed = sorted((call.started, call.priority) for call in storm.calls if call.refused_by == "admission")
    assert Priority.BATCH is shed[0][1]
    assert Priority.CRITICAL not in {priority for _, priority in shed}
    assert answered(storm.calls, KNOWN, 30.0) >= 0.95 * 28 * rate


@pytest.mark.parametrize(("rate", "seed"), MIXED)
def test_everybody_is_served_when_the_load_ends(rate: float, seed: int) -> None:
    """Within 10 s, batch calls, too."""
    after = begun(mixed(rate, seed), 40.0, 45.0)
    assert {*Priority} == {call.priority for call in after}
    assert all(call.good for call in after)


# several servers

WEIGHTS = {"a": 5.0, "b": 3.0, "c": 2.0}


def three(seed: int, distribution: str) -> Storm:
    """Three servers of 100 requests per second each, and 60 callers a second."""
    upstreams = tuple(Upstream(f"https://{name}", weight=weight) for name, weight in WEIGHTS.items())
    policy = replace(Policy(), routing=RoutingPolicy(upstreams=upstreams))
    storm = Storm(policy, seed, size(100.0, distribution=distribution), servers={name: {} for name in WEIGHTS})
    let_in(storm, 60.0, 30.0, timeout=30.0)
    return storm


def shares(storm: Storm, since: float, until: float) -> dict[str, float]:
    """The share of the attempts of that time that each server got."""
    counts = Counter(server for call in storm.calls for at, server in call.asked if since <= at < until)
    return {server: counts[server] / counts.total() for server in WEIGHTS}


@pytest.mark.parametrize(("distribution", "seed"), [("fixed", 0), ("exponential", 1)])
def test_shares_are_by_weight(distribution: str, seed: int) -> None:
    """Within 3 points of 5/3/2, in every 10 s, and each call is sent once."""
    storm = three(seed, distribution)
    storm.run()
    for begin in (0.0, 10.0, 20.0):
        for server, share in shares(storm, begin, begin + 10.0).items():
            assert abs(share - WEIGHTS[server] / 10) <= 0.03
    assert all(call.good and 1 == len(call.asked) for call in storm.calls)


@pytest.mark.parametrize(("distribution", "seed"), [("fixed", 0), ("exponential", 1)])
@pytest.mark.parametrize("slow", WEIGHTS)
def test_a_slow_server_is_spared(slow: str, distribution: str, seed: int) -> None:
    """Ten times slower: after 2 s it has less than 10 % of the calls, and p99 is within 1.3 of what it was."""
    storm = three(seed, distribution)
    storm.change(12.0, slow, service_time=1.0)
    storm.run()
    for begin in range(14, 30, 2):
        assert shares(storm, begin, begin + 2.0)[slow] < 0.1
    assert p99(begun(storm, 14.0, 30.0)) <= 1.3 * p99(begun(storm, KNOWN, 12.0))
    assert all(call.good for call in storm.calls)


@pytest.mark.parametrize(("death", "seed"), [("refuse", 0), ("outage_503", 1)])
@pytest.mark.parametrize("dead", WEIGHTS)
def test_a_killed_server_loses_no_call(dead: str, death: str, seed: int) -> None:
    """All are answered by the others, with hardly more attempts, and p99 stays."""
    storm = three(seed, "fixed")
    storm.models[dead].set_script(windows=[Window(Fault.parse(death), 12.0, 100.0, 1.0)])
    storm.run()
    assert all(call.good for call in storm.calls)
    assert sum(len(call.asked) for call in storm.calls) <= 1.02 * len(storm.calls)
    assert p99(begun(storm, 12.0, 30.0)) <= 1.3 * p99(begun(storm, KNOWN, 12.0))


# several clients

CLIENTS = 20


def shared(seed: int) -> Storm:
    """A minute of 1.5 times what a server of 200 requests per second can do, from twenty that know nothing of each
    other."""
    storm = Storm(Policy(), seed, size(200.0), clients=CLIENTS)
    for client in range(CLIENTS):
        let_in(storm, 300.0 / CLIENTS, 60.0, client=client)
    storm.run()
    return storm


def jain(counts: Sequence[int]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything."""
    squares = [count * count for count in counts]
    return sum(counts) ** 2 / (len(squares) * sum(squares))


def test_clients_of_one_server_get_equal_shares() -> None:
    """Jain's index is 0.95, and 95 % of the capacity is useful."""
    found = []
    for seed in range(2):
        storm = shared(seed)
        assert answered(storm.calls, KNOWN, 60.0) >= 0.95 * (60.0 - KNOWN) * 200.0
        answers = Counter(call.client for call in storm.calls if call.good)
        found.append(jain([answers[client] for client in range(CLIENTS)]))
    assert min(found) >= 0.95, found
