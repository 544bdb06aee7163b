"""Storms at random: load shapes, faults, servers, callers and policies, as Hypothesis strategies.

Every storm ends with a calm of at least ten seconds, twice the callers' patience and 200 calls: no fault, six tenths of
the load that the server can take. What is still bad there, the client keeps bad. No server is without a queue: that one
refuses half of what it could take at any load, to whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import tenacity
from hypothesis import strategies as st

from deepseek_resilient import Policy
from deepseek_resilient.config import BreakerPolicy, ConcurrencyPolicy, HedgePolicy, RetryPolicy
from deepseek_resilient.lab.benchmark.scenario import Scenario, Tenant
from deepseek_resilient.lab.plan import Phase

CALM_LOAD, CALM_CALLS = 0.6, 200
TROUBLE_CALLS = 600
"""So many at most, that a storm takes about a second."""

FAULTS = (
    ("", 1.0),
    ("", 1.0),
    ("outage_503;delay=0.1", 1.0),
    ("outage_503;delay=0.1", 0.5),
    ("outage_503;retry_after=2", 1.0),
    ("throttle_429", 1.0),
    ("throttle_429;retry_after=3", 1.0),
    ("hang", 1.0),
    ("hang", 0.1),
    ("reset", 0.5),
    ("html_500", 0.3),
    ("blank_200", 0.5),
    ("cut", 0.3),
    ("brown_out;factor=4", 1.0),
)
"""What requests meet, each with that probability. A Retry-After is kept to, so it is for all or none; no server says
429 at random; and a stream that stalls has its place for as long as `StreamPolicy.silence` says."""


@dataclass(frozen=True, slots=True)
class Storm:
    """A scenario and the policy that goes through it."""

    scenario: Scenario
    policy: Policy


def phases() -> st.SearchStrategy[Phase]:
    """Of a disturbance."""
    return st.builds(
        lambda seconds, load, fault: Phase("trouble", seconds, load, *fault),
        st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0]),
        st.sampled_from([0.1, 0.5, 0.9, 1.2, 2.0, 4.0, 8.0]),
        st.sampled_from(FAULTS),
    )


@st.composite
def settings(draw: st.DrawFn, service_time: float, rate: float) -> dict[str, object]:
    """A server's, beside its rate."""
    slots = max(1, round(rate * service_time))
    limit = draw(st.sampled_from([None, None, 1.0, 2.0]))
    return {
        "service_time": service_time,
        "queue_limit": draw(st.sampled_from([slots, 2 * slots, round(rate * 1.1) + 1, 2000])),
        "distribution": draw(st.sampled_from(["exponential", "fixed"])),
        "wasted": draw(st.booleans()),
        "concurrency_limit": None if limit is None else max(2, round(limit * slots)),
        "keep_alive_interval": draw(st.sampled_from([None, None, 0.2])),
    }


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """All but the policy."""
    servers = draw(st.sampled_from([1, 1, 1, 2, 3]))
    service_time = draw(st.sampled_from([0.1, 0.02, 0.5, 2.0]))
    capacity = servers * draw(st.sampled_from([20.0, 5.0, 40.0] if service_time < 1 else [4.0, 1.0]))
    service_time = max(service_time, servers / capacity)
    patience = service_time * draw(st.sampled_from([40.0, 10.0, 20.0, 100.0]))
    troubles = tuple(draw(st.lists(phases(), min_size=1, max_size=3)))
    tenants = draw(st.sampled_from([1, 1, 2, 3]))
    found = Scenario(
        name="fuzzed",
        about="",
        phases=troubles,
        capacity=capacity,
        patience=patience,
        attempt_timeout=min(patience, service_time * draw(st.sampled_from([10.0, 20.0]))),
        trouble="trouble",
        clients=draw(st.sampled_from([1, 1, 2, 5, 20])),
        servers=servers,
        settings=draw(settings(service_time, capacity / servers)),
        tenants=tuple(Tenant(f"tenant-{number}") for number in range(tenants)),
        stream=draw(st.booleans()),
    )
    return _calmed(found)


def policies() -> st.SearchStrategy[Policy]:
    """The default mostly, and what people change."""
    return st.sampled_from([
        Policy(),
        Policy(),
        Policy(),
        Policy(retry=RetryPolicy(stop=tenacity.stop_after_attempt(2))),
        Policy(retry=RetryPolicy(stop=tenacity.stop_after_attempt(20))),
        Policy(concurrency=ConcurrencyPolicy(initial=200)),
        Policy(concurrency=ConcurrencyPolicy(initial=1)),
        Policy(breaker=BreakerPolicy(when_open="wait")),
        Policy(hedge=HedgePolicy()),
        Policy(breaker=None),
        Policy(concurrency=None),
        Policy(admission=None),
    ])  # fmt: skip


def storms() -> st.SearchStrategy[Storm]:
    """What is searched."""
    return st.builds(Storm, scenarios(), policies())


def _calmed(scenario: Scenario) -> Scenario:
    """With a calm at its end, and no more trouble than `TROUBLE_CALLS`."""
    calls = scenario.capacity * sum(phase.seconds * phase.load for phase in scenario.phases)
    factor = min(1.0, TROUBLE_CALLS / calls)
    troubles = (replace(phase, seconds=phase.seconds * factor) for phase in scenario.phases)
    seconds = max(10.0, 2 * scenario.patience, CALM_CALLS / (scenario.capacity * CALM_LOAD))
    return replace(scenario, phases=(*troubles, Phase("calm", seconds, CALM_LOAD)))
