"""The results as tables: one for each scenario, a row for each contender, medians over the seeds.

Those of virtual time come first, then those over real HTTP, then the simulator's predictions beside them.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from functools import reduce
from statistics import median
from typing import TYPE_CHECKING, Final

from . import comparison
from .real.contenders import REAL_CONTENDERS
from .record import REAL, VIRTUAL
from .results import Job
from .scale import about
from .scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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
    """One measure in the tables. Where clients are compared by it, `best` says which of two medians is the better one,
    and the smallest and the largest stand behind the median."""

    heading: str
    measure: Callable[[Measures], float | None]
    show: Callable[[float], str]
    best: Callable[[float, float], float] | None = None

    def cell(self, found: Sequence[Measures]) -> str:
        """The measure over all seeds; "-" where there was nothing to measure."""
        spread = Spread.of(map(self.measure, found))
        if spread is None:
            return "-"
        shown, least, most = (self.show(value) for value in (spread.median, spread.least, spread.most))
        return f"{shown} ({least.removesuffix('%')}-{most.removesuffix('%')})" if self.best and least != most else shown


def _share(value: float) -> str:
    return f"{value:.0%}"


def _count(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _back(value: float) -> str:
    return "never" if value == math.inf else f"{value:.1f}"


def _plain(value: float) -> str:
    return f"{value:.2f}"


OURS: Final = "ours"
"""The contender that is this package."""

WIDTH: Final = 100
"""Columns of a terminal that a table may take."""

COLUMNS: Final = (
    Column("goodput", lambda m: m.goodput, _share, max),
    Column("attempts", lambda m: m.attempts, _count, min),
    Column("back s", lambda m: m.recovery, _back, min),
    Column("wasted", lambda m: m.wasted, _share),
    Column("fair", lambda m: m.fairness, _plain),
    Column("p50 s", lambda m: m.p50, _plain),
    Column("p99 s", lambda m: m.p99, _plain),
    Column("told s", lambda m: m.refusal, _plain),
    Column("$", lambda m: m.money, _plain),
)
"""Of every table that has something to show in them."""


HEADINGS: Final = {VIRTUAL: "", REAL: " over real HTTP"}
"""What is added to the name of a table that is of that world."""

BUSY: Final = "The machine was too busy to measure those with a star: they will be run again."


def text(results: Sequence[Result]) -> str:
    """Tables for a terminal, and where ours is not first."""
    parts = []
    for world, heading in HEADINGS.items():
        found = _grouped(results, world)
        for name, rows in _tables(found, _busy(results, world)):
            told = textwrap.fill(f"{name}{heading}: {about(world, name)}", WIDTH)
            parts.append("\n".join([told, *_aligned(rows)]))
        behind = [textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in _behind(found)]
        if behind:
            parts.append("\n".join([f"Where ours is not first{heading}:", *behind]))
    compared = comparison.compare(results)
    if compared:
        parts.append("\n".join(["Model against reality:", *_aligned(comparison.rows(compared))]))
        parts += [textwrap.fill(line, WIDTH) for line in comparison.summary(compared)]
    if _busy(results, REAL):
        parts.append(BUSY)
    return "\n\n".join(parts)


def markdown(results: Sequence[Result]) -> str:
    """The same for a page, after a table for each measure by which clients are compared."""
    parts = []
    for world, heading in HEADINGS.items():
        found = _grouped(results, world)
        if not found:
            continue
        for column in COLUMNS:
            if column.best is not None:
                here = [contender for contender in REAL_CONTENDERS if any(contender in rows for rows in found.values())]
                cells = [
                    [name, *(column.cell(rows[contender]) if contender in rows else "-" for contender in here)]
                    for name, rows in found.items()
                ]
                measured = [row for row in cells if set(row[1:]) != {"-"}]
                if measured:
                    parts.append(f"### {column.heading}{heading}\n\n{_page([['', *here], *measured])}")
        behind = [f"- {line}" for line in _behind(found)]
        parts.append("\n".join([f"### Where ours is not first{heading}\n", *(behind or ["Nowhere."])]))
        parts += [
            f"### {name}{heading}\n\n{about(world, name)}\n\n{_page(rows)}"
            for name, rows in _tables(found, _busy(results, world))
        ]
    compared = comparison.compare(results)
    if compared:
        lines = "\n".join(f"- {line}" for line in comparison.summary(compared))
        parts.append(f"### Model against reality\n\n{_page(comparison.rows(compared))}\n\n{lines}")
    if _busy(results, REAL):
        parts.append(BUSY)
    return "\n\n".join(parts)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    between = "  " if sum(widths) + 2 * len(widths) - 2 <= WIDTH else " "
    return [between.join(c.ljust(width) for c, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _page(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rest])


def _grouped(results: Sequence[Result], world: str) -> dict[str, dict[str, list[Measures]]]:
    """Those of a world by scenario and contender, those without results left out."""
    found: dict[str, dict[str, list[Measures]]] = {}
    for name in SCENARIOS:
        for contender in REAL_CONTENDERS:
            measures = [r.measures for r in results if r.job == Job(name, contender, r.job.seed, world, r.job.luck)]
            if measures:
                found.setdefault(name, {})[contender] = measures
    return found


def _busy(results: Sequence[Result], world: str) -> set[tuple[str, str]]:
    """Scenarios and contenders of which a run was not measured well."""
    return {(r.job.scenario, r.job.contender) for r in results if r.job.world == world and not r.valid}


def _tables(
    found: Mapping[str, Mapping[str, Sequence[Measures]]], busy: set[tuple[str, str]]
) -> Iterator[tuple[str, list[list[str]]]]:
    """The cells of each scenario, with their heading; a measure that no contender has is left out."""
    for name, contenders in found.items():
        rows = [["", *(column.heading for column in COLUMNS)]]
        for contender, measures in contenders.items():
            star = " *" if (name, contender) in busy else ""
            rows.append([contender + star, *(c.cell(measures) for c in COLUMNS)])
        shown = [place for place in range(len(rows[0])) if any(row[place] != "-" for row in rows[1:])]
        yield name, [[row[place] for place in shown] for row in rows]


def _behind(found: Mapping[str, Mapping[str, Sequence[Measures]]]) -> list[str]:
    """Each scenario and measure in which another contender's median is better than ours, as far as can be seen."""
    lines = []
    for name, contenders in found.items():
        for column in COLUMNS:
            ours, others = None, {}
            for contender, measures in contenders.items():
                spread = Spread.of(map(column.measure, measures))
                if spread is not None and contender == OURS:
                    ours = spread.median
                elif spread is not None:
                    others[contender] = spread.median
            if column.best is None or ours is None or not others:
                continue
            best = reduce(column.best, others.values())
            if column.best(ours, best) != ours and column.show(ours) != column.show(best):
                ahead = [who for who, value in others.items() if value == best]
                lines.append(
                    f"{name}, {column.heading}: {column.show(best)} {' and '.join(ahead)}, {column.show(ours)} {OURS}"
                )
    return lines
