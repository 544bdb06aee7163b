"""Reading the pages: code blocks, tables, links, anchors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*\ssrc=\"([^\"]+)\"")


class Block(NamedTuple):
    """A fenced block: its language, the line it begins on, its text."""

    language: str
    line: int
    text: str


def read(name: str) -> str:
    """A page's text, by its path from the root."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """Every fenced block."""
    return [Block(m[1], text.count("\n", 0, m.start()) + 2, m[2]) for m in _FENCE.finditer(text)]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Where links and pictures lead."""
    return [first or second for first, second in _LINK.findall(prose(text))]


def anchors(text: str) -> set[str]:
    """The anchors that the headings make."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def rows(text: str, heading: str) -> list[list[str]]:
    """The rows of every table below `heading` and above the next heading of its level or a higher one."""
    level = len(heading) - len(heading.lstrip("#"))
    begin = text.index(f"\n{heading}\n") + len(heading) + 2
    after = re.search(rf"^#{{1,{level}}} ", text[begin:], re.MULTILINE)
    part = text[begin : begin + after.start()] if after else text[begin:]
    lines = [line for line in prose(part).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines]
    return [row for row in cells if not set("".join(row)) <= set("-|: ")]


def code(cell: str) -> str:
    """What stands between the first pair of backquotes of a cell."""
    return cell.split("`")[1] if "`" in cell else ""
