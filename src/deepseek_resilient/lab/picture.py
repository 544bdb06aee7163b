"""The picture of a storm: an SVG of small multiples, written by hand because it needs nothing but text.

One column per contender with shared axes: above, answers per second against what was offered and what the server can
do; below, requests per second on a logarithmic scale. Lines differ in form and not only in colour. A viewer in dark
mode gets dark colours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from .contenders import LABELS
from .plan import SLOT, measure, per_second
from .report import recovered
from .svg import Scale, grid, hatched, opening, points, staircase, steps, text, times, turned

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from .plan import Outcome, Plan

_PANEL: Final = (262.0, 176.0, 96.0)
_LEFT, _TOP, _GAP, _BETWEEN = 66.0, 132.0, 22.0, 30.0
_RIGHT, _BOTTOM = 20.0, 56.0


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
        *opening(width, height, _summary(plan)),
        text(20, 30, _summary(plan), "title"),
        *_key(20, 56),
        text(width - _RIGHT, height - 14, f"seed {plan.seed}, {day.isoformat()}", "soft", "end"),
        text(_LEFT, height - 14, "seconds since the start; the same callers at the same times for each", "soft"),
    ]
    for number, outcome in enumerate(outcomes):
        left = _LEFT + number * (wide + _GAP)
        across = Scale(0, shown, left, left + wide)
        upper = Scale(0, most, _TOP + high, _TOP)
        lower = Scale(0, busiest, _TOP + high + _BETWEEN + low, _TOP + high + _BETWEEN)
        parts += _outage(plan, across, upper)
        parts += _outage(plan, across, lower)
        parts += _heading(plan, outcome, left)
        parts += grid(upper, steps(most), across, left if number == 0 else None)
        parts += grid(lower, range(int(busiest) + 1), across, left if number == 0 else None, power=True)
        parts += times(shown, across, lower.low)
        good = points(answered[number], across, upper)
        first, last = (f"{across(at):.1f},{upper.low:.1f}" for at in (SLOT / 2, (len(answered[number]) - 0.5) * SLOT))
        parts.append(f'<polygon class="good" points="{first} {good} {last}"/>')
        parts.append(f'<polyline class="offered" points="{staircase(offered, across, upper)}"/>')
        parts.append(
            f'<line class="capacity" x1="{left:g}" x2="{left + wide:g}" y1="{upper(plan.capacity):.1f}" '
            f'y2="{upper(plan.capacity):.1f}"/>'
        )
        parts.append(f'<polyline class="goodline" points="{good}"/>')
        logs = [math.log10(max(rate, 1.0)) for rate in attempts[number]]
        parts.append(f'<polyline class="sent" points="{points(logs, across, lower)}"/>')
    parts += [
        turned(24, _TOP + high / 2, "answers/s"),
        turned(24, _TOP + high + _BETWEEN + low / 2, "requests/s"),
        "</svg>\n",
    ]
    return "\n".join(part for part in parts if part)


def _summary(plan: Plan) -> str:
    rate = max(phase.load for phase in plan.phases) * plan.capacity
    return f"An overload and an outage: {rate:g} requests/s for a server of {plan.capacity:g}/s"


def _offered(plan: Plan) -> list[tuple[float, float]]:
    steps = [(end, phase.load * plan.capacity) for phase, _, end in plan.spans()]
    last, rate = steps.pop()
    return [*steps, (last - plan.drain, rate)]


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
        parts.append(text(x + 30, y, label))
        x += width + 14
    return parts


def _outage(plan: Plan, across: Scale, up: Scale) -> list[str]:
    return [hatched(across, up, begin, end) for phase, begin, end in plan.spans() if phase.fault]


def _heading(plan: Plan, outcome: Outcome, left: float) -> list[str]:
    measures = measure(plan, outcome)
    verdict = f"{measures.answered:.0%} answered; back after outage: {recovered(measures.after_outage)}"
    return [text(left, _TOP - 32, LABELS[outcome.name], "name"), text(left, _TOP - 14, verdict, "soft")]
