"""From the last words of a child to a message that says what to do. A table: pattern, word for the kind, advice."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from deepseek_resilient.errors import LocalModelError

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.local.process import Exit

FINAL = frozenset({"not_installed", "no_model", "corrupt", "too_large", "port_taken", "wrong_key", "closed"})
"""Kinds of failure that another try does not mend."""

_SIGNS = (
    (r"couldn't bind|address already in use|failed to bind", "port_taken",
     "its port is in use: give another one, or port=0 for a free one"),
    (r"cuda out of memory|outofmemoryerror|failed to allocate|bad_alloc|cannot allocate memory|unable to allocate|"
     r"no available memory for the cache blocks|larger than the available kv cache", "too_large",
     "the memory does not suffice: a smaller model or quantisation, a smaller context, or fewer at once (parallel)"),
    (r"invalid magic|not within the file bounds|corrupt|tensor .* data is not|failed to load model|"
     r"error while deserializing|headertoolarge|invalidheader|incompletemetadata", "corrupt",
     "the model's file is damaged or not for this engine: get it again"),
    (r"modulenotfounderror|no module named|importerror", "not_installed", "a package is missing: see the log"),
    (r"repositorynotfound|is not a local folder and is not a valid model|couldn't connect to .*huggingface|"
     r"localentrynotfound", "no_model", "the model is neither here nor to be had from the hub: check its name"),
    (r"trust_remote_code", "no_model", "the model wants to run code of its own, which is not allowed here"),
)  # fmt: skip


def failure_of(ended: Exit, log: Path, engine: str) -> LocalModelError:
    """Why a child ended, and what to do about it."""
    where = f" (its log: {log})"
    if ended.why == "memory":
        return LocalModelError(
            f"the {engine} server {ended}: allow more (memory_limit), or a smaller model or context{where}",
            why="memory",
        )
    if ended.status == 127:
        return LocalModelError(f"the {engine} server cannot be started: {ended.tail.strip()}", why="not_installed")
    if ended.status == -signal.SIGILL:
        return LocalModelError(
            f"the {engine} server {ended}: its build is for another processor; build it from source{where}", why="died"
        )
    tail = ended.tail.lower()
    if ended.status < 0:
        advice = "; where nobody did that, the system ran out of memory" if ended.status == -signal.SIGKILL else ""
        return LocalModelError(f"the {engine} server {ended}{advice}{where}", why="died")
    for pattern, why, advice in _SIGNS:
        if re.search(pattern, tail):
            said = f": {found[0]}" if (found := complaints(ended.tail)) else ""
            return LocalModelError(f"the {engine} server {ended}: {advice}{where}{said}", why=why)
    said = last_words(ended.tail)
    return LocalModelError(f"the {engine} server {ended}{where}" + (f": {said}" if said else ""), why="died")


def last_words(tail: str) -> str:
    """The last line that looks like a complaint, else the last line."""
    return (complaints(tail) or [line.strip() for line in tail.splitlines() if line.strip()] or [""])[-1][:300]


def complaints(tail: str) -> list[str]:
    """The lines that look like one."""
    return [line.strip()[:300] for line in tail.splitlines() if re.search(r"[Ee]rror|\b[EF]\b|[Ff]ail|xception", line)]
