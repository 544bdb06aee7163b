"""Whether what listens at a port is our child: a key is only shown to that.

Between the choice of a free port and the child's `bind` anybody may take it. Linux says whose a listening socket is;
where that cannot be told it is taken for ours.
"""

from __future__ import annotations

import os
from pathlib import Path

_LISTENS = "0A"


def is_ours(port: int, group: int) -> bool | None:
    """Whether a process of the group listens at the port; False also while nobody does.

    None: it does, and so does somebody else at the same address (SO_REUSEPORT).
    """
    inodes: dict[str, set[str]] = {}
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            if name == "tcp":
                return True
            continue
        for row in (line.split() for line in lines):
            if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port:
                inodes.setdefault(row[1], set()).add(f"socket:[{row[9]}]")
    if any("socket:[0]" in there for there in inodes.values()):  # a system that does not tell
        return True
    members = _members(group) if inodes else []
    found: bool | None = False
    for there in inodes.values():
        held = [any(_holds(pid, {one}) for pid in members) for one in there]
        if all(held):
            return True
        if any(held):
            found = None
    return found


def _members(group: int) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _holds(pid: int, wanted: set[str]) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except PermissionError:
        return True
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"{folder}/{name}") in wanted:  # noqa: PTH115
                return True
        except OSError:
            continue
    return False
