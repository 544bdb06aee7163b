"""The scenarios at a size that a machine with two cores can carry over real HTTP.

A request of the OpenAI SDK costs three milliseconds of a core, so what counts is how many requests a second it sends at
its worst. Each capacity is chosen so that these are not more than about 200; everything else is the same data.
`moving_limit` keeps its size, for its limits are numbers of requests. `stacked_layers` is left out: its layers are
services of their own, each a process between two others, and the machine would be measured and not the clients.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from .record import VIRTUAL
from .scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .scenario import Scenario

CAPACITIES: Final = {
    "stress": 30.0,
    "overload_1_5": 20.0,
    "overload_3": 20.0,
    "overload_5": 10.0,
    "tide": 20.0,
    "outage_503": 30.0,
    "outage_hang": 30.0,
    "brown_out": 30.0,
    "blank_and_cut": 30.0,
    "retry_after_herd": 30.0,
    "poisoned_tenant": 20.0,
    "processes_20": 20.0,
    "processes_100": 20.0,
    "slow_target": 60.0,
    "moving_limit": 60.0,
}
"""Requests per second of all servers together."""


def _sized(scenario: Scenario, capacity: float) -> Scenario:
    factor = capacity / scenario.capacity
    crowd, calls = round(scenario.crowd * factor), round(scenario.calls * factor)
    return replace(scenario, capacity=capacity, crowd=crowd, calls=calls)


SCALED: Final[Mapping[str, Scenario]] = MappingProxyType(
    {name: _sized(SCENARIOS[name], capacity) for name, capacity in CAPACITIES.items()}
)
"""Those that are run over real HTTP, and predicted for it."""


def about(world: str, name: str) -> str:
    """What happens in it there."""
    scenario = scenarios_of(world)[name]
    size = "" if scenario == SCENARIOS[name] else f" Here the servers can do {scenario.capacity:g}/s."
    return scenario.about + size


def scenarios_of(world: str) -> Mapping[str, Scenario]:
    """The scenarios as they are in that world."""
    return SCENARIOS if world == VIRTUAL else SCALED
