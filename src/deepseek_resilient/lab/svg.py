"""What the lab's pictures are drawn with: places, grids, lines and texts of an SVG, in colours for light and dark."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from .plan import SLOT

if TYPE_CHECKING:
    from collections.abc import Sequence

STYLE: Final = """
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
.more { fill: #b3261e; fill-opacity: .75 }
.less, .dot { fill: #1a5fd0; fill-opacity: .85 }
@media (prefers-color-scheme: dark) {
text { fill: #b7c0ca } .title, .name { fill: #eef2f6 } .soft { fill: #929ca6 }
.card { fill: #0f151b; stroke: #2d3640 } .grid { stroke: #222b34 } .axis { stroke: #5d6873 }
.outage { fill: #1c242c } .hatch { stroke: #3a4550 } .good { fill: #4c94ff; fill-opacity: .3 }
.goodline { stroke: #79b0ff } .offered { stroke: #e3b34c } .capacity { stroke: #eef2f6 } .sent { stroke: #ff8a7d }
.more { fill: #ff8a7d } .less, .dot { fill: #79b0ff }
}
"""


class Scale:
    """From values to places on the page."""

    def __init__(self, least: float, most: float, low: float, high: float) -> None:
        self._least, self._factor, self.low, self.high = least, (high - low) / (most - least), low, high

    def __call__(self, value: float) -> float:
        return self.low + (value - self._least) * self._factor


def opening(width: float, height: float, title: str, description: str = "") -> list[str]:
    """The document up to its card; `title` and `description` are for who cannot see it."""
    told = f'<desc id="told">{escape(description)}</desc>' if description else ""
    labels = "title told" if description else "title"
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-labelledby="{labels}"><title id="title">{escape(title)}</title>{told}'
        f"<style>{STYLE}</style>"
        '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="7" height="7" class="outage"/><line x1="0" y1="0" x2="0" y2="7" class="hatch"/></pattern></defs>',
        f'<rect x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" rx="8" class="card"/>',
    ]


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """A text whose `anchor` is at that place."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def turned(x: float, y: float, words: str) -> str:
    """The name of an axis that stands upright."""
    return f'<text transform="translate({x:g} {y:g}) rotate(-90)" text-anchor="middle">{escape(words)}</text>'


def hatched(across: Scale, up: Scale, begin: float, end: float) -> str:
    """A time of trouble."""
    return (
        f'<rect fill="url(#hatch)" x="{across(begin):.1f}" y="{up.high:g}" width="{across(end) - across(begin):.1f}" '
        f'height="{up.low - up.high:g}"/>'
    )


def grid(up: Scale, marks: Sequence[float], across: Scale, labels: float | None, power: bool = False) -> list[str]:
    """Level lines, and what they mean where `labels` says a place; with `power` the marks are powers of ten."""
    parts = []
    for mark in marks:
        y = up(mark)
        kind = "axis" if mark == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{across.low:g}" x2="{across.high:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if labels is not None:
            parts.append(text(labels - 6, y + 4, _short(10.0**mark if power else mark), "soft", "end"))
    return parts


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def times(shown: float, across: Scale, y: float) -> list[str]:
    """Seconds below a panel."""
    step = _step(shown)
    marks = [step * number for number in range(int(shown / step + 1e-6) + 1)]
    return [text(across(mark), y + 16, f"{mark:g}", "soft", "middle") for mark in marks]


def steps(most: float) -> list[float]:
    """Round marks from 0 to `most`."""
    step = _step(most)
    return [step * number for number in range(int(most / step) + 1)]


def _step(span: float) -> float:
    rough = span / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)


def points(values: Sequence[float], across: Scale, up: Scale) -> str:
    """A value for each slot, as the places of a line."""
    return " ".join(f"{across((i + 0.5) * SLOT):.1f},{up(value):.1f}" for i, value in enumerate(values))


def staircase(rates: Sequence[tuple[float, float]], across: Scale, up: Scale) -> str:
    """Values that each hold until a time, as the places of a line."""
    places, begin = [], 0.0
    for end, rate in rates:
        places += [f"{across(begin):.1f},{up(rate):.1f}", f"{across(end):.1f},{up(rate):.1f}"]
        begin = end
    return " ".join(places)
