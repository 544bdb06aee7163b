"""Which of the machine's GPUs an environment variable leaves visible: CUDA's rules, which HIP follows.

NVML and sysfs show every GPU of the machine; a CUDA or HIP program sees those of `CUDA_VISIBLE_DEVICES`, in its order:

- not set: all; empty: none.
- `2,0`: by number. A number is read as C's strtol does (`1a` is 1). The list ends before the first entry that is no
  number, is negative, or names no GPU; a number twice makes the list empty.
- `GPU-8932f937,...`: by UUID, or as much of its beginning as no other GPU has; `MIG-...`: the same for MIG instances.
  The list ends before the first entry of another kind, or that names none or several; one twice makes the list empty.

Source: CUDA Programming Guide, "CUDA Environment Variables"; for what it leaves open (strtol, twice), PyTorch's reading
of the driver's behaviour in `torch.cuda._parse_visible_devices`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBER: Final = re.compile(r"\s*([+-]?\d+)")


def visible(value: str | None, uuids: Sequence[str]) -> list[int]:
    """Places in `uuids` (the machine's GPUs in their order) that a variable of this value leaves visible.

    A list of `MIG-` entries names nothing here unless `uuids` are those of MIG instances.
    """
    if value is None:
        return list(range(len(uuids)))
    entries = [entry.strip() for entry in value.split(",")]
    kind = re.match(r"GPU-|MIG-", entries[0])
    chosen: list[int] = []
    for entry in entries:
        place = _by_prefix(entry, kind[0], uuids) if kind else _by_number(entry, len(uuids))
        if place is None:
            break
        if place in chosen:
            return []
        chosen.append(place)
    return chosen


def _by_number(entry: str, count: int) -> int | None:
    found = _NUMBER.match(entry)
    place = int(found[1]) if found else -1
    return place if 0 <= place < count else None


def _by_prefix(entry: str, kind: str, uuids: Sequence[str]) -> int | None:
    if not entry.startswith(kind):
        return None
    found = [place for place, uuid in enumerate(uuids) if uuid == entry] or [
        place for place, uuid in enumerate(uuids) if uuid.startswith(entry)
    ]
    return found[0] if len(found) == 1 else None
