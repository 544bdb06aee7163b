"""The picture of a storm: an SVG of small multiples, written by hand because it needs nothing but text.

One column per contender with shared axes: above, answers per second against what was offered and what the server can
do; below, requests per second on a logarithmic scale. Lines differ in form and not only in colour. A viewer in dark
mode gets dark colours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from .contenders import LABELS
from .plan import SLOT, measure, per_second
from .report import recovered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from .plan import Outcome, Plan

_PANEL: Final = (262.0, 176.0, 96.0)
_LEFT, _TOP, _GAP, _BETWEEN = 66.0, 132.0, 22.0, 30.0
_RIGHT, _BOTTOM = 20.0, 56.0

_STYLE: Final = """
text { font: 12px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #404a55 }
.title { font-size: 17px; font-weight: 600; fill: #16202a }
.name { font-size: 14px; font-weight: 600; fill: #16202a }
.soft { fill: #66707a }
.card { fill: #ffffff; stroke: #d8dee4 }
.grid { stroke: #e6eaee; stroke-width: 1 }
.axis { stroke: #99a3ad; stroke-width: 1 }
.outage { fill: #e9ecef }
.hatch { stroke: #c3cad1; stroke-width: 1.2 }
.good { fill: #1f6feb; fill-opacity: .28 }
.goodline { fill: none; stroke: #1a5fd0; stroke-width: 2; stroke-linejoin: round }
.offered { fill: none; stroke: #8a5a00; stroke-width: 1.5; stroke-dasharray: 2 3 }
.capacity { stroke: #16202a; stroke-width: 1.3; stroke-dasharray: 8 4 }
.sent { fill: none; stroke: #b3261e; stroke-width: 2; stroke-linejoin: round }
@media (prefers-color-scheme: dark) {
text { fill: #b7c0ca } .title, .name { fill: #eef2f6 } .soft { fill: #929ca6 }
.card { fill: #0f151b; stroke: #2d3640 } .grid { stroke: #222b34 } .axis { stroke: #5d6873 }
.outage { fill: #1c242c } .hatch { stroke: #3a4550 } .good { fill: #4c94ff; fill-opacity: .3 }
.goodline { stroke: #79b0ff } .offered { stroke: #e3b34c } .capacity { stroke: #eef2f6 } .sent { stroke: #ff8a7d }
}
"""


def draw(plan: Plan, outcomes: Sequence[Outcome], day: date) -> str:
    """The SVG document."""
    wide, high, low = _PANEL
    width = _LEFT + len(outcomes) * (wide + _GAP) - _GAP + _RIGHT
    height = _TOP + high + _BETWEEN + low + _BOTTOM
    shown = plan.seconds - plan.drain
    offered = _offered(plan)
    answered = [per_second([c.ended for c in o.calls if c.answered and c.ended is not None], shown) for o in outcomes]
    attempts = [[count / SLOT for count in o.attempts[: int(shown / SLOT + 1e-6)]] for o in outcomes]
    most = max(max(rate for _, rate in offered), max((max(row) for row in answered), default=0.0)) * 1.04
    busiest = math.log10(max(100.0, 1.3 * max((max(row, default=0.0) for row in attempts), default=0.0)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-labelledby="title"><title id="title">{escape(_summary(plan))}</title>'
        f"<style>{_STYLE}</style>"
        '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="7" height="7" class="outage"/><line x1="0" y1="0" x2="0" y2="7" class="hatch"/></pattern></defs>'
        f'<rect x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" rx="8" class="card"/>',
        _text(20, 30, _summary(plan), "title"),
        *_key(20, 56),
        _text(width - _RIGHT, height - 14, f"seed {plan.seed}, {day.isoformat()}", "soft", "end"),
        _text(_LEFT, height - 14, "seconds since the start; the same callers at the same times for each", "soft"),
    ]
    for number, outcome in enumerate(outcomes):
        left = _LEFT + number * (wide + _GAP)
        across = _Scale(0, shown, left, left + wide)
        upper = _Scale(0, most, _TOP + high, _TOP)
        lower = _Scale(0, busiest, _TOP + high + _BETWEEN + low, _TOP + high + _BETWEEN)
        parts += _outage(plan, across, upper)
        parts += _outage(plan, across, lower)
        parts += _heading(plan, outcome, left)
        parts += _grid(upper, _steps(most), across, left if number == 0 else None)
        parts += _grid(lower, range(int(busiest) + 1), across, left if number == 0 else None, power=True)
        parts += _times(shown, across, lower.low)
        good = _points(answered[number], across, upper)
        first, last = (f"{across(at):.1f},{upper.low:.1f}" for at in (SLOT / 2, (len(answered[number]) - 0.5) * SLOT))
        parts.append(f'<polygon class="good" points="{first} {good} {last}"/>')
        parts.append(f'<polyline class="offered" points="{_staircase(offered, across, upper)}"/>')
        parts.append(
            f'<line class="capacity" x1="{left:g}" x2="{left + wide:g}" y1="{upper(plan.capacity):.1f}" '
            f'y2="{upper(plan.capacity):.1f}"/>'
        )
        parts.append(f'<polyline class="goodline" points="{good}"/>')
        logs = [math.log10(max(rate, 1.0)) for rate in attempts[number]]
        parts.append(f'<polyline class="sent" points="{_points(logs, across, lower)}"/>')
    parts += [
        _turned(24, _TOP + high / 2, "answers/s"),
        _turned(24, _TOP + high + _BETWEEN + low / 2, "requests/s"),
        "</svg>\n",
    ]
    return "\n".join(part for part in parts if part)


class _Scale:
    """From values to places on the page."""

    def __init__(self, least: float, most: float, low: float, high: float) -> None:
        self._least, self._factor, self.low, self.high = least, (high - low) / (most - least), low, high

    def __call__(self, value: float) -> float:
        return self.low + (value - self._least) * self._factor


def _summary(plan: Plan) -> str:
    rate = max(phase.load for phase in plan.phases) * plan.capacity
    return f"An overload and an outage: {rate:g} requests/s for a server of {plan.capacity:g}/s"


def _offered(plan: Plan) -> list[tuple[float, float]]:
    steps = [(end, phase.load * plan.capacity) for phase, _, end in plan.spans()]
    last, rate = steps.pop()
    return [*steps, (last - plan.drain, rate)]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _turned(x: float, y: float, text: str) -> str:
    return f'<text transform="translate({x:g} {y:g}) rotate(-90)" text-anchor="middle">{escape(text)}</text>'


def _key(x: float, y: float) -> list[str]:
    parts: list[str] = []
    for kind, label, width in (
        ("goodline", "answers that callers got", 172),
        ("offered", "calls offered", 108),
        ("capacity", "what the server can do", 168),
        ("sent", "requests sent", 112),
        ("", "outage (503)", 100),
    ):
        if kind:
            if kind == "goodline":
                parts.append(f'<rect class="good" x="{x:g}" y="{y - 4:g}" width="24" height="8"/>')
            parts.append(f'<line class="{kind}" x1="{x:g}" x2="{x + 24:g}" y1="{y - 4:g}" y2="{y - 4:g}"/>')
        else:
            parts.append(f'<rect fill="url(#hatch)" x="{x:g}" y="{y - 10:g}" width="24" height="12"/>')
        parts.append(_text(x + 30, y, label))
        x += width + 14
    return parts


def _outage(plan: Plan, across: _Scale, up: _Scale) -> list[str]:
    return [
        f'<rect fill="url(#hatch)" x="{across(begin):.1f}" y="{up.high:g}" width="{across(end) - across(begin):.1f}" '
        f'height="{up.low - up.high:g}"/>'
        for phase, begin, end in plan.spans()
        if phase.fault
    ]


def _grid(up: _Scale, marks: Sequence[float], across: _Scale, labels: float | None, power: bool = False) -> list[str]:
    parts = []
    for mark in marks:
        y = up(mark)
        kind = "axis" if mark == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{across.low:g}" x2="{across.high:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if labels is not None:
            parts.append(_text(labels - 6, y + 4, _short(10.0**mark if power else mark), "soft", "end"))
    return parts


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _times(shown: float, across: _Scale, y: float) -> list[str]:
    step = _step(shown)
    marks = [step * number for number in range(int(shown / step + 1e-6) + 1)]
    return [_text(across(mark), y + 16, f"{mark:g}", "soft", "middle") for mark in marks]


def _steps(most: float) -> list[float]:
    step = _step(most)
    return [step * number for number in range(int(most / step) + 1)]


def _step(span: float) -> float:
    rough = span / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)


def _points(values: Sequence[float], across: _Scale, up: _Scale) -> str:
    return " ".join(f"{across((i + 0.5) * SLOT):.1f},{up(value):.1f}" for i, value in enumerate(values))


def _staircase(steps: Sequence[tuple[float, float]], across: _Scale, up: _Scale) -> str:
    points, begin = [], 0.0
    for end, rate in steps:
        points += [f"{across(begin):.1f},{up(rate):.1f}", f"{across(end):.1f},{up(rate):.1f}"]
        begin = end
    return " ".join(points)


def _heading(plan: Plan, outcome: Outcome, left: float) -> list[str]:
    measures = measure(plan, outcome)
    verdict = f"{measures.answered:.0%} answered; back after outage: {recovered(measures.after_outage)}"
    return [_text(left, _TOP - 32, LABELS[outcome.name], "name"), _text(left, _TOP - 14, verdict, "soft")]
