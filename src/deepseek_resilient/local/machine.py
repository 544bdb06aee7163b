"""What of this machine's processors and memory a process may use.

The operating system's figures are those of the whole machine; a container, a systemd slice or `taskset` grants less:

    memory     = min(MemTotal, every limit of a control group above us)
    available  = min(MemAvailable, for each such group: limit - (usage - inactive_file))
    cores      = min(processors of our affinity, floor(quota / period) of each group above us), at least 1

`usage - inactive_file` is the working set, as the kubelet computes it: files that were read once and can be dropped are
no memory in use, and the file of a model is the largest of them. Both versions of control groups are read
(`man 7 cgroups`), from our own group up to the root. All figures are bytes. On macOS `sysctl` says how much memory
there is; how much of it is free is not asked, and `UNIFIED_SHARE` of it is taken as available.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

FEATURES: Final = ("avx2", "avx512f", "amx", "f16c", "neon")
"""The instruction sets that decide how fast, or whether, a quantised model runs on a processor."""

UNIFIED_SHARE: Final = 2 / 3
"""Of an Apple chip's memory, what its GPU may hold by default: about two thirds, and three quarters above 36 GB (the
`recommendedMaxWorkingSetSize` of Metal, which llama.cpp keeps to). The smaller share is taken for all."""

_FLAGS: Final = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "amx_tile": "amx",
    "f16c": "f16c",
    "asimd": "neon",
    "neon": "neon",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Processors and memory that this process may use; `memory` and `available` in bytes, 0 where unknown."""

    memory: int
    available: int
    cores: int
    features: tuple[str, ...]


def look(root: Path, system: str, architecture: str) -> Machine:
    """Read it: from the files below `root`, or on Darwin from the `sysctl` below `root`."""
    if system == "Darwin":
        memory = sysctl(root, "hw.memsize")
        features = ("neon",) if architecture == "arm64" else ()
        return Machine(memory, int(memory * UNIFIED_SHARE), _affinity(), features)
    told = _meminfo(root)
    memory, available, cores = told.get("MemTotal", 0), told.get("MemAvailable", 0), _affinity()
    for limit, left in _memory_limits(root):
        memory = min(memory, limit) if memory else limit
        available = min(available, left) if told else left
    for quota in _quotas(root):
        cores = min(cores, quota)
    return Machine(memory, available, max(cores, 1), _features(root))


def sysctl(root: Path, name: str) -> int:
    """A number that macOS's `sysctl` tells; 0 where it does not."""
    try:
        done = subprocess.run(  # noqa: S603 -- the system's own program by its full path
            [str(root / "usr/sbin/sysctl"), "-n", name], capture_output=True, text=True, timeout=5, check=True
        )
        return int(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def read(path: Path) -> str:
    """The text of a small file of the kernel's, stripped; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """The whole number that a file holds; None where it holds none ("max", say)."""
    text = read(path)
    return int(text) if text.isdecimal() else None


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _meminfo(root: Path) -> dict[str, int]:
    found = {}
    for line in read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        figure = rest.split()
        if figure and figure[0].isdecimal():
            found[name] = int(figure[0]) << 10
    return found


def _features(root: Path) -> tuple[str, ...]:
    for line in read(root / "proc/cpuinfo").splitlines():
        name, _, rest = line.partition(":")
        if name.strip() in ("flags", "Features"):
            has = {_FLAGS[flag] for flag in rest.split() if flag in _FLAGS}
            return tuple(feature for feature in FEATURES if feature in has)
    return ()


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folders of the groups that bind us for this controller, ours first, and whether they are of version 2.

    Inside a container `/proc/self/cgroup` may show the host's path while only our own part is mounted, so folders that
    are not there are passed over and the root of the mount is always looked at.
    """
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers == "":
            mounts, unified = ["", "unified"], True
        elif controller in names:
            mounts, unified = [controllers, controller], False
        else:
            continue
        inner = PurePosixPath(*(part for part in path.split("/") if part not in ("", "..")))
        for mount in mounts:
            for folder in (inner, *inner.parents):
                found = root / "sys/fs/cgroup" / mount / folder
                if found.is_dir():
                    yield found, unified


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Of each group with a limit: the limit, and how much of it is left."""
    for group, unified in _groups(root, "memory"):
        limit = number(group / ("memory.max" if unified else "memory.limit_in_bytes"))
        if limit is None or limit >= 1 << 60:  # version 1 says "no limit" by a number near 2**63
            continue
        usage = number(group / ("memory.current" if unified else "memory.usage_in_bytes")) or 0
        name = "inactive_file" if unified else "total_inactive_file"
        idle = next((int(row[1]) for row in _rows(group / "memory.stat") if row[0] == name), 0)
        yield limit, max(limit - max(usage - idle, 0), 0)


def _quotas(root: Path) -> Iterator[int]:
    """Of each group with a quota: whole processors' worth of time."""
    for group, unified in _groups(root, "cpu"):
        if unified:
            quota, period = [*read(group / "cpu.max").split(), "", ""][:2]
        else:
            quota, period = read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) // int(period)


def _rows(path: Path) -> list[list[str]]:
    return [row for line in read(path).splitlines() if len(row := line.split()) == 2 and row[1].isdecimal()]
