"""room.py: whether a model has room on the GPUs that NVML tells of, and what is said where it has not."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from deepseek_resilient.config import LocalPolicy
from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local import room
from deepseek_resilient.local.catalog import budget
from deepseek_resilient.local.engines import plan
from deepseek_resilient.local.hardware import Hardware, detect
from deepseek_resilient.local.instance import check
from deepseek_resilient.local.room import built_for, check_room

from .machines import GIB, Card, Nvml, tree

if TYPE_CHECKING:
    from pathlib import Path

CUDA = ("nvidia",)


def machine(root: Path, *cards: Card, **environ: str) -> Hardware:
    """With these cards and 1 MB of memory."""
    tree(root, {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 1000 kB\n"})
    return detect(environ, root, Nvml(*cards), system="Linux", architecture="x86_64")


def card(free: int, uuid: str = "GPU-0", **more: object) -> Card:
    return Card("H100", uuid, 80 * GIB, free, **more)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 GB of weights (of holes), 64 layers with 8 heads of 128: 0.26 MB a token."""
    path = tmp_path / "large"
    path.mkdir()
    config = {"num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128}
    (path / "config.json").write_text(json.dumps(config))
    with (path / "model.safetensors").open("wb") as file:
        file.truncate(20_000_000_000)
    return path


def fits(policy: LocalPolicy, path: Path, here: Hardware) -> bool:
    try:
        check_room(policy, plan(policy, str(path)), here=here, kinds=CUDA)
    except LocalModelError as error:
        return error.why != "too_large"
    return True


def test_the_context_of_a_folder_is_that_of_its_architecture(folder: Path) -> None:
    """Tokens · layers · (key and value) · heads · size · 2 bytes; as in the catalog."""
    asked = LocalPolicy(engine="vllm", context=1000, parallel=2)
    assert 2000 * 262_144 == plan(asked, str(folder)).context_bytes


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_rule_is_the_catalogs(engine: str, folder: Path, tmp_path: Path) -> None:
    """0.9 · free - 1.5 GB >= weights + KV, to the byte; the machine's memory is of no matter."""
    asked = LocalPolicy(engine=engine, context=1000)  # type: ignore[arg-type]
    need = 20_000_000_000 + 262_144_000
    least = next(free for free in range((need + 1_500_000_000) * 10 // 9, 1 << 60) if budget(free) >= need)
    assert fits(asked, folder, machine(tmp_path, card(least)))
    assert not fits(asked, folder, machine(tmp_path, card(least - 1)))


def test_what_is_said_has_the_numbers_and_what_to_do(folder: Path, tmp_path: Path) -> None:
    """Of the model, of the card; and for transformers that it could run on the CPU."""
    asked = LocalPolicy(engine="transformers", context=1000)
    with pytest.raises(LocalModelError) as refused:
        check_room(asked, plan(asked, str(folder)), here=machine(tmp_path, card(10_000_000_000)), kinds=CUDA)
    said = str(refused.value)
    assert "needs about 20.3 GB on the GPU (20.0 GB of weights, 262 MB of context)" in said
    assert "room for 7.5 GB (10.0 GB free on H100" in said
    assert "take a smaller model or quantisation (int8)" in said
    assert "CUDA_VISIBLE_DEVICES=" in said


def test_several_cards(folder: Path, tmp_path: Path) -> None:
    """vLLM lays equal parts, so the smaller card decides; transformers takes all that there is."""
    two = machine(tmp_path, card(30_000_000_000, "GPU-a"), card(4_000_000_000, "GPU-b"))
    assert fits(LocalPolicy(engine="transformers", context=1000), folder, two)
    assert not fits(LocalPolicy(engine="vllm", context=1000), folder, two)
    even = machine(tmp_path, card(14_000_000_000, "GPU-a"), card(14_000_000_000, "GPU-b"))
    assert fits(LocalPolicy(engine="vllm", context=1000), folder, even)
    one = machine(tmp_path, card(14_000_000_000, "GPU-a"), card(14_000_000_000, "GPU-b"), CUDA_VISIBLE_DEVICES="0")
    assert not fits(LocalPolicy(engine="vllm", context=1000), folder, one)


def test_of_mig_instances_the_first_counts(folder: Path, tmp_path: Path) -> None:
    """A CUDA program sees no more."""
    split = Card(mig=True, instances=[card(5 * GIB, "MIG-1"), card(70 * GIB, "MIG-2")])
    asked = LocalPolicy(engine="transformers", context=1000)
    assert not fits(asked, folder, machine(tmp_path, split))
    assert fits(asked, folder, machine(tmp_path, split, CUDA_VISIBLE_DEVICES="MIG-2"))


def test_eight_bits_need_less(folder: Path, tmp_path: Path) -> None:
    """By bitsandbytes, six tenths of 16 bits; a model that is quantised already stays as large as it is."""
    here = machine(tmp_path, card(16_000_000_000))
    asked = LocalPolicy(engine="transformers", context=1000, int8=True)
    assert fits(asked, folder, here)
    assert not fits(replace(asked, int8=False), folder, here)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"bits": 8}}
    (folder / "config.json").write_text(json.dumps(config))
    assert not fits(asked, folder, here)


def test_llamacpp_leaves_in_memory_what_the_card_cannot_hold(models: Path, tmp_path: Path) -> None:
    """Card and memory count together."""
    asked = LocalPolicy(context=300_000)  # 384 MB of context
    one, two = (machine(tmp_path, card(free)) for free in (1_000_000_000, 2_000_000_000))
    assert fits(asked, models / "tiny.gguf", replace(one, available=500_000_000))
    assert not fits(asked, models / "tiny.gguf", replace(one, available=300_000_000))
    assert fits(asked, models / "tiny.gguf", replace(two, available=300_000_000))


@pytest.mark.usefixtures("no_gpu")
def test_memory_that_is_unknown_refuses_nothing(models: Path) -> None:
    """Memory that is there and full does."""
    tiny = models / "tiny.gguf"
    assert fits(LocalPolicy(), tiny, Hardware((), memory=0, available=0, cores=1))
    assert not fits(LocalPolicy(), tiny, Hardware((), memory=1 << 40, available=0, cores=1))
    assert fits(LocalPolicy(), tiny, Hardware((), memory=1 << 40, available=1 << 30, cores=1))


def test_an_engine_that_is_not_built_for_the_card_runs_in_memory(folder: Path, tmp_path: Path) -> None:
    """A card is of no use to torch's build for the CPU."""
    asked = LocalPolicy(engine="transformers", context=1000, memory_limit=1 << 30)
    here = machine(tmp_path, card(70 * GIB))
    with pytest.raises(LocalModelError, match=r"needs about 22\.5 GB of memory"):
        check_room(asked, plan(asked, str(folder)), here=here, kinds=())
    check_room(asked, plan(asked, str(folder)), here=here, kinds=CUDA)


def test_a_card_that_cannot_be_asked_refuses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without nvidia-ml-py its memory is unknown, and the machine's says nothing."""
    asked = LocalPolicy(engine="transformers", context=1000, memory_limit=1 << 30)
    monkeypatch.setattr(room, "gpus", lambda _: 1)
    check_room(asked, plan(asked, str(folder)), here=machine(tmp_path), kinds=CUDA)


def test_what_a_swap_frees_counts(folder: Path, tmp_path: Path) -> None:
    """What the old model takes is there for the new one."""
    asked = LocalPolicy(engine="transformers", context=1000)
    here = machine(tmp_path, card(2_000_000_000))
    check_room(asked, plan(asked, str(folder)), freed=21_000_000_000, here=here, kinds=CUDA)


def test_what_an_engine_is_built_for(llamacpp: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the version's own word, or by asking llama.cpp; its build here is for the CPU."""
    assert () == built_for("llamacpp") or "nvidia" in built_for("llamacpp")
    for version, kinds in (("2.13.0+cpu", ()), ("2.13.0", CUDA), ("2.13.0+cu130", CUDA), ("2.13.0+rocm7.2", ("amd",))):
        monkeypatch.setattr("importlib.metadata.version", lambda _, version=version: version)
        assert kinds == built_for("transformers")
    monkeypatch.setattr(room, "_DEVICES", "print('CUDA0 CPU')")
    assert CUDA == built_for("llamacpp")
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert () == built_for("llamacpp")


def test_a_name_on_the_hub_is_not_measured() -> None:
    """Nobody knows its size before it is fetched."""
    check_room(LocalPolicy(engine="vllm"), plan(LocalPolicy(engine="vllm"), "org/name"), here=Hardware((), 0, 0, 1))


def test_the_engine_comes_first(folder: Path) -> None:
    """What is not installed is said before memory is looked at."""
    asked = LocalPolicy(engine="vllm", memory_limit=1 << 30)
    with pytest.raises(LocalModelError) as refused:
        check(asked, plan(asked, str(folder)))
    assert refused.value.why in ("not_installed", "too_large")
