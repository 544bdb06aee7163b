"""What is found of GPUs, processors and memory, and what is not taken for one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.local.hardware import Gpu, Hardware, detect
from deepseek_resilient.local.visible import visible

from .machines import GIB, Card, Nvml, tree

if TYPE_CHECKING:
    from pathlib import Path

UUIDS = ["GPU-aaaa1111", "GPU-aaaa2222", "GPU-bbbb3333"]
THREE = [Card(uuid=uuid) for uuid in UUIDS]
INSTANCES = [Card("unused", f"MIG-{n}{n}{n}", 10 * GIB, 9 * GIB) for n in (1, 2)]
LINUX = {"system": "Linux", "architecture": "x86_64"}


def uuids(nvml: Nvml, root: Path, **environ: str) -> list[str]:
    """The UUIDs of what is found."""
    return [gpu.uuid for gpu in detect(environ, root, nvml, **LINUX).gpus]


@pytest.mark.parametrize(
    ("value", "places"),
    [
        (None, [0, 1, 2]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("1a,2", [1, 2]),
        ("+1", [1]),
        ("0,2,-1,1", [0, 2]),
        ("0,3,1", [0]),
        ("0,,1", [0]),
        ("0,x,1", [0]),
        ("1,0,1", []),
        ("GPU-aaaa1111", [0]),
        ("GPU-b", [2]),
        ("GPU-b,GPU-aaaa2", [2, 1]),
        ("GPU-aaaa,GPU-b", []),
        ("GPU-b,GPU-none,GPU-aaaa1", [2]),
        ("GPU-b,0", [2]),
        ("0,GPU-b", [0]),
        ("GPU-b,GPU-b", []),
        ("MIG-1", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(value: str | None, places: list[int]) -> None:
    """Order, prefixes, where the list ends, and what makes it empty."""
    assert places == visible(value, UUIDS)


@given(st.none() | st.text("0123-,GPUab ", max_size=20), st.integers(0, 4))
def test_any_value_leaves_some_of_the_gpus_each_once(value: str | None, count: int) -> None:
    """Whatever stands in the variable, nothing is found that is not there, and nothing twice."""
    found = visible(value, [f"GPU-{'ab'[n % 2]}{n}" for n in range(count)])
    assert len(set(found)) == len(found)
    assert set(found) <= set(range(count))


def test_a_gpu_is_told_as_nvml_has_it(tmp_path: Path) -> None:
    """Name, bytes and UUID; NVML is closed again."""
    nvml = Nvml(Card(uuid="GPU-1"))
    here = detect({}, tmp_path, nvml, **LINUX)
    assert (Gpu("nvidia", 0, "NVIDIA H100 80GB HBM3", 80 * GIB, 79 * GIB, "GPU-1", (9, 0)),) == here.gpus
    assert () == here.notes
    assert 0 == nvml.open


def test_the_environment_picks_among_nvmls_gpus(tmp_path: Path) -> None:
    """NVML itself knows nothing of CUDA_VISIBLE_DEVICES."""
    assert UUIDS == uuids(Nvml(*THREE), tmp_path)
    assert [UUIDS[2], UUIDS[0]] == uuids(Nvml(*THREE), tmp_path, CUDA_VISIBLE_DEVICES="2,0")
    hidden = detect({"CUDA_VISIBLE_DEVICES": ""}, tmp_path, Nvml(*THREE), **LINUX)
    assert () == hidden.gpus
    assert ("CUDA_VISIBLE_DEVICES='' leaves none of 3",) == hidden.notes


def test_mig_instances_stand_for_their_gpu(tmp_path: Path) -> None:
    """The GPU itself has nothing to give; an instance can be picked by its UUID, or all by their GPU's."""
    split = Card(uuid="GPU-a", mig=True, instances=[INSTANCES[0], None, INSTANCES[1]])
    nvml = Nvml(split, Card(uuid="GPU-b", mig=False))
    assert ["MIG-111", "MIG-222", "GPU-b"] == uuids(nvml, tmp_path)
    assert ["MIG-222"] == uuids(nvml, tmp_path, CUDA_VISIBLE_DEVICES="MIG-222")
    assert ["MIG-222", "MIG-111"] == uuids(nvml, tmp_path, CUDA_VISIBLE_DEVICES="MIG-2,MIG-1,MIG-9")
    assert ["MIG-111", "MIG-222"] == uuids(nvml, tmp_path, CUDA_VISIBLE_DEVICES="0")
    assert ["GPU-b", "MIG-111", "MIG-222"] == uuids(nvml, tmp_path, CUDA_VISIBLE_DEVICES="GPU-b,GPU-a")
    instance = detect({}, tmp_path, nvml, **LINUX).gpus[0]
    assert (9 * GIB, 0, True) == (instance.free, instance.index, instance.is_instance)
    assert (9, 0) == instance.capability


def test_mig_mode_without_an_instance_is_no_gpu(tmp_path: Path) -> None:
    """Nothing can run on it."""
    assert [] == uuids(Nvml(Card(mig=True, instances=[None, None])), tmp_path)


def test_a_gpu_that_does_not_answer_keeps_its_number(tmp_path: Path) -> None:
    """The others are found, and the note says which is lost."""
    nvml = Nvml(Card(lost=True), Card(uuid="GPU-b"))
    here = detect({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path, nvml, **LINUX)
    assert ["GPU-b"] == [gpu.uuid for gpu in here.gpus]
    assert ("GPU 0 does not answer: GPU is lost",) == here.notes


def test_a_gpu_without_memory_of_its_own_has_the_machines(tmp_path: Path) -> None:
    """As on GB10 and Jetson."""
    tree(tmp_path, {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB\n"})
    (gpu,) = detect({}, tmp_path, Nvml(Card(memory=False)), **LINUX).gpus
    assert (1000 << 10, 600 << 10) == (gpu.total, gpu.free)


def test_numbers_in_cudas_own_order_are_doubtful(tmp_path: Path) -> None:
    """Only where GPUs differ, numbers are used, and the order is not the bus's."""
    mixed = Nvml(Card(uuid="GPU-a"), Card("NVIDIA T4", "GPU-b"))
    doubt = "the numbers of CUDA_VISIBLE_DEVICES were taken in PCI order: set CUDA_DEVICE_ORDER=PCI_BUS_ID"
    numbers = {"CUDA_VISIBLE_DEVICES": "1"}
    assert (doubt,) == detect(numbers, tmp_path, mixed, **LINUX).notes
    assert () == detect({**numbers, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, tmp_path, mixed, **LINUX).notes
    assert () == detect({"CUDA_VISIBLE_DEVICES": "GPU-b"}, tmp_path, mixed, **LINUX).notes
    assert () == detect(numbers, tmp_path, Nvml(*THREE), **LINUX).notes


@pytest.mark.parametrize(("broken", "said"), [("init", "mismatch"), ("count", "Unknown")])
def test_a_driver_that_does_not_answer_is_no_gpu(broken: str, said: str, tmp_path: Path) -> None:
    """The note has NVML's own words."""
    tree(tmp_path, {"proc/driver/nvidia/version": "NVRM version: 580\n"})
    here = detect({}, tmp_path, Nvml(Card(), broken=broken), **LINUX)
    assert () == here.gpus
    assert "does not answer" in here.notes[0]
    assert said in here.notes[0]


def test_a_toolkit_without_a_driver_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvcc and libcudart lie on many machines that have no GPU."""
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as where the package is not installed
    tree(tmp_path, {"usr/local/cuda/bin/nvcc": "", "usr/local/cuda/lib64/libcudart.so": "", "usr/bin/nvidia-smi": ""})
    here = detect({"CUDA_HOME": str(tmp_path / "usr/local/cuda")}, tmp_path, **LINUX)
    assert ((), ("no NVIDIA driver",)) == (here.gpus, here.notes)


def test_a_driver_without_the_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out is one command."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    tree(tmp_path, {"proc/driver/nvidia/version": "NVRM version: 580\n"})
    assert "pip install 'nvidia-ml-py>=12.535'" in detect({}, tmp_path, **LINUX).notes[0]


@pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="nvidia-ml-py is not installed")
def test_the_real_library_on_a_machine_without_a_driver(tmp_path: Path) -> None:
    """`nvmlInit` fails, and that is no GPU."""
    import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert () == detect({}, tmp_path, **LINUX).gpus
    else:
        pytest.skip("this machine has an NVIDIA driver")


def card(number: int, gib: int, **more: str) -> dict[str, str]:
    """The files of one AMD card."""
    files = {
        "vendor": "0x1002\n", "device": "0x740f\n", "mem_info_vram_total": f"{gib * GIB}\n",
        "mem_info_vram_used": f"{GIB}\n", "unique_id": f"{number:04x}\n",
    } | more  # fmt: skip
    return {f"sys/class/drm/card{number}/device/{name}": text for name, text in files.items()}


def test_amd_by_the_files_of_its_driver(tmp_path: Path) -> None:
    """In the order of the cards; sockets and other makers' cards are none; the variables pick one after the other."""
    tree(tmp_path, card(10, 64) | card(2, 24, product_name="Radeon PRO\n", unique_id="") | card(0, 1, vendor="0x8086"))
    tree(tmp_path, {"sys/class/drm/card2-HDMI-A-1/device/mem_info_vram_total": "5", "sys/class/drm/version": "1"})
    both = detect({}, tmp_path, Nvml(), **LINUX)
    first = Gpu("amd", 2, "Radeon PRO", 24 * GIB, 23 * GIB, "")
    second = Gpu("amd", 10, "AMD 0x740f", 64 * GIB, 63 * GIB, "GPU-000a")
    assert ((first, second), ()) == (both.gpus, both.notes)
    for environ, left in [
        ({"HIP_VISIBLE_DEVICES": "1"}, (second,)),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (second,)),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, (first,)),
        ({"ROCR_VISIBLE_DEVICES": "GPU-000a"}, (second,)),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "0"}, (second,)),
        ({"HIP_VISIBLE_DEVICES": ""}, ()),
    ]:
        assert left == detect(environ, tmp_path, Nvml(), **LINUX).gpus


@pytest.mark.parametrize(("architecture", "gpus"), [("arm64", 1), ("x86_64", 0)])
def test_apple_by_sysctl(architecture: str, gpus: int, tmp_path: Path) -> None:
    """One GPU that may hold two thirds of the memory; an Intel Mac has none."""
    tree(tmp_path, {"usr/sbin/sysctl": '#!/bin/sh\ntest "$*" = "-n hw.memsize" && echo 17179869184\n'})
    (tmp_path / "usr/sbin/sysctl").chmod(0o755)
    here = detect({}, tmp_path, system="Darwin", architecture=architecture)
    assert 17_179_869_184 == here.memory
    assert [11_453_246_122] * gpus == [gpu.free for gpu in here.gpus]


def test_a_mac_without_sysctl_is_unknown(tmp_path: Path) -> None:
    """No figures, and no failure."""
    here = detect({}, tmp_path, system="Darwin", architecture="arm64")
    assert ((), 0, ("neon",)) == (here.gpus, here.memory, here.features)


MEMINFO = {"proc/meminfo": "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:   12000 kB\nHugePages_Total: 0\n"}


@pytest.mark.parametrize(
    ("files", "memory", "available"),
    [
        ({}, 16000 << 10, 12000 << 10),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 16000 << 10, 12000 << 10),
        (
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max",
             "sys/fs/cgroup/a/memory.max": "9000000", "sys/fs/cgroup/a/memory.current": "4000000",
             "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 1000000\n"},
            9_000_000, 6_000_000,
        ),
        # a container of version 1 shows the host's path, and has its own group at the root of the mount
        (
            {"proc/self/cgroup": "4:memory:/docker/x\n0::/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "8000000",
             "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000000",
             "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 2000000\n"},
            8_000_000, 5_000_000,
        ),
        (
            {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
            16000 << 10, 12000 << 10,
        ),
        ({"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/memory.max": "100", "sys/fs/cgroup/memory.current": "900"},
         100, 0),
        ({"proc/self/cgroup": "nonsense\n\n"}, 16000 << 10, 12000 << 10),
    ],
)  # fmt: skip
def test_memory_is_what_the_groups_grant(files: dict[str, str], memory: int, available: int, tmp_path: Path) -> None:
    """The least of the machine's figure and of every group above us; what can be dropped is not in use."""
    here = detect({}, tree(tmp_path, MEMINFO | files), Nvml(), **LINUX)
    assert (memory, available) == (here.memory, here.available)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/a\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "150000",
          "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000"}, 1),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)  # fmt: skip
def test_cores_are_what_affinity_and_quota_grant(files: dict[str, str], cores: int | None, tmp_path: Path) -> None:
    """Whole processors, and never none."""
    here = detect({}, tree(tmp_path, files), Nvml(), **LINUX)
    assert (len(os.sched_getaffinity(0)) if cores is None else cores) == here.cores


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("flags\t\t: fpu avx2 avx512f amx_tile amx_int8 f16c\n", ("avx2", "avx512f", "amx", "f16c")),
        ("processor: 0\nFeatures\t: fp asimd evtstrm\n", ("neon",)),
        ("flags : fpu\n", ()),
        ("", ()),
    ],
)
def test_instruction_sets_by_cpuinfo(text: str, features: tuple[str, ...], tmp_path: Path) -> None:
    """Those that decide over quantised models, on both architectures."""
    here = detect({}, tree(tmp_path, {"proc/cpuinfo": text}), Nvml(), **LINUX)
    assert features == here.features


def test_an_empty_tree_is_unknown_and_no_failure(tmp_path: Path) -> None:
    """A machine that tells nothing."""
    cores = len(os.sched_getaffinity(0))
    assert Hardware((), 0, 0, cores, (), ()) == detect({}, tmp_path, Nvml(), **LINUX)


def test_this_machine() -> None:
    """The real files: some memory, less of it free, some processors."""
    here = detect()
    assert 0 < here.available <= here.memory
    assert 1 <= here.cores


def test_looking_imports_nothing_heavy() -> None:
    """No torch, no HTTP library."""
    code = "import sys; from deepseek_resilient.local import hardware; hardware.detect(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert set() == {"torch", "vllm", "httpx", "httpx2", "openai"} & set(done.stdout.split())
