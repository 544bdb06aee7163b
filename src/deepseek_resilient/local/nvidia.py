"""NVIDIA's GPUs by NVML, the driver's own library, through the optional package `nvidia-ml-py`.

A GPU is there if the driver says so, and by nothing else: `nvcc` and `libcudart` are found on machines that have none.
NVML starts no CUDA context, so looking takes no GPU memory.

- A GPU in MIG mode is not counted itself: its instances are. A list of `MIG-` UUIDs picks among them; a list that names
  the GPU, and an unset variable, leave all of its instances. (A CUDA program would see but one of them. Each is listed
  here as a place for a model, to be named by its UUID.)
- Numbers in `CUDA_VISIBLE_DEVICES` are taken as NVML's, which are in the order of the PCI bus. That is CUDA's own order
  only with `CUDA_DEVICE_ORDER=PCI_BUS_ID`: otherwise CUDA puts the fastest first. Where that could matter (numbers,
  another order, and GPUs of several names) a note says so.
- A GPU that shares the machine's memory (GB10, Jetson) has none of its own to tell: the machine's is taken.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from deepseek_resilient.local.machine import read
from deepseek_resilient.local.visible import visible

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deepseek_resilient.local.machine import Machine

Found = tuple[int, str, int, int, str, tuple[int, int]]
"""Number, name, total bytes, free bytes, UUID, compute capability."""


def look(environ: Mapping[str, str], root: Path, nvml: Any, machine: Machine) -> tuple[list[Found], str]:
    """The visible GPUs in their order, and in words why there are none or what is uncertain (or nothing)."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            if (root / "proc/driver/nvidia/version").exists():
                return [], "an NVIDIA driver, but no way to ask it: pip install 'nvidia-ml-py>=12.535'"
            return [], "no NVIDIA driver"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if read(root / "proc/driver/nvidia/version"):
            return [], f"an NVIDIA driver that does not answer: {error}"
        return [], "no NVIDIA driver"
    try:
        return _ask(nvml, environ, machine)
    except nvml.NVMLError as error:
        return [], f"an NVIDIA driver that does not answer: {error}"
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _ask(nvml: Any, environ: Mapping[str, str], machine: Machine) -> tuple[list[Found], str]:
    whole: list[tuple[Found, list[Found]]] = []
    notes = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            card = _describe(nvml, handle, index, machine)
            whole.append((card, _instances(nvml, handle, card)))
        except nvml.NVMLError as error:  # one that fell off the bus, or is not ours to use
            whole.append(((index, "", 0, 0, "", (0, 0)), []))
            notes.append(f"GPU {index} does not answer: {error}")
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None and listed.strip().startswith("MIG-"):
        instances = [instance for _, inner in whole for instance in inner]
        found = [instances[place] for place in visible(listed, [instance[4] for instance in instances])]
    else:
        found = []
        for place in visible(listed, [card[4] for card, _ in whole]):
            card, inner = whole[place]
            found += inner if inner or not card[2] else [card]
    found = [card for card in found if card[2]]
    if whole and listed is not None and not found:
        notes.append(f"CUDA_VISIBLE_DEVICES={listed!r} leaves none of {len(whole)}")
    numbers = listed is not None and listed.strip()[:1].isdigit()
    ordered = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if numbers and not ordered and len({card[1] for card, _ in whole if card[1]}) > 1:
        notes.append("the numbers of CUDA_VISIBLE_DEVICES were taken in PCI order: set CUDA_DEVICE_ORDER=PCI_BUS_ID")
    return found, "; ".join(notes)


def _describe(nvml: Any, handle: Any, index: int, machine: Machine) -> Found:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:
        total, free = machine.memory, machine.available
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    name, uuid = _text(nvml.nvmlDeviceGetName(handle)), _text(nvml.nvmlDeviceGetUUID(handle))
    return index, name, total, free, uuid, (int(major), int(minor))


def _instances(nvml: Any, handle: Any, card: Found) -> list[Found]:
    """The MIG instances of a GPU; if it is in MIG mode and has none, one entry without memory stands for it."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # not supported: every GPU but the data centre's
        return []
    if not current:
        return []
    index, name, *_, capability = card
    found: list[Found] = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError:  # places may be empty
            continue
        memory = nvml.nvmlDeviceGetMemoryInfo(instance)
        uuid = _text(nvml.nvmlDeviceGetUUID(instance))
        found.append((index, f"{name} MIG", int(memory.total), int(memory.free), uuid, capability))
    return found or [(index, f"{name} MIG", 0, 0, "", capability)]


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
