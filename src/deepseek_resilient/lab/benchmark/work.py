"""What is to be run, in which order, and about how long it takes.

Virtual runs come first, on all cores; then real ones, one at a time, because they need the machine for themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .contenders import CONTENDERS, PREDICTED
from .record import MODEL, REAL
from .results import Job
from .scale import SCALED, scenarios_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .scenario import Scenario

PUBLISHED: Final = ("overload_1_5", "outage_503", "processes_20", "moving_limit")
"""The scenarios that are run over real HTTP where none is named: all of them would take over an hour."""

PREDICTIONS: Final = range(1, 21)
"""Each real run is predicted so many times, with the same callers and service times and other luck of
clients and balancer."""

_SECONDS_PER_CALL: Final = {"naive": 0.003, "ours": 0.0008}
_OTHERS: Final = 0.00045
"""Seconds of a core that a simulated call takes."""

_STARTING: Final = 3.0
"""Seconds until the processes of a real run are there."""


def virtual_jobs(scenarios: Iterable[str], contenders: Sequence[str], seeds: int) -> list[Job]:
    """Those of the tables."""
    return [Job(s, c, seed) for seed in range(1, seeds + 1) for s in scenarios for c in contenders if c in CONTENDERS]


def real_jobs(scenarios: Iterable[str], contenders: Sequence[str], seeds: int) -> list[Job]:
    """Real runs, and before them the predictions of those whose client the simulator knows."""
    here = [name for name in scenarios if name in SCALED]
    known = [name for name in contenders if name in PREDICTED]
    each = [(seed, s) for seed in range(1, seeds + 1) for s in here]
    predictions = [Job(s, c, seed, MODEL, luck) for seed, s in each for c in known for luck in PREDICTIONS]
    return predictions + [Job(s, c, seed, REAL) for seed, s in each for c in contenders]


def seconds(jobs: Iterable[Job], processes: int) -> float:
    """About how long they take."""
    virtual = real = 0.0
    for job in jobs:
        scenario = scenarios_of(job.world)[job.scenario]
        if job.world == REAL:
            real += real_seconds(scenario)
        else:
            cost = _SECONDS_PER_CALL.get(job.contender, _OTHERS)
            virtual += _calls(scenario) * cost
    return virtual / processes + real


def real_seconds(scenario: Scenario) -> float:
    """About how long a real run takes: until the last caller knows, or has gone."""
    return _STARTING + scenario.seconds + scenario.patience / 2


def _calls(scenario: Scenario) -> float:
    each = scenario.capacity / scenario.mean_work
    return scenario.calls or sum(phase.seconds * phase.load * each for phase in scenario.phases)
