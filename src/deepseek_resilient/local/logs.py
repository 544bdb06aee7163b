"""Where the output of children is kept: one file each, the last ten, readable by their owner alone."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import tempfile
from pathlib import Path

from deepseek_resilient.local.process import running

KEEP = 10
_NUMBERS = itertools.count(1)


def new_log(folder: Path | None = None) -> Path:
    """A path for the next child; older logs than the last ten are removed. Never raises."""
    folder = folder or default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        folder = _own_folder()
    with contextlib.suppress(OSError):
        kept = sorted(folder.glob("local-server-*.log"), key=_age)
        for old in kept[: max(0, len(kept) - KEEP + 1)]:
            if _is_used(old):
                continue
            old.unlink(missing_ok=True)
            old.with_name(old.name + ".1").unlink(missing_ok=True)
    return folder / f"local-server-{os.getpid()}-{next(_NUMBERS)}.log"


def default_folder() -> Path:
    """`$XDG_STATE_HOME/deepseek-resilient`, which is `~/.local/state/deepseek-resilient` unless it is set."""
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "deepseek-resilient"
    except RuntimeError:  # no home
        return _own_folder()


@functools.cache
def _own_folder() -> Path:
    """Where there is no place of the user's: a folder that nobody else can have made, one for this process."""
    try:
        return Path(tempfile.mkdtemp(prefix="deepseek-resilient-"))
    except OSError:
        return Path("/nonexistent")  # the keeper will say that it cannot write there


def _is_used(log: Path) -> bool:
    """Whether another process that it was made for still runs, or a child of this one that writes it."""
    number = log.stem.split("-")[2]
    if not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return int(number) != os.getpid() or log in running()


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
