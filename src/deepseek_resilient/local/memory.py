"""Memory and disk: what a model needs, and reading its files ahead of the engine.

A model is loaded when `1.1 · files + context + 200 MB <= available`: weights are mapped or read once, and the rest is
what an engine takes for itself (llama.cpp 60 MB, torch 400 MB of which the files of a small model are no measure).
What is available is `machine.py`'s to say.

Engines read a file in the order of its tensors, or page by page where they map it; a disk or a network file system is
faster read from start to end in large blocks. What is in the page cache already (RWF_NOWAIT tells) is not read again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

BLOCK = 8 << 20
_OWN = 200 << 20
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


def needed(size: int, context: int) -> int:
    """Bytes of memory that a model of so many bytes takes."""
    return int(1.1 * size) + context + _OWN


def read_ahead(files: Iterable[Path], progress: Callable[[float], None], stopped: Callable[[], bool]) -> int:
    """Read the files from start to end; `progress` is told the share after each block
    that was not in memory yet. Returns the bytes read.

    What cannot be read is left to the engine to complain of.
    """
    listed = [(file, file.stat().st_size) for file in files]
    total, done, read = sum(size for _, size in listed) or 1, 0, 0
    buffer = bytearray(BLOCK)
    for file, size in listed:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            for offset in range(0, size, BLOCK):
                if stopped():
                    return read
                done += min(BLOCK, size - offset)
                if not _is_cached(descriptor, offset):
                    read += os.preadv(descriptor, [buffer], offset)
                    progress(done / total)
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return read


def gigabytes(count: float) -> str:
    """For people: "1.5 GB", "93 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _is_cached(descriptor: int, offset: int) -> bool:
    if not _NOWAIT:
        return False
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, _NOWAIT) > 0
    except OSError:  # "would block": it is on the disk; or this file system knows no such flag
        return False
