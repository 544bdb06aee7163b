"""Machines that nobody here has: a tree of kernel files on the disk, and NVML's functions over made-up GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    """The folder, with these files in it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@dataclass
class Card:
    """A GPU as NVML knows it. `memory` None: it has none of its own. `instances`: MIG places, None for an empty one."""

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-0"
    total: int = 80 * GIB
    free: int = 79 * GIB
    memory: bool = True
    mig: bool | None = None
    instances: list[Card | None] = field(default_factory=list)
    lost: bool = False
    capability: tuple[int, int] = (9, 0)


class NVMLError(Exception):
    """As `pynvml.NVMLError`."""


class NVMLError_NotSupported(NVMLError):  # noqa: N801 -- the library's name
    """As in `pynvml`."""


class Nvml:
    """The functions of `pynvml` that are used, by their names."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLError_NotSupported

    def __init__(self, *cards: Card, broken: str = "") -> None:
        self.cards, self.broken = cards, broken
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken == "init":
            raise NVMLError("Driver/library version mismatch")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.broken == "count":
            raise NVMLError("Unknown Error")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        if self.cards[index].lost:
            raise NVMLError("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> bytes:  # noqa: N802
        return card.name.encode()

    def nvmlDeviceGetUUID(self, card: Card) -> str:  # noqa: N802
        return card.uuid

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:  # noqa: N802
        if not card.memory:
            raise NVMLError_NotSupported("Not Supported")
        return SimpleNamespace(total=card.total, free=card.free, used=card.total - card.free)

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> tuple[int, int]:  # noqa: N802
        return card.capability

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:  # noqa: N802
        if card.mig is None:
            raise NVMLError_NotSupported("Not Supported")
        return [int(card.mig), int(card.mig)]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:  # noqa: N802
        return len(card.instances)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, place: int) -> Card:  # noqa: N802
        found = card.instances[place]
        if found is None:
            raise NVMLError("Not Found")
        return found
