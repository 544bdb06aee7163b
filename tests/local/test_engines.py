"""engines.py, gguf.py and the child of transformers: what is started for which model, and that it answers."""

import importlib
import importlib.util
import json
import os
import shutil
import struct
import sys
import urllib.error
from dataclasses import replace

import pytest

from deepseek_resilient.config import LocalPolicy
from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local import engines, transformers_child
from deepseek_resilient.local.engines import ENGINES, Engine, Plan, environment, gpus, plan, tensor_parallel, thinks
from deepseek_resilient.local.gguf import GgufError, read_head
from deepseek_resilient.local.server import LocalServer

from .conftest import policy
from .tiny import SENTENCE, text
from .watching import ask, ask_at

NO_TORCH = importlib.util.find_spec("torch") is None or bool(ENGINES["transformers"].missing())


def command(settings, model, port=4711):
    made = plan(settings, str(model))
    return made, ENGINES[made.engine].command(settings, made, port)


def after(words, name):
    """The value of an option; None without it."""
    return words[words.index(name) + 1] if name in words else None


def test_a_gguf_file_is_for_llamacpp(models):
    """By path; with context, slots, threads, host and port; never with a key."""
    settings = LocalPolicy(context=1024, parallel=3, threads=2, host="::1")
    made, words = command(settings, models / "tiny.gguf")
    assert ("llamacpp", "tiny", (models / "tiny.gguf",), "") == (made.engine, made.name, made.files, made.note)
    assert [sys.executable, "-P"] == words[:2]
    assert ("1024", "3", "2", "::1", "4711") == tuple(
        after(words, f"--{name}") for name in ("context", "parallel", "threads", "host", "port")
    )
    assert made.size == (models / "tiny.gguf").stat().st_size
    assert 1024 * 3 * 2 * 2 * 320 == made.context_bytes  # tokens · bytes · (key and value) · size, one layer


def test_a_folder_is_for_transformers_or_vllm(models):
    """As asked; by itself what is installed."""
    made, words = command(LocalPolicy(engine="transformers", int8=True, parallel=2), models / "folder")
    assert (str(models / "folder"), (models / "folder" / "model.safetensors",)) == (made.name, made.files)
    assert ("2", True, None) == (after(words, "--parallel"), "--int8" in words, after(words, "--threads"))
    made, words = command(LocalPolicy(engine="vllm", context=2048, parallel=8), models / "folder")
    assert ("folder", "folder") == (made.name, after(words, "--served-model-name"))
    assert ("2048", "8", None) == tuple(
        after(words, f"--{n}") for n in ("max-model-len", "max-num-seqs", "quantization")
    )
    assert ["-m", "vllm.entrypoints.openai.api_server", "--model", str(models / "folder")] == words[2:6]
    expected = "transformers" if ENGINES["vllm"].missing() else "vllm"
    assert expected == plan(LocalPolicy(), "org/some-model").engine


def test_eight_bits_are_each_engines_own_way(models, tmp_path):
    """Q8_0 where there is a choice; FP8 for what is not quantised yet; a checkpoint that is stays as it is."""
    for name in ("m-Q4_K_M", "m-Q8_0", "m-Q2_K"):
        (tmp_path / f"{name}.gguf").write_bytes((models / "tiny.gguf").read_bytes())
    assert "m-Q4_K_M" == plan(LocalPolicy(), str(tmp_path)).name
    made = plan(LocalPolicy(int8=True), str(tmp_path))
    assert "m-Q8_0" == made.name
    assert "int8 is asked for, and the weights of this file are not Q8_0" == made.note  # its head says so
    vllm = LocalPolicy(engine="vllm", int8=True)
    assert "fp8" == after(command(vllm, models / "folder")[1], "--quantization")
    ready = tmp_path / "w8a8"
    ready.mkdir()
    (ready / "model.safetensors").touch()
    (ready / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "compressed-tensors"}}))
    assert None is after(command(vllm, ready)[1], "--quantization")


def test_parts_of_a_split_file_belong_together(models, tmp_path):
    """All are read ahead and counted; where one is missing or cut off, nothing is started."""
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes((models / "tiny.gguf").read_bytes())
    first = tmp_path / "m-00001-of-00002.gguf"
    made = plan(LocalPolicy(), str(first))
    assert (2, 2 * (models / "tiny.gguf").stat().st_size) == (len(made.files), made.size)
    os.truncate(made.files[1], 9000)
    with pytest.raises(LocalModelError, match=r"m-00002-of-00002.gguf cannot be loaded: it(s head)? is cut off"):
        plan(LocalPolicy(), str(first))
    made.files[1].unlink()
    with pytest.raises(LocalModelError, match=r"m-00001-of-00002.gguf is one of 2 parts, and 1 are there"):
        plan(LocalPolicy(), str(first))


def test_keys_go_by_the_environment_and_only_the_right_one():
    """Keys of other servers are not handed on."""
    given = environment({"PATH": "/bin", "DEEPSEEK_API_KEY": "secret", "openai_api_key": "x", "HF_TOKEN": "t"}, "ours")
    assert ("/bin", "t", "ours", "ours") == (
        given["PATH"], given["HF_TOKEN"], given["VLLM_API_KEY"], given["DEEPSEEK_RESILIENT_LOCAL_KEY"],
    )  # fmt: skip
    assert {"DEEPSEEK_API_KEY", "openai_api_key"}.isdisjoint(given)


def test_what_is_missing_is_said_with_the_way_to_get_it():
    """Nothing is imported to find out."""
    absent = Engine("odd", ("sys", "no_such_module"), "pip install it", lambda *_: [])
    assert ("no_such_module",) == absent.missing()
    with pytest.raises(LocalModelError, match="the engine odd needs no_such_module, which is not installed: pip inst"):
        absent.check()
    replace(absent, modules=("sys",)).check()


@pytest.mark.parametrize("chosen", ["", "-1", "97,98", "GPU-nowhere"])
def test_cards_are_those_that_are_here(chosen):
    """One that only CUDA_VISIBLE_DEVICES names is none."""
    assert 0 <= gpus({"CUDA_VISIBLE_DEVICES": chosen}) <= gpus({})


@pytest.mark.parametrize(("cards", "over"), [(1, 1), (2, 1), (5, 5), (8, 5)])
def test_a_model_is_split_evenly(models, cards, over):
    """Over as many cards as its attention heads divide into; all of them where that is unknown."""
    assert 5 == json.loads((models / "folder" / "config.json").read_text())["num_attention_heads"]
    assert over == tensor_parallel(plan(LocalPolicy(engine="vllm"), str(models / "folder")), cards)
    assert cards == tensor_parallel(Plan("org/name", "name", "vllm"), cards)


def test_all_cards_are_used_by_vllm(models, monkeypatch):
    """--tensor-parallel-size, where there is more than one."""
    monkeypatch.setattr(engines, "gpus", lambda environ: 5)
    assert "5" == after(command(LocalPolicy(engine="vllm"), models / "folder")[1], "--tensor-parallel-size")
    monkeypatch.setattr(engines, "gpus", lambda environ: 1)
    assert None is after(command(LocalPolicy(engine="vllm"), models / "folder")[1], "--tensor-parallel-size")


def test_models_that_think_are_known(models, tmp_path):
    """By their template, or their name; vLLM is then told to part thoughts from the answer."""
    assert not thinks(plan(LocalPolicy(engine="vllm"), str(models / "folder")))
    assert thinks(Plan("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "x", "vllm"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "a<think>b"}))
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "model.safetensors").touch()
    words = command(LocalPolicy(engine="vllm"), tmp_path)[1]
    assert "deepseek_r1" == after(words, "--reasoning-parser")


def test_the_head_of_a_file_is_read(models):
    """Its kind, its size in memory; what it does not tell is 0."""
    head = read_head(models / "tiny.gguf")
    assert ("llama", False, 2 * 100 * 640) == (
        head.values["general.architecture"],
        head.is_q8_0,
        head.context_bytes(100),
    )
    assert 0 == replace(head, values={}).context_bytes(100)


def test_a_file_is_as_long_as_its_tensors(models, smollm2, tmp_path):
    """To the byte, of 32 bits and of 4; one whose tensors are of a kind that is not known, as far as that tells."""
    for whole in (models / "tiny.gguf", smollm2):
        data = whole.read_bytes()
        cut = tmp_path / whole.name
        cut.write_bytes(data)
        read_head(cut)
        os.truncate(cut, len(data) - 33)  # at the end there are up to 31 bytes that only fill it up
        with pytest.raises(GgufError, match=r"it is cut off: .* bytes are there"):
            read_head(cut)
    table = struct.pack("<IQQQIQQIQ", 3, 1, 0, 0, 2, 8, 8, 1000, 64)
    for length, is_whole in ((64 + 64, True), (63, False)):
        (tmp_path / "new.gguf").write_bytes(b"GGUF" + table + bytes(max(length - 4 - len(table), 0)))
        if is_whole:
            read_head(tmp_path / "new.gguf")
        else:
            with pytest.raises(GgufError, match="cut off: 64 of its 128 bytes"):
                read_head(tmp_path / "new.gguf")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"PK\3\4", "no GGUF"),
        (b"GGUF\x03", "cut off"),
        (b"GGUF" + b"\xff" * 40, "unknown version"),
        (
            b"GGUF" + bytes([3, 0, 0, 0]) + bytes(8) + bytes([1] + [0] * 7) + bytes([1] + [0] * 7) + b"k\x63\0\0\0",
            "damaged",
        ),
        (b"GGUF" + bytes([3, 0, 0, 0]) + bytes(8) + bytes([1] + [0] * 7) + b"\xff" * 8, "cut off or damaged"),
        (b"GGUF" + struct.pack("<IQQQIQ", 3, 1, 0, 0, 99, 1), "damaged"),
        (b"GGUF" + struct.pack("<IQQQ18sIi", 3, 0, 1, 17, b"general.alignment", 5, -1), "damaged"),
    ],
)
def test_a_broken_head_is_told(tmp_path, data, message):
    """And never read for ever."""
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(GgufError, match=message):
        read_head(tmp_path / "x.gguf")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.skipif(NO_TORCH, reason="no transformers: pip install torch 'transformers[serving]>=5'")
def test_transformers_serves_a_folder(models, tmp_path):
    """By its own server, with the key that it lacks; here with 8 bits and two calls at once."""
    folder = shutil.copytree(models / "folder", tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}  # as most models have
    (folder / "config.json").write_text(json.dumps(config))
    asked = policy(folder, engine="transformers", int8=True, parallel=2)
    with LocalServer(asked, logs=tmp_path) as server:
        server.wait_ready(120)
        assert text(SENTENCE) == ask(server)
        assert ("transformers", str(folder)) == (server.statistics().engine, server.model)
        assert server.statistics().resident < 1500e6
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask_at(server.base_url, "wrong", server.model)
        assert (401, "invalid_api_key") == (refused.value.code, json.load(refused.value)["error"]["code"])
        refused.value.close()


@pytest.mark.skipif(NO_TORCH, reason="no transformers: pip install torch 'transformers[serving]>=5'")
@pytest.mark.parametrize("shape", [(64, 96), (33, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_8_bits_on_a_cpu_are_near_16(shape, bias):
    """Of any shape; also where one activation is much larger than the others, as in real models."""
    torch = importlib.import_module("torch")
    torch.manual_seed(1)
    norm = torch.nn.LayerNorm(shape[1]).bfloat16()
    mapped = norm.weight.data_ptr()
    whole = torch.nn.Sequential(torch.nn.Linear(*shape, bias=bias), norm)
    given = torch.randn(2, 5, shape[0])
    with torch.inference_mode():
        whole[0].weight[:, 3] = 0.0
        given[..., 3] = 1000.0
        expected = whole[0](given)
        layer, norm = transformers_child.quantised(torch, whole)
        assert (torch.int8, shape[1]) == (layer.weight.dtype, layer(given).shape[-1])
        assert 0.02 > (layer(given) - expected).abs().max()
        assert 0.02 > (layer(given[:, :1]) - expected[:, :1]).abs().max()
    assert mapped != norm.weight.data_ptr()  # nothing keeps the file's memory
