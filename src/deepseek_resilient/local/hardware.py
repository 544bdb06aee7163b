"""What a model could run on here: GPUs with their free memory, else processors and memory.

A GPU counts if its driver shows it and the environment leaves it visible:

- NVIDIA by NVML (`nvidia.py`), `CUDA_VISIBLE_DEVICES` respected.
- AMD by what the kernel's amdgpu driver tells in `/sys/class/drm/card*/device`: `mem_info_vram_total` less
  `mem_info_vram_used`. `ROCR_VISIBLE_DEVICES` picks among them, and among what it leaves `HIP_VISIBLE_DEVICES`, or
  `CUDA_VISIBLE_DEVICES` where that is not set: ROCm reads them so ("GPU isolation techniques").
- Apple's chips by `sysctl hw.memsize`: processors and GPU share the memory, so it is one GPU with a share of it
  (`machine.UNIFIED_SHARE`).

Nothing is imported but NVML's small package, and nothing is concluded from a toolkit on the disk. All sizes are bytes.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepseek_resilient.local import machine as machines
from deepseek_resilient.local import nvidia
from deepseek_resilient.local.visible import visible

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of one.

    Attributes:
        index: its number on the machine: NVML's, or that of its `card`; the number of the GPU for a MIG instance.
        total, free: bytes.
        uuid: what to put into `CUDA_VISIBLE_DEVICES` or `ROCR_VISIBLE_DEVICES` for it alone to be used; empty for
            Apple, and for an AMD GPU that has none.
        capability: NVIDIA's compute capability; (0, 0) where unknown.
    """

    kind: Literal["nvidia", "amd", "apple"]
    index: int
    name: str
    total: int
    free: int
    uuid: str = ""
    capability: tuple[int, int] = (0, 0)

    @property
    def is_instance(self) -> bool:
        """Whether it is a MIG instance, which cannot share a model with others."""
        return self.uuid.startswith("MIG-")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What is here for this process.

    Attributes:
        gpus: in the order in which the environment has them.
        memory, available: bytes of the machine's memory that we may use, and that are free now; 0 where unknown.
        cores: processors that we may use.
        features: those of `machine.FEATURES` that the processors have.
        notes: why there is no GPU, and what is uncertain; each a short text.
    """

    gpus: tuple[Gpu, ...]
    memory: int
    available: int
    cores: int
    features: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def detect(
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
    nvml: Any = None,
    system: str = "",
    architecture: str = "",
) -> Hardware:
    """Look, now: free memory is that of this moment. Takes milliseconds; raises nothing.

    `root` is where `/proc`, `/sys` and `/usr/sbin/sysctl` are looked for; `nvml` a module with NVML's functions instead
    of `pynvml`; `system` and `architecture` are those of `platform` where they are not given.
    """
    system, architecture = system or platform.system(), architecture or platform.machine()
    machine = machines.look(root, system, architecture)
    gpus: list[Gpu] = []
    notes: list[str] = []
    if system == "Darwin":
        if architecture == "arm64" and machine.memory:
            gpus.append(Gpu("apple", 0, "Apple", machine.memory, machine.available))
    else:
        found, note = nvidia.look(environ, root, nvml, machine)
        gpus += [Gpu("nvidia", *card) for card in found]
        gpus += (radeons := _amd(environ, root))
        if note and (found or not radeons):
            notes.append(note)
    return Hardware(tuple(gpus), machine.memory, machine.available, machine.cores, machine.features, tuple(notes))


def _amd(environ: Mapping[str, str], root: Path) -> list[Gpu]:
    cards = []
    for path in (root / "sys/class/drm").glob("card*"):
        number = re.fullmatch(r"card(\d+)", path.name)  # card0-HDMI-A-1 is a socket of card0
        device = path / "device"
        total = machines.number(device / "mem_info_vram_total")
        if number is None or not total or machines.read(device / "vendor") != "0x1002":
            continue
        used = machines.number(device / "mem_info_vram_used") or 0
        name = machines.read(device / "product_name") or f"AMD {machines.read(device / 'device')}".rstrip()
        unique = machines.read(device / "unique_id")
        uuid = f"GPU-{unique}" if unique else ""
        cards.append(Gpu("amd", int(number[1]), name, total, max(total - used, 0), uuid))
    cards.sort(key=lambda card: card.index)
    inner = environ.get("HIP_VISIBLE_DEVICES", environ.get("CUDA_VISIBLE_DEVICES"))
    for listed in (environ.get("ROCR_VISIBLE_DEVICES"), inner):
        cards = [cards[place] for place in visible(listed, [card.uuid for card in cards])]
    return cards
