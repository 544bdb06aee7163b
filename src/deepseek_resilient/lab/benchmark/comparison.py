"""Model against reality: what the simulator says of each real run, beside what was measured.

The prediction is the median of the simulator's runs of the same scenario at the same size by the same client with the
same callers and service times, and other luck in each (`work.PREDICTIONS`); in brackets the smallest and the largest
of them. The difference is of the prediction from the measured value (the median, of several), as a share of the
latter. "luck" stands where it is larger than is aimed at and the simulator gets the measured value too, "off" where
it never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from .real.contenders import REAL_CONTENDERS
from .record import MODEL, REAL
from .scale import SCALED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .measures import Measures
    from .results import Result

GOAL: Final = 0.10
"""The difference that is aimed at."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure of one client in one scenario."""

    scenario: str
    contender: str
    measure: str
    real: float
    predicted: float
    least: float
    most: float

    @property
    def difference(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted / self.real - 1 if self.real else 0.0

    @property
    def by_luck(self) -> bool:
        """Whether the measured value is one of those that the simulator gets by luck alone."""
        return self.least <= self.real <= self.most


MEASURES: Final[dict[str, tuple[Callable[[Measures], float], str]]] = {
    "goodput": (lambda measures: measures.goodput, ".0%"),
    "attempts": (lambda measures: measures.attempts, ".2f"),
}
"""What is compared, and how it is shown."""

HEADING: Final = ("scenario", "client", "measure", "real", "predicted", "difference", "")


def compare(results: Sequence[Result]) -> list[Compared]:
    """Each client in each scenario that was run in both worlds; runs on too busy a machine are left out."""
    found = []
    for scenario in SCALED:
        for contender in REAL_CONTENDERS:
            worlds = {
                world: [
                    r.measures
                    for r in results
                    if r.valid and (r.job.scenario, r.job.contender, r.job.world) == (scenario, contender, world)
                ]
                for world in (REAL, MODEL)
            }
            if not all(worlds.values()):
                continue
            for name, (measure, _) in MEASURES.items():
                real = median(map(measure, worlds[REAL]))
                model = [measure(measures) for measures in worlds[MODEL]]
                found.append(Compared(scenario, contender, name, real, median(model), min(model), max(model)))
    return found


def rows(compared: Sequence[Compared]) -> list[list[str]]:
    """For a table, with its heading."""
    found = [[*HEADING]]
    for one in compared:
        form = MEASURES[one.measure][1]
        real, predicted, least, most = (format(v, form) for v in (one.real, one.predicted, one.least, one.most))
        spread = f"{predicted} ({least.removesuffix('%')}-{most.removesuffix('%')})"
        note = "" if abs(one.difference) <= GOAL else "luck" if one.by_luck else "off"
        found.append([one.scenario, one.contender, one.measure, real, spread, f"{one.difference:+.0%}", note])
    return found


def summary(compared: Sequence[Compared]) -> list[str]:
    """How many are as near as is aimed at."""
    lines = []
    for name in MEASURES:
        all_ = [one for one in compared if one.measure == name]
        near = sum(abs(one.difference) <= GOAL for one in all_)
        inside = sum(one.by_luck for one in all_)
        lines.append(
            f"{name}: {near} of {len(all_)} predictions are within {GOAL:.0%} of what was measured; "
            f"{inside} of the measured values are among those that the simulator gets with other luck."
        )
    return lines
