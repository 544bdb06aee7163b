"""The servers of a scenario, the same in both worlds: made before it begins, and set going when it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_resilient.lab import plan
from deepseek_resilient.lab.deepseek import EPOCH, SimulatedDeepSeek
from deepseek_resilient.lab.faults import Fault, Window
from deepseek_resilient.lab.settings import LabSettings

from .callers import dice_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deepseek_resilient.drivers.scheduler import Scheduler

    from .scenario import Scenario


def make(
    scenario: Scenario, seed: int, scheduler: Scheduler, unix_offset: float = EPOCH, luck: int = 0
) -> dict[str, SimulatedDeepSeek]:
    """Each by its name, without a fault so far.

    How long each piece of work takes follows from the seed alone, in both worlds and with any luck: in a small storm
    the mean of some hundred pieces decides more than anything else about how it ends.
    """
    settings = LabSettings().changed(scenario.server)
    return {
        name: SimulatedDeepSeek(
            scheduler,
            settings,
            dice_of(seed, name, luck).getrandbits(32),
            unix_offset=unix_offset,
            service_seed=dice_of(seed, f"{name}'s work").getrandbits(32),
        )
        for name in names(scenario)
    }


def names(scenario: Scenario) -> list[str]:
    """What the servers are called."""
    return [f"server-{number}" for number in range(scenario.servers)]


def begin(servers: Mapping[str, SimulatedDeepSeek], scenario: Scenario) -> None:
    """The scenario begins now: its faults, and the changes that come later."""
    faults = [Window(Fault.parse(fault), probability=share) for fault, share in scenario.faults]
    models = list(servers.values())
    for model in models:
        model.set_script(windows=[*map(Window.from_json, plan.windows(scenario.phases)), *faults])
    for change in scenario.changes:
        model = models[change.server]
        model.scheduler.call_later(change.at, _change, model, change.settings)


def _change(model: SimulatedDeepSeek, settings: Mapping[str, Any]) -> None:
    model.set_script(settings=settings)
