"""A storm in one picture (SVG): how the answers of every client go over time, and what that cost.

Above a panel for each client with shared axes: answers per second against what the servers could do and what was
asked; the last panel is our client's limit of calls at once, and the calls that wait in it. Below, a row for each
client: requests per call on a logarithmic scale, and the seconds that answered calls took and others waited in vain.
Where there are several seeds, series are their means and numbers their medians. Lines differ in form and not only in
colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean, median
from typing import TYPE_CHECKING, Final

from deepseek_resilient.lab.plan import spans
from deepseek_resilient.lab.svg import Scale, grid, hatched, opening, points, staircase, steps, text, times, turned

from .real.contenders import REAL_CONTENDERS
from .record import REAL
from .scale import about, scenarios_of
from .tables import OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .results import Result
    from .scenario import Scenario

_WIDTH: Final = 960.0
_LEFT, _RIGHT, _TOP = 62.0, 20.0, 108.0
_PANEL, _ROW, _ACROSS = 118.0, 22.0, 22.0
_BETWEEN, _BOTTOM = 58.0, 44.0
_NAMES: Final = 104.0
_HEADROOM: Final = 1.6
"""Panels go up to so many times the capacity; what was asked may go out at the top."""


@dataclass(frozen=True, slots=True)
class Row:
    """One client in this storm."""

    name: str
    answers: list[float]
    limits: list[float]
    queued: list[float]
    goodput: float
    attempts: float
    p50: float | None
    p99: float | None
    told: float | None


def draw(world: str, name: str, results: Sequence[Result]) -> str:
    """The picture of that storm in that world. Raises ValueError where there is no result of it."""
    scenario = scenarios_of(world)[name]
    rows = _rows([r for r in results if (r.job.world, r.job.scenario) == (world, name)])
    if not rows:
        raise ValueError(f"no result of {name}")
    columns = max(math.ceil((len(rows) + 1) / 2), 2)
    wide = (_WIDTH - _LEFT - _RIGHT - _ACROSS * (columns - 1)) / columns
    bands = math.ceil((len(rows) + 1) / columns)
    below = _TOP + bands * (_PANEL + _BETWEEN) + 30
    height = below + len(rows) * _ROW + _BOTTOM
    place = " over real HTTP" if world == REAL else ""
    told = "; ".join(f"{row.name}: goodput {row.goodput:.0%}, {row.attempts:.2f} requests per call" for row in rows)
    parts = [
        *opening(_WIDTH, height, f"{name}{place}. {about(world, name)}", told),
        text(20, 30, f"{name}{place}", "title"),
        text(20, 50, about(world, name), "soft"),
        *_key(20, 76),
    ]
    for number, row in enumerate(rows):
        left, top = _LEFT + number % columns * (wide + _ACROSS), _TOP + number // columns * (_PANEL + _BETWEEN) + 18
        parts += _panel(scenario, row, left, wide, top, first=number % columns == 0)
    ours = next((row for row in rows if row.name == OURS and row.limits), None)
    if ours is not None:
        number = len(rows)
        left, top = _LEFT + number % columns * (wide + _ACROSS), _TOP + number // columns * (_PANEL + _BETWEEN) + 18
        parts += _limit(scenario, ours, left, wide, top)
    parts += _attempts(rows, 20, below)
    parts += _seconds(scenario, rows, _WIDTH / 2 + 10, below)
    return "\n".join([*parts, "</svg>\n"])


def _rows(results: Sequence[Result]) -> list[Row]:
    found = []
    for name in REAL_CONTENDERS:
        here = [result for result in results if result.job.contender == name]
        if here:
            measures = [result.measures for result in here]
            found.append(
                Row(
                    name,
                    _mean([result.series.answers for result in here]),
                    _mean([result.series.limits for result in here]),
                    _mean([result.series.queued for result in here]),
                    median(m.goodput for m in measures),
                    median(m.attempts for m in measures),
                    _median([m.p50 for m in measures]),
                    _median([m.p99 for m in measures]),
                    _median([m.refusal for m in measures]),
                )
            )
    return found


def _mean(series: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(value for value in slot if value is not None) for slot in zip_longest(*series)]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _frame(scenario: Scenario, left: float, wide: float, top: float, most: float) -> tuple[Scale, Scale]:
    shown = scenario.seconds + scenario.patience
    return Scale(0, shown, left, left + wide), Scale(0, most, top + _PANEL, top)


def _panel(scenario: Scenario, row: Row, left: float, wide: float, top: float, first: bool) -> list[str]:
    """A client's answers per second."""
    each = scenario.mean_work
    capacity = scenario.capacity / each
    across, up = _frame(scenario, left, wide, top, capacity * _HEADROOM)
    clip = f"panel-{row.name}"
    could = [(end, rate / each) for end, rate in scenario.availability()]
    could.append((scenario.seconds + scenario.patience, capacity))
    asked = [(end, phase.load * capacity) for phase, _, end in spans(scenario.phases)]
    good = points(row.answers, across, up)
    edges = [f"{across(at):.1f},{up.low:.1f}" for at in (0.25, len(row.answers) / 2 - 0.25)]
    parts = [
        f'<clipPath id="{clip}"><rect x="{left:g}" y="{top:g}" width="{wide:g}" height="{_PANEL:g}"/></clipPath>',
        text(left, top - 8, row.name, "name"),
        text(left + wide, top - 8, f"{row.goodput:.0%}", "soft", "end"),
        *_trouble(scenario, across, up),
        *grid(up, steps(capacity * _HEADROOM), across, left if first else None),
        *times(scenario.seconds + scenario.patience, across, up.low),
        f'<g clip-path="url(#{clip})">',
        f'<polygon class="good" points="{edges[0]} {good} {edges[1]}"/>',
    ]
    if not scenario.crowd:
        parts.append(f'<polyline class="offered" points="{staircase(asked, across, up)}"/>')
    parts += [
        f'<polyline class="capacity" fill="none" points="{staircase(could, across, up)}"/>',
        f'<polyline class="goodline" points="{good}"/>',
        "</g>",
    ]
    return [*parts, turned(22, top + _PANEL / 2, "answers/s")] if first else parts


def _limit(scenario: Scenario, ours: Row, left: float, wide: float, top: float) -> list[str]:
    """What our client allows itself, and who waits in it."""
    most = max(*ours.limits, *ours.queued, 1.0) * 1.1
    across, up = _frame(scenario, left, wide, top, most)
    return [
        text(left, top - 8, f"{OURS}: limit, queue", "name"),
        *_trouble(scenario, across, up),
        *grid(up, steps(most), across, None),
        *(text(left + 4, up(mark) - 3, f"{mark:g}", "soft") for mark in steps(most)[1:]),
        *times(scenario.seconds + scenario.patience, across, up.low),
        f'<polyline class="sent" stroke-dasharray="5 3" points="{points(ours.queued, across, up)}"/>',
        f'<polyline class="goodline" points="{points(ours.limits, across, up)}"/>',
    ]


def _trouble(scenario: Scenario, across: Scale, up: Scale) -> list[str]:
    return [
        hatched(across, up, begin, end)
        for phase, begin, end in spans(scenario.phases)
        if phase.fault or scenario.available.get(phase.name, 1.0) < 1
    ]


def _attempts(rows: Sequence[Row], left: float, top: float) -> list[str]:
    """A bar from one request per call to what it was."""
    least = min(-1.0, *(math.log10(max(row.attempts, 0.01)) for row in rows))
    most = max(1.0, *(math.log10(max(row.attempts, 0.01)) for row in rows))
    across = Scale(least, most, left + _NAMES, _WIDTH / 2 - 60)
    marks = [(mark, f"{10.0**mark:g}") for mark in range(math.ceil(least), math.floor(most) + 1)]

    def bar(row: Row, y: float) -> list[str]:
        begin, end = sorted((across(0), across(math.log10(max(row.attempts, 0.01)))))
        kind = "more" if row.attempts > 1 else "less"
        shown = f"{row.attempts:.1f}" if row.attempts >= 10 else f"{row.attempts:.2f}"
        return [
            f'<rect class="{kind}" x="{begin:.1f}" y="{y - 11:.1f}" width="{max(end - begin, 1):.1f}" height="13"/>',
            text(max(end, across(0)) + 6, y, shown, ""),
        ]

    heading = "requests per call"
    return _lines(rows, left, top, heading, across, marks, bar)


def _seconds(scenario: Scenario, rows: Sequence[Row], left: float, top: float) -> list[str]:
    """From the median to the 99th percentile of answered calls, and when the others knew."""
    across = Scale(0, scenario.patience * 1.04, left + _NAMES, _WIDTH - _RIGHT - 12)

    def span(row: Row, y: float) -> list[str]:
        parts = []
        if row.p50 is not None and row.p99 is not None:
            a, b = across(row.p50), across(row.p99)
            parts += [
                f'<line class="goodline" x1="{a:.1f}" x2="{b:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}"/>',
                f'<circle class="dot" cx="{a:.1f}" cy="{y - 4:.1f}" r="4"/>',
                f'<line class="goodline" x1="{b:.1f}" x2="{b:.1f}" y1="{y - 10:.1f}" y2="{y + 2:.1f}"/>',
            ]
        if row.told is not None:
            x = across(row.told)
            parts.append(f'<path class="sent" d="M{x - 4:.1f} {y - 8:.1f}l8 8m0 -8l-8 8"/>')
        return parts

    heading = "seconds: ● median, ┤ 99 % of answers; × until the others knew (median)"
    return _lines(rows, left, top, heading, across, [(mark, f"{mark:g}") for mark in steps(scenario.patience)], span)


def _lines(
    rows: Sequence[Row],
    left: float,
    top: float,
    heading: str,
    across: Scale,
    marks: Sequence[tuple[float, str]],
    show: Callable[[Row, float], list[str]],
) -> list[str]:
    """A row for each client under a heading, with upright lines at the marks."""
    low = top + len(rows) * _ROW + 6
    parts = [text(left, top - 10, heading, "")]
    for mark, label in marks:
        x = across(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 2:g}" y2="{low:g}"/>')
        parts.append(text(x, low + 15, label, "soft", "middle"))
    for number, row in enumerate(rows):
        y = top + (number + 0.75) * _ROW
        parts += [text(left, y, row.name, "name" if row.name == OURS else ""), *show(row, y)]
    return parts


def _key(x: float, y: float) -> list[str]:
    parts: list[str] = []
    for kind, label, width in (
        ("goodline", "answers (%: goodput)", 178),
        ("capacity", "what the servers could do", 202),
        ("offered", "calls", 76),
        ("", "trouble", 90),
        ("limit", "limit of calls at once, and", 190),
        ("queue", "calls that wait", 0),
    ):
        if kind == "":
            parts.append(f'<rect fill="url(#hatch)" x="{x:g}" y="{y - 10:g}" width="24" height="12"/>')
        else:
            line = {"limit": "goodline", "queue": "sent"}.get(kind, kind)
            dash = ' stroke-dasharray="5 3"' if kind == "queue" else ""
            if kind == "goodline":
                parts.append(f'<rect class="good" x="{x:g}" y="{y - 4:g}" width="24" height="8"/>')
            parts.append(f'<line class="{line}"{dash} x1="{x:g}" x2="{x + 24:g}" y1="{y - 4:g}" y2="{y - 4:g}"/>')
        parts.append(text(x + 30, y, label))
        x += width
    return parts
