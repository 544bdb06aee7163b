"""What a terminal can show: colour, characters beyond ASCII, lines that are written over. Standard library only."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

MARKS: Final = {"ok": ("✓", "+", "32"), "warning": ("!", "!", "33"), "problem": ("✗", "x", "31")}
_BARS: Final = ("▁▂▃▄▅▆▇█", "_.-:=+*#")


class CommandError(Exception):
    """The command cannot go on: its message is one clear sentence for standard error; the exit status is 2."""


class Terminal:
    """One stream, and what it can show. Colour is off where `NO_COLOR` is set, `TERM` is dumb, or nobody watches."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.live = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self.colour = self.live and not os.environ.get("NO_COLOR")
        self.unicode = can_encode(stream, "✓▁█·")
        self._above = 0

    @property
    def width(self) -> int:
        """Columns."""
        return shutil.get_terminal_size((80, 24)).columns

    def paint(self, text: str, code: str) -> str:
        """The text in an SGR code ("2" is dim), where colour is on."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def mark(self, level: str) -> str:
        """The sign of a level: ok, warning or problem."""
        sign, plain, code = MARKS[level]
        return self.paint(sign if self.unicode else plain, code)

    def bars(self, values: Sequence[float], most: float) -> str:
        """One character per value, its height the share of `most`."""
        signs = _BARS[0 if self.unicode else 1]
        return "".join(signs[min(int(value / most * len(signs)), len(signs) - 1)] for value in values)

    def line(self, text: str = "") -> None:
        """Write a line, now."""
        print(readable(text, self._stream), file=self._stream, flush=True)

    def paragraph(self, text: str, level: str = "") -> None:
        """Write prose, wrapped at 80 columns or where the terminal ends, behind the mark of a level if one is given."""
        indent = "  " if level else ""
        lines = textwrap.fill(
            text, min(self.width, 80), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        self.line(f"{self.mark(level)} {lines[2:]}" if level else lines)

    def rewrite(self, text: str) -> None:
        """Write over the line that the cursor is on, cut to the width; only where `live`. `line()` leaves it."""
        self._stream.write(f"\r\x1b[2K{readable(text, self._stream)[: self.width - 1]}")
        self._stream.flush()

    def redraw(self, lines: Sequence[str]) -> None:
        """Write lines over those of the last time; only where `live`. They must fit the width."""
        up = f"\x1b[{self._above}A" if self._above else ""
        body = "".join(f"\r\x1b[2K{readable(text, self._stream)}\n" for text in lines)
        self._stream.write(up + body)
        self._stream.flush()
        self._above = len(lines)


def can_encode(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has these characters."""
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def readable(text: str, stream: TextIO) -> str:
    """The text with a question mark for each character that the stream cannot carry."""
    encoding = stream.encoding or "ascii"
    return text.encode(encoding, "replace").decode(encoding)


def silence_stdout() -> None:
    """Nobody reads any more: let what is still buffered go nowhere, so that the interpreter ends quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
