"""Where the output of children is kept: one file each, the last ten, readable by their owner alone."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from pathlib import Path

KEEP = 10
_NUMBERS = itertools.count(1)


def new_log(folder: Path | None = None) -> Path:
    """A path for the next child; older logs than the last ten are removed. Never raises."""
    folder = folder or default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        folder = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        kept = sorted(folder.glob("local-server-*.log"), key=_age)
        for old in kept[: max(0, len(kept) - KEEP + 1)]:
            old.unlink(missing_ok=True)
            old.with_name(old.name + ".1").unlink(missing_ok=True)
    return folder / f"local-server-{os.getpid()}-{next(_NUMBERS)}.log"


def default_folder() -> Path:
    """`$XDG_STATE_HOME/deepseek-resilient`, which is `~/.local/state/deepseek-resilient` unless it is set."""
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "deepseek-resilient"
    except RuntimeError:  # no home
        return Path(tempfile.gettempdir())


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
