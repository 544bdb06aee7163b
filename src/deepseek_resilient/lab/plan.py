"""The plan of a storm, and what is measured in one: phases, the times at which callers come, records of their calls.

The default is the story of an overload and an outage: a calm beginning, half as much again as the server can take, a
relief, an outage of 503s, and the time after it. Loads are shares of the server's capacity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from random import Random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOT: Final = 0.5
"""Seconds: the grain of all series, and of the time to recover."""

RECOVERED: Final = 0.95
"""A slot is good when at least this share of the calls that began in it was answered."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the storm: `load` as a share of capacity, and the fault that requests meet meanwhile, each with
    `probability`."""

    name: str
    seconds: float
    load: float
    fault: str = ""
    probability: float = 1.0


def spans(phases: Sequence[Phase]) -> list[tuple[Phase, float, float]]:
    """Every phase with its beginning and end, seconds from the start."""
    marks = [0.0, *accumulate(phase.seconds for phase in phases)]
    return [(phase, *span) for phase, span in zip(phases, pairwise(marks), strict=True)]


def windows(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """The phases' faults as the lab's script takes them, counted from the start."""
    return [
        {"fault": phase.fault, "start": begin, "duration": end - begin, "probability": phase.probability}
        for phase, begin, end in spans(phases)
        if phase.fault
    ]


def arrivals(phases: Sequence[Phase], capacity: float, seed: int, drain: float = 0.0) -> list[float]:
    """When callers come: a Poisson process with the load of each phase, the same for the same seed.

    In the last `drain` seconds nobody comes.
    """
    random = Random(seed)  # noqa: S311 -- a simulation, repeatable by its seed
    times: list[float] = []
    last = sum(phase.seconds for phase in phases) - drain
    for phase, begin, end in spans(phases):
        rate = phase.load * capacity
        at = begin + random.expovariate(rate)
        while at < min(end, last):
            times.append(at)
            at += random.expovariate(rate)
    return times


STORY: Final = (
    Phase("calm", 3.0, 0.8),
    Phase("overload", 7.0, 1.5),
    Phase("relief", 4.0, 0.8),
    Phase("outage", 5.0, 0.9, "outage_503;delay=0.1"),
    Phase("after", 6.0, 0.9),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One storm, the same for every contender.

    The server works on `capacity` requests per second, 0.1 s each (mean, exponential), and has places for 1.1 s of
    waiting; what it has begun it finishes, whether or not the caller is still there. In the last `drain` seconds of the
    last phase no caller comes any more.
    """

    capacity: float = 200.0
    seed: int = 0
    phases: tuple[Phase, ...] = STORY
    attempt_timeout: float = 1.0
    patience: float = 4.0
    pause: float = 0.1
    drain: float = 1.0

    @classmethod
    def of(cls, *, seconds: float, capacity: float, seed: int) -> Plan:
        """The story told in `seconds`; below 12 the drain is shortened with it."""
        factor = seconds / sum(phase.seconds for phase in STORY)
        phases = tuple(Phase(p.name, p.seconds * factor, p.load, p.fault) for p in STORY)
        return cls(capacity=capacity, seed=seed, phases=phases, drain=min(1.0, seconds / 12))

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def server(self) -> dict[str, Any]:
        """The settings of the simulated DeepSeek."""
        return {
            "rate": self.capacity,
            "service_time": 0.1,
            "distribution": "exponential",
            "queue_limit": round(self.capacity * 1.1),
            "wasted": True,
        }

    def spans(self) -> list[tuple[Phase, float, float]]:
        """Every phase with its beginning and end, seconds from the start."""
        return spans(self.phases)

    def span(self, name: str) -> tuple[float, float]:
        """Beginning and end of the phase of that name."""
        return next((begin, end) for phase, begin, end in self.spans() if phase.name == name)

    def phase_at(self, at: float) -> Phase:
        """The phase at `at` seconds; the last one from its end on."""
        return next((phase for phase, _, end in self.spans() if at < end), self.phases[-1])

    def windows(self) -> list[dict[str, Any]]:
        """The faults as the lab's script takes them, counted from the start."""
        return windows(self.phases)

    def arrivals(self) -> list[float]:
        """When callers come."""
        return arrivals(self.phases, self.capacity, self.seed, self.drain)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One caller's call: when it came, when it was over (None: not before the end of the storm), and how."""

    began: float
    ended: float | None
    answered: bool


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one contender made of a storm.

    `attempts` counts the requests sent per slot. `busy` is the share of one core that the busiest load generator used
    at its busiest and `late` the 99th percentile of how late a caller was let in, seconds: both tell whether the
    measuring itself was in order. `server` is the lab's statistics with `busy` for its core.
    """

    name: str
    calls: list[CallRecord] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    circuit: list[tuple[float, str]] = field(default_factory=list)
    busy: float = 0.0
    late: float = 0.0
    server: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The numbers of one contender. Shares are 0 to 1; seconds; None = never, or nothing to measure."""

    calls: int
    answered: float
    goodput: float
    attempts: float
    p50: float | None
    p99: float | None
    wasted: float
    after_overload: float | None
    after_outage: float | None


def measure(plan: Plan, outcome: Outcome) -> Measures:
    """What the table tells. `goodput` is of capacity, in the overload; times are those of answered calls."""
    calls = outcome.calls
    times = sorted(call.ended - call.began for call in calls if call.answered and call.ended is not None)
    begin, end = plan.span("overload")
    good = sum(1 for call in calls if call.answered and call.ended is not None and begin <= call.ended < end)
    served, wasted = (int(outcome.server.get(name, 0)) for name in ("served", "wasted"))
    return Measures(
        calls=len(calls),
        answered=len(times) / max(len(calls), 1),
        goodput=good / ((end - begin) * plan.capacity),
        attempts=sum(outcome.attempts) / max(len(calls), 1),
        p50=percentile(times, 0.50),
        p99=percentile(times, 0.99),
        wasted=wasted / max(served + wasted, 1),
        after_overload=recovery(calls, end, plan.span("outage")[0]),
        after_outage=recovery(calls, plan.span("outage")[1], plan.seconds - plan.drain),
    )


def recovery(calls: Sequence[CallRecord], since: float, until: float) -> float | None:
    """Seconds after `since` from which on every slot up to `until` is good; None when the last of them is not."""
    slots = max(int((until - since) / SLOT + 1e-6), 1)
    begun, good = [0] * slots, [0] * slots
    for call in calls:
        if since <= call.began < since + slots * SLOT:
            slot = min(int((call.began - since) / SLOT), slots - 1)
            begun[slot] += 1
            good[slot] += call.answered
    bad = [slot for slot in range(slots) if good[slot] < RECOVERED * begun[slot]]
    if not bad:
        return 0.0
    return None if bad[-1] == slots - 1 else (bad[-1] + 1) * SLOT


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the ordered values lie (nearest rank); None of nothing."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


def per_second(times: Sequence[float], seconds: float) -> list[float]:
    """How many of `times` fall into each slot, as a rate per second."""
    counts = [0.0] * max(int(seconds / SLOT + 1e-6), 1)
    for at in times:
        if 0 <= at < len(counts) * SLOT:
            counts[int(at / SLOT)] += 1 / SLOT
    return counts
