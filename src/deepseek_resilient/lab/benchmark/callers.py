"""Who comes when: the callers of a scenario, the same for every client and in both worlds, by the seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from deepseek_resilient.lab import plan
from deepseek_resilient.lab.faults import HEADER

if TYPE_CHECKING:
    from .scenario import Scenario


@dataclass(frozen=True, slots=True)
class Caller:
    """One call to come: when (None: as soon as somebody of the crowd is told), to which process, and whose it is."""

    number: int
    at: float | None
    client: int
    tenant: int

    def group(self, scenario: Scenario) -> int:
        """The process and tenant that it belongs to, as a number."""
        return self.client * len(scenario.tenants) + self.tenant

    def text(self, scenario: Scenario) -> str:
        """What it asks. Each has a text of its own: equal calls could be answered as one."""
        return f"question {self.number} " + "word " * (scenario.tenants[self.tenant].words - 2)

    def headers(self, scenario: Scenario) -> dict[str, str]:
        """What tells the simulated server how much work it is, where it is not the usual."""
        work = scenario.tenants[self.tenant].work
        return {} if work == 1.0 else {HEADER: f"brown_out;factor={work:g}"}


def callers(scenario: Scenario, seed: int) -> list[Caller]:
    """All of them, in the order in which they come."""
    dice = dice_of(seed, "callers")
    times: list[float | None]
    if scenario.crowd:
        times = [0.0] * scenario.crowd + [None] * (scenario.calls - scenario.crowd)
    else:
        times = [*plan.arrivals(scenario.phases, scenario.capacity / scenario.mean_work, seed)]
    places, shares = range(len(scenario.tenants)), [tenant.share for tenant in scenario.tenants]
    return [
        Caller(number, at, dice.randrange(scenario.clients), dice.choices(places, shares)[0])
        for number, at in enumerate(times)
    ]


def dice_of(seed: int, what: str, luck: int = 0) -> Random:
    """Randomness of its own for everybody, so that what one does moves nobody else's dice.

    With another `luck` clients and the balancer fare otherwise; callers and service times are still those of the seed.
    """
    return Random(f"{seed}.{luck} {what}" if luck else f"{seed} {what}")  # noqa: S311 -- a simulation, repeatable by its seed
