"""`deepseek-resilient demo`: three clients through the same overload and outage, a table and a picture of it."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deepseek_resilient.commands.terminal import CommandError, Terminal
from deepseek_resilient.lab.plan import SLOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepseek_resilient.lab.plan import Outcome, Plan
    from deepseek_resilient.lab.storm import Progress

NAMES: Final = ("naive", "openai", "ours")
PICTURE: Final = "deepseek-resilient-demo.svg"
_SPARK: Final = 26
_WORDS: Final = 54


def add(commands: Any) -> None:
    """Describe it to argparse."""
    line = commands.add_parser(
        "demo",
        help="an overload and an outage against a simulated DeepSeek: a table and a picture",
        description="Three clients go, one after the other, through the same 25 seconds: calm, one and a half times as "
        "many calls as the server can take, a relief, an outage of 503s, the time after it. Each has a simulated "
        "DeepSeek of its own on this machine: no key, no network, about 80 seconds.",
        epilog="naive: retries each 100 ms for 4 s. openai: AsyncOpenAI with its 2 retries. ours: AsyncDeepSeek with "
        "its defaults. All limit an attempt to 1 s. Needs about two free cores.",
    )
    line.add_argument(
        "--seconds", type=_number(3, 600), default=25.0, help="length for each client (default: %(default)g)"
    )
    line.add_argument(
        "--rate", type=_number(5, 2000), default=200.0, help="requests/s the server can do (default: %(default)g)"
    )
    line.add_argument("--seed", type=int, default=1, help="of all randomness of callers and server (default: 1)")
    line.add_argument("--only", type=_names, default=NAMES, metavar="NAMES", help=f"some of {','.join(NAMES)}")
    line.add_argument(
        "--output", type=_picture, default=Path(PICTURE), metavar="FILE", help="the picture (default: %(default)s)"
    )
    line.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured to a file")
    line.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the storms, show the table, write the picture."""
    from datetime import UTC, datetime

    from deepseek_resilient.lab import LabProcessError, picture, report, storm
    from deepseek_resilient.lab.plan import Plan

    plan = Plan.of(seconds=options.seconds, capacity=options.rate, seed=options.seed)
    for path in (options.output, options.json):
        if path is not None:
            _check_writable(path)
    out, display = Terminal(sys.stdout), Display(Terminal(sys.stderr), plan, options.only)
    outcomes = []
    try:
        for name in options.only:
            display.start(name)
            outcomes.append(storm.run(name, plan, display.show))
            display.end(outcomes[-1])
    except (storm.StormError, LabProcessError, OSError) as error:
        raise CommandError(str(error)) from error
    display.finish()
    out.line(report.table(plan, outcomes))
    out.line()
    out.paragraph(report.legend(plan))
    out.line()
    out.paragraph(report.reading(plan, outcomes))
    for doubt in report.doubts(outcomes):
        out.paragraph(f"This machine was too busy for exact numbers. {doubt}.", "warning")
    _write(options.output, picture.draw(plan, outcomes, datetime.now(tz=UTC).astimezone().date()))
    if options.json is not None:
        _write(options.json, json.dumps(report.as_json(plan, outcomes)) + "\n")
    out.line(f"\nThe picture is in {options.output}")
    return 0


class Display:
    """The progress, one line per contender: written over on a terminal, a line each second elsewhere."""

    def __init__(self, terminal: Terminal, plan: Plan, names: Sequence[str]) -> None:
        from deepseek_resilient.lab.contenders import LABELS

        self._terminal, self._plan, self._names, self._labels = terminal, plan, names, LABELS
        self._rows: dict[str, str] = {}
        self._history: list[float] = []
        self._name = ""
        self._told = 0

    def start(self, name: str) -> None:
        """Another contender begins."""
        self._name, self._history, self._told = name, [], 0
        self._rows[name] = self._label(name) + "starting"
        if self._terminal.live:
            self._redraw()

    def show(self, progress: Progress) -> None:
        """The running contender's numbers."""
        self._history.append(progress.answered)
        phase = self._plan.phase_at(progress.at).name
        if self._terminal.live:
            self._rows[self._name] = self._row(
                f"{phase:<9}{progress.answered:4.0f} ok/s {progress.attempts:6.0f} sent/s"
            )
            self._redraw()
        elif int(progress.at) > self._told:
            self._told = int(progress.at)
            self._terminal.line(
                f"{self._labels[self._name]}, {progress.at:.0f} s, {phase}: {progress.answered:.0f} answers/s, "
                f"{progress.attempts:.0f} requests/s"
            )

    def end(self, outcome: Outcome) -> None:
        """The running contender is done."""
        answered = sum(call.answered for call in outcome.calls) / max(len(outcome.calls), 1)
        if self._terminal.live:
            self._rows[self._name] = self._row(f"done, {answered:.0%} of calls answered")
            self._redraw()

    def finish(self) -> None:
        """All are done."""
        self._terminal.line()

    def _redraw(self) -> None:
        waiting = {name: self._terminal.paint(self._label(name) + "waiting", "2") for name in self._names}
        self._terminal.redraw([{**waiting, **self._rows}[name] for name in self._names])

    def _label(self, name: str) -> str:
        return f"{self._labels[name]:<20}"

    def _row(self, text: str) -> str:
        width = min(_SPARK, int(self._plan.seconds / SLOT), max(self._terminal.width - _WORDS, 0))
        cells = _squeezed(self._history, self._plan.seconds / SLOT, width)
        spark = self._terminal.bars(cells, self._plan.capacity * 1.05)
        # too long a row would be broken in two, and written over in the wrong place
        left = max(self._terminal.width - 1 - width - 21, 0)
        return f"{self._label(self._name)}{self._terminal.paint(f'{spark:<{width}}', '36')} {text[:left]}"


def _squeezed(values: Sequence[float], total: float, cells: int) -> list[float]:
    """The values of a row that will have `total` of them, as means for the `cells` it has on the screen."""
    groups: list[list[float]] = [[] for _ in range(cells)]
    for number, value in enumerate(values):
        if cells:
            groups[min(int(number / total * cells), cells - 1)].append(value)
    return [sum(group) / len(group) for group in groups if group]


def _number(least: float, most: float) -> Any:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a number from {least:g} to {most:g}, not {text!r}")
        return value

    return number


def _names(text: str) -> tuple[str, ...]:
    wanted = {name.strip() for name in text.split(",")}
    if not wanted or wanted - set(NAMES):
        raise argparse.ArgumentTypeError(f"must be one or more of {','.join(NAMES)}, not {text!r}")
    return tuple(name for name in NAMES if name in wanted)


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".svg":
        raise argparse.ArgumentTypeError(f"the picture is an SVG: its name must end in .svg, not {text!r}")
    return path


def _check_writable(path: Path) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise CommandError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'no such folder'}.")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from error
