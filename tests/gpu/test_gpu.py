"""A real NVIDIA GPU: detection, choice, room, models that run on it, and that all of its memory comes back.

Skipped where none is visible, with the reason that `hardware.detect` has. Needs, for all of it:
`pip install '.[local-gpu]' torch 'transformers[serving]>=5' accelerate bitsandbytes`.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deepseek_resilient.commands.local_bench import as_data, table
from deepseek_resilient.commands.measuring import AS_IS, NARROW, WIDE, Side, measure, sides
from deepseek_resilient.config import LocalPolicy
from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.catalog import AUTOMATIC, budget, choose, places
from deepseek_resilient.local.engines import ENGINES, plan
from deepseek_resilient.local.hardware import Gpu, detect
from deepseek_resilient.local.instance import check
from deepseek_resilient.local.room import built_for
from deepseek_resilient.local.server import LocalServer
from local.tiny import SENTENCE, Tiny, text
from local.watching import ask, eventually

from .wide import write_wide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = detect()
CARDS = [gpu for gpu in HERE.gpus if gpu.kind == "nvidia"]
pytestmark = pytest.mark.skipif(not CARDS, reason=f"no NVIDIA GPU is visible: {'; '.join(HERE.notes) or 'none found'}")
needs_torch = pytest.mark.skipif(
    bool(CARDS) and (bool(ENGINES["transformers"].missing()) or "nvidia" not in built_for("transformers")),
    reason="no torch for CUDA with transformers: pip install torch 'transformers[serving]>=5' accelerate",
)
needs_bitsandbytes = pytest.mark.skipif(
    bool(CARDS) and importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes: pip install bitsandbytes"
)
CONTEXT = 100_000_000
"""Bytes that a program with a CUDA context takes at least."""
SLACK = 64_000_000
"""Bytes that others, or the driver, may take meanwhile."""
OTHER = ("Another", "▁model", "▁speaks", "▁now", ".")
SAID = text(SENTENCE)


def free() -> int:
    """Bytes that are free on all visible cards, as NVML has it."""
    return sum(gpu.free for gpu in detect().gpus if gpu.kind == "nvidia")


def asked(model: Path, **more: object) -> LocalPolicy:
    return LocalPolicy(
        **{"model": str(model), "engine": "transformers", "context": 512, "idle": None, **more}  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` says a sentence and `other` another one, both in bfloat16; `wide` its sentence for ever, by 2.1 GB."""
    folder = tmp_path_factory.mktemp("models")
    write_wide(folder / "tiny", hidden=320, layers=1, loop=False)
    write_wide(folder / "other", OTHER, hidden=320, layers=1, loop=False)
    return write_wide(folder / "wide", hidden=2048, layers=16).parent


@pytest.fixture
def untouched() -> Iterator[int]:
    """What is free; all of it must be free again after the test."""
    before = free()
    yield before
    assert eventually(lambda: free() >= before - SLACK, 20), f"{before - free():,} bytes did not come back"


def test_what_nvml_tells_is_what_cuda_has() -> None:
    """Names, capabilities and sizes are those of torch, or else of nvidia-smi; so is their number."""
    assert all(0 < gpu.free <= gpu.total and gpu.uuid for gpu in CARDS)
    if ENGINES["transformers"].missing() or "nvidia" not in built_for("transformers"):
        line = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        told = subprocess.run(line, capture_output=True, text=True, check=True).stdout  # noqa: S603
        assert {gpu.name.removesuffix(" MIG") for gpu in CARDS} <= set(told.strip().splitlines())
        return
    code = (  # in a process of its own: a CUDA context takes memory
        "import json, torch; print(json.dumps([[p.name, p.total_memory, p.major, p.minor] for p in "
        "map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))]))"
    )
    seen = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)  # noqa: S603
    if not any(gpu.is_instance for gpu in CARDS):
        assert len(CARDS) == len(seen)
        assert sorted(gpu.name for gpu in CARDS) == sorted(name for name, *_ in seen)
    assert {gpu.capability for gpu in CARDS} >= {(major, minor) for *_, major, minor in seen}
    for gpu, (_, total, *_) in zip(
        sorted(CARDS, key=lambda gpu: gpu.total), sorted(seen, key=lambda one: one[1]), strict=False
    ):
        assert total == pytest.approx(gpu.total, rel=0.1)  # NVML counts what the driver keeps


def test_a_card_can_be_hidden_and_named() -> None:
    """By CUDA_VISIBLE_DEVICES, as CUDA programs read it."""
    assert [] == [gpu for gpu in detect({"CUDA_VISIBLE_DEVICES": ""}).gpus if gpu.kind == "nvidia"]
    for gpu in CARDS:
        named = detect({"CUDA_VISIBLE_DEVICES": gpu.uuid}).gpus
        assert [gpu.uuid] == [found.uuid for found in named if found.kind == "nvidia"]


@pytest.mark.parametrize("int8", [False, True])
def test_the_catalog_chooses_for_the_card(int8: bool) -> None:
    """The best that fits by the rule; nothing better fits anywhere here."""
    wanted = [model for model in AUTOMATIC if model.bits == 8 or not int8]
    fitting = [model for model in wanted if any(places(model, HERE))]
    if not fitting:
        pytest.skip("nothing of the catalog fits here: the GPU is full")
    choice = choose(HERE, int8=int8)
    assert max(model.quality for model in fitting) == choice.model.quality
    if isinstance(choice.where, Gpu):
        room = budget(min(gpu.free for gpu in choice.gpus)) * len(choice.gpus)
        assert choice.model.needs() <= room
    assert not int8 or choice.model.bits == 8


@needs_torch
def test_what_is_larger_than_the_cards_is_refused_before_the_start(models: Path, tmp_path: Path) -> None:
    """By what NVML says is free, with numbers and advice; a file of holes is enough for that."""
    large = tmp_path / "large"
    large.mkdir()
    (large / "config.json").write_text((models / "tiny" / "config.json").read_text())
    with (large / "model.safetensors").open("wb") as file:
        file.truncate(sum(gpu.total for gpu in CARDS))
    with pytest.raises(LocalModelError, match=r"GB on the GPU .* take a smaller model") as refused:
        check(asked(large), plan(asked(large), str(large)))
    assert "too_large" == refused.value.why
    check(asked(models / "tiny"), plan(asked(models / "tiny"), str(models / "tiny")))


@needs_torch
@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=needs_bitsandbytes)])
def test_transformers_runs_on_the_gpu(models: Path, tmp_path: Path, untouched: int, int8: bool) -> None:
    """In bfloat16 and in 8 bits by bitsandbytes it says its sentence; its memory is the GPU's, and comes back."""
    with LocalServer(asked(models / "tiny", int8=int8), logs=tmp_path) as server:
        server.wait_ready(300)
        assert SAID == ask(server)
        assert "transformers" == server.statistics().engine
        assert free() < untouched - CONTEXT


@needs_torch
def test_two_at_once_are_batched(models: Path, tmp_path: Path, untouched: int) -> None:
    """Continuous batching on the GPU."""
    with LocalServer(asked(models / "tiny", parallel=2), logs=tmp_path) as server:
        server.wait_ready(300)
        assert [SAID, SAID] == [ask(server) for _ in range(2)]


@needs_torch
def test_a_hot_swap_gives_the_old_ones_memory_back(models: Path, tmp_path: Path, untouched: int) -> None:
    """The new model answers, and no more is taken than one model takes."""
    with LocalServer(asked(models / "tiny"), logs=tmp_path) as server:
        server.wait_ready(300)
        assert SAID == ask(server)
        one = untouched - free()
        server.swap(str(models / "other")).result(300)
        assert text(OTHER) == ask(server)
        assert eventually(lambda: untouched - free() <= one + SLACK, 20)


@needs_torch
def test_memory_comes_back_when_the_model_is_killed(models: Path, tmp_path: Path, untouched: int) -> None:
    """Whatever ends it; here it is closed while it starts, and once it is up."""
    coming = LocalServer(asked(models / "wide"), logs=tmp_path)
    coming.wake()
    coming.close(0)
    with LocalServer(asked(models / "wide"), logs=tmp_path) as server:
        server.wait_ready(300)
        assert free() < untouched - CONTEXT


@pytest.mark.skipif(
    bool(CARDS) and (bool(ENGINES["llamacpp"].missing()) or "nvidia" not in built_for("llamacpp")),
    reason="no xllamacpp for CUDA: pip install xllamacpp --index-url https://xorbitsai.github.io/xllamacpp/whl/cu128",
)
def test_llamacpp_runs_on_the_gpu(tmp_path: Path, untouched: int) -> None:
    """Its layers are laid there unasked."""
    file = Tiny().write_gguf(tmp_path / "tiny.gguf")
    with LocalServer(asked(file, engine="llamacpp"), logs=tmp_path) as server:
        server.wait_ready(120)
        assert SAID == ask(server)
        assert free() < untouched - CONTEXT


@needs_torch
def test_the_gpu_against_the_processors(
    models: Path, untouched: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both give the same answers; the table is shown, with its date, and says nothing of which must be faster."""
    policy = asked(models / "wide")
    (gpu,) = measure([Side("GPU, bfloat16", policy)], tokens=16, rounds=3, note=lambda _: None)
    with monkeypatch.context() as hidden:
        hidden.setenv("CUDA_VISIBLE_DEVICES", "")
        (cpu,) = measure([Side("CPU, bfloat16", policy)], tokens=16, rounds=3, note=lambda _: None)
    assert (3, 3) == (len(gpu.rates), len(cpu.rates))
    assert gpu.answers == cpu.answers
    assert all(answer.startswith(SAID) for answer in gpu.answers)
    assert gpu.gpu is not None
    assert CONTEXT < gpu.gpu
    assert cpu.gpu is None
    show(capsys, f"{', '.join(card.name for card in CARDS)} against {HERE.cores} cores", table([gpu, cpu]))


@needs_torch
@needs_bitsandbytes
def test_sixteen_bits_against_eight_on_the_gpu(
    models: Path, untouched: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Side by side in one run, with the same answers by this model; the table is shown with its date."""
    found = measure(sides(asked(models / "wide"), True), tokens=16, rounds=3, note=lambda _: None)
    assert [WIDE, NARROW] == [one.label for one in found]
    agreement = as_data(found)["agreement"]
    assert (1.0, 1.0) == (agreement["equal"], agreement["common_prefix"])
    assert [AS_IS] == [side.label for side in sides(asked(models / "wide"), False)]
    show(capsys, ", ".join(card.name for card in CARDS), table(found))


def show(capsys: pytest.CaptureFixture[str], title: str, lines: list[str]) -> None:
    with capsys.disabled():
        print(f"\n{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {title}\n\n" + "\n".join(lines))
