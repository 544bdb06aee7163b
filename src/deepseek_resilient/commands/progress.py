"""How far a transfer is: a line that is written over on a terminal, a plain line now and then elsewhere.

The rate is that of the last ten seconds, and the time left is what remains at that rate.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.commands.terminal import Terminal

WINDOW: Final = 10.0
"""Seconds that the rate is taken from."""

_EVERY: Final = {True: 0.1, False: 30.0}
"""Seconds between two lines: on a terminal, elsewhere."""

_BAR: Final = 24


class Bar:
    """Tells a person how far one file is; `local.pull.Progress`."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal, self._clock = terminal, clock
        self._name, self._total, self._done = "", 0, 0
        self._shown = 0.0
        self._open = False
        self._marks: deque[tuple[float, int]] = deque()

    def begin(self, name: str, done: int, total: int | None) -> None:
        """Bytes of this file come from now on."""
        self._name, self._total, self._done = name, total or 0, done
        now = self._clock()
        self._marks = deque([(now, done)])
        self._show(now)

    def advance(self, done: int) -> None:
        """So many bytes are there."""
        self._done = done
        now = self._clock()
        if now - self._shown >= _EVERY[self._terminal.live]:
            self._marks.append((now, done))
            while len(self._marks) > 2 and self._marks[1][0] <= now - WINDOW:
                self._marks.popleft()
            self._show(now)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._close()
        self._terminal.line(text)

    def end(self) -> None:
        """Show where it stands, and leave the line."""
        if self._marks:
            now = self._clock()
            self._marks.append((now, self._done))
            self._show(now)
            self._marks.clear()
        self._close()

    def _close(self) -> None:
        if self._open:
            self._terminal.line()
            self._open = False

    def _show(self, now: float) -> None:
        self._shown = now
        text = self._text(now)
        if self._terminal.live:
            self._terminal.rewrite(text)
            self._open = True
        else:
            self._terminal.line(text)

    def _text(self, now: float) -> str:
        then, had = self._marks[0]
        rate = (self._done - had) / (now - then) if now > then else 0.0
        told = f"{size(self._done)} of {size(self._total)}" if self._total else size(self._done)
        share = self._done / self._total if self._total else 0.0
        if rate > 0:
            told += f"  {size(int(rate))}/s"
            if self._total > self._done:
                told += f"  {duration((self._total - self._done) / rate)} left"
        percent = f"{share:4.0%}  " if self._total else ""
        bar = self._bar(share) if self._terminal.live and self._total else ""
        return f"{self._name}  {bar}{percent}{told}"

    def _bar(self, share: float) -> str:
        full = int(share * _BAR)
        signs = "█·" if self._terminal.unicode else "#."
        return f"{signs[0] * full}{signs[1] * (_BAR - full)} "


def size(count: float) -> str:
    """Bytes for a person, in powers of ten, as shops and hubs count."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def duration(seconds: float) -> str:
    """A length of time for a person."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
