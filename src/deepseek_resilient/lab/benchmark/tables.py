"""The results as tables: one for each scenario, a row for each contender, medians over the seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from .contenders import CONTENDERS
from .scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .measures import Measures
    from .results import Result


@dataclass(frozen=True, slots=True)
class Spread:
    """One measure over several seeds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of those that could be measured; None where none could."""
        known = [value for value in values if value is not None]
        return cls(median(known), min(known), max(known)) if known else None


@dataclass(frozen=True, slots=True)
class Column:
    """One measure in the tables; with `spread` the smallest and the largest stand behind the median."""

    heading: str
    measure: Callable[[Measures], float | None]
    show: Callable[[float], str]
    spread: bool = False

    def cell(self, found: Sequence[Measures]) -> str:
        """The measure over all seeds; "-" where there was nothing to measure."""
        spread = Spread.of(map(self.measure, found))
        if spread is None:
            return "-"
        shown, least, most = (self.show(value) for value in (spread.median, spread.least, spread.most))
        return (
            f"{shown} ({least.removesuffix('%')}-{most.removesuffix('%')})" if self.spread and least != most else shown
        )


def _share(value: float) -> str:
    return f"{value:.0%}"


def _count(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _back(value: float) -> str:
    return "never" if value == math.inf else f"{value:.1f}"


def _plain(value: float) -> str:
    return f"{value:.2f}"


WIDTH: Final = 100
"""Columns of a terminal that a table may take."""

COLUMNS: Final = (
    Column("goodput", lambda m: m.goodput, _share, spread=True),
    Column("attempts", lambda m: m.attempts, _count, spread=True),
    Column("back s", lambda m: m.recovery, _back, spread=True),
    Column("wasted", lambda m: m.wasted, _share),
    Column("fair", lambda m: m.fairness, _plain),
    Column("p50 s", lambda m: m.p50, _plain),
    Column("p99 s", lambda m: m.p99, _plain),
    Column("told s", lambda m: m.refusal, _plain),
    Column("$", lambda m: m.money, _plain),
)
"""Of every table that has something to show in them."""


def text(results: Sequence[Result]) -> str:
    """Tables for a terminal."""
    parts = []
    for name, rows in _tables(results):
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        between = "  " if sum(widths) + 2 * len(widths) - 2 <= WIDTH else " "
        lines = [between.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        parts.append("\n".join([f"{name}: {SCENARIOS[name].about}", *(line.rstrip() for line in lines)]))
    return "\n\n".join(parts)


def markdown(results: Sequence[Result]) -> str:
    """The same for a page."""
    parts = []
    for name, (head, *rows) in _tables(results):
        lines = [head, ["---"] * len(head), *rows]
        parts.append("\n".join([f"### {name}\n", SCENARIOS[name].about, "", *(f"| {' | '.join(r)} |" for r in lines)]))
    return "\n\n".join(parts)


def _tables(results: Sequence[Result]) -> Iterator[tuple[str, list[list[str]]]]:
    """The cells of each scenario that has results, with their heading."""
    for name in SCENARIOS:
        rows = [["", *(column.heading for column in COLUMNS)]]
        for contender in CONTENDERS:
            found = [r.measures for r in results if (r.job.scenario, r.job.contender) == (name, contender)]
            if found:
                rows.append([contender, *(column.cell(found) for column in COLUMNS)])
        if len(rows) > 1:
            shown = [place for place in range(len(rows[0])) if any(row[place] != "-" for row in rows[1:])]
            yield name, [[row[place] for place in shown] for row in rows]
