"""The engines: which one runs a model, whether it is installed, and the command line of its child. Data and functions.

- llamacpp: a GGUF file, by `xllamacpp`; checks the key itself; 8 bits: the file whose weights are Q8_0.
- transformers: a folder of safetensors or a name on the hub; the key is checked by our child; 8 bits: bitsandbytes on a
  GPU, 8 bits for weights alone on a CPU.
- vllm: the same models; checks the key itself; 8 bits: a w8a8 or FP8 checkpoint as it is, any other is made FP8 as it
  is loaded.

A key never stands on a command line, which every user of the machine can read: it goes by the environment. Other keys
of ours (`*_API_KEY`) are not handed on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.gguf import GgufError, GgufHead, read_head
from deepseek_resilient.local.hardware import detect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deepseek_resilient.config.local import LocalPolicy

_HERE = Path(__file__).parent
_KEY = "DEEPSEEK_RESILIENT_LOCAL_KEY"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


@dataclass(frozen=True, slots=True)
class Plan:
    """A model that was found, and what runs it.

    Attributes:
        model: the file, folder or name on the hub.
        name: what requests call it.
        engine: "llamacpp", "transformers" or "vllm".
        files: what is read to load it, in order; empty for a name on the hub.
        context_bytes: what the context takes besides, as far as that is known.
        note: something the user should know; "" if nothing.
    """

    model: str
    name: str
    engine: str
    files: tuple[Path, ...] = ()
    context_bytes: int = 0
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: the module that must be there, how to get it, and the command line of its child."""

    name: str
    modules: tuple[str, ...]
    install: str
    command: Callable[[LocalPolicy, Plan, int], list[str]]

    def missing(self) -> tuple[str, ...]:
        """Which of its modules are not installed; none is imported to find out."""
        return tuple(module for module in self.modules if importlib.util.find_spec(module) is None)

    def check(self) -> None:
        """Raises LocalModelError with what to install."""
        if missing := self.missing():
            raise LocalModelError(
                f"the engine {self.name} needs {' and '.join(missing)}, which is not installed: {self.install}",
                why="not_installed",
            )


def _llamacpp(policy: LocalPolicy, plan: Plan, port: int) -> list[str]:
    command = [sys.executable, "-P", str(_HERE / "llamacpp_child.py"), "--model", plan.model, "--name", plan.name]
    command += ["--host", policy.host, "--port", str(port)]
    command += ["--context", str(policy.context), "--parallel", str(policy.parallel)]
    return command + ([] if policy.threads is None else ["--threads", str(policy.threads)])


def _transformers(policy: LocalPolicy, plan: Plan, port: int) -> list[str]:
    command = [sys.executable, "-P", str(_HERE / "transformers_child.py"), "--model", plan.model]
    command += ["--host", policy.host, "--port", str(port)]
    command += [] if policy.threads is None else ["--threads", str(policy.threads)]
    command += ["--context", str(policy.context), "--parallel", str(policy.parallel)]
    return command + ["--int8"] * policy.int8


def _vllm(policy: LocalPolicy, plan: Plan, port: int) -> list[str]:
    # not `vllm serve`: its command line asks for the metadata of a package "vllm", which the CPU build lacks
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", plan.model]
    command += ["--served-model-name", plan.name, "--host", policy.host, "--port", str(port)]
    command += ["--max-model-len", str(policy.context), "--max-num-seqs", str(policy.parallel)]
    if (cards := tensor_parallel(plan, gpus(os.environ))) > 1:
        command += ["--tensor-parallel-size", str(cards)]
    if thinks(plan):
        command += ["--reasoning-parser", "deepseek_r1"]
    if policy.int8 and not is_quantised(plan):
        command += ["--quantization", "fp8"]
    return command


ENGINES = {
    "llamacpp": Engine(
        "llamacpp", ("xllamacpp",),
        "pip install 'xllamacpp>=2026.10' (for a GPU: its CUDA, ROCm or Vulkan wheel)", _llamacpp,
    ),
    "transformers": Engine(
        "transformers", ("transformers", "torch", "uvicorn", "fastapi"),
        "pip install torch 'transformers[serving]>=5'", _transformers,
    ),
    "vllm": Engine("vllm", ("vllm",), "pip install vllm (it wants a GPU)", _vllm),
}  # fmt: skip


def environment(environ: Mapping[str, str], key: str) -> dict[str, str]:
    """What the child gets: ours without the keys of other servers, and its own."""
    kept = {name: value for name, value in environ.items() if not name.upper().endswith("_API_KEY")}
    return kept | {
        _KEY: key, "VLLM_API_KEY": key, "PYTHONUNBUFFERED": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip


def plan(policy: LocalPolicy, model: str) -> Plan:
    """What is to be run for `model`, which is a path or a name on the hub. Reads the head of a GGUF file.

    Raises:
        LocalModelError: there is no such file, it is broken, or the engine that is asked for cannot read it.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if files and policy.engine in ("auto", "llamacpp"):
            return _plan_of_file(policy, _choose(files, policy.int8))
        return _plan_of_folder(policy, path)
    if path.is_file():
        return _plan_of_file(policy, path)
    if path.suffix == ".gguf" or path.is_absolute() or model.startswith(("./", "../", "~")):
        raise LocalModelError(
            f"there is no model at {model}: give the path of a GGUF file or of a folder with safetensors",
            why="no_model",
        )
    return Plan(model, model.rpartition("/")[2], _of_folders(policy))


def _plan_of_file(policy: LocalPolicy, path: Path) -> Plan:
    if policy.engine in ("transformers", "vllm"):
        raise LocalModelError(
            f"{path} is a single file, and the engine {policy.engine} wants a folder with safetensors: give that, or "
            'engine="llamacpp"',
            why="no_model",
        )
    parts = _shards(path)
    head = {part: _head(part) for part in (path, *parts)}[path]
    note = "" if head.is_q8_0 or not policy.int8 else "int8 is asked for, and the weights of this file are not Q8_0"
    return Plan(str(path), path.stem, "llamacpp", parts, _context(policy, head), note)


def _head(path: Path) -> GgufHead:
    try:
        return read_head(path)
    except GgufError as error:
        raise LocalModelError(
            f"{path} cannot be loaded: {error}. Delete it and get it again, by `deepseek-resilient local pull` if that "
            "had fetched it",
            why="corrupt",
        ) from None
    except OSError as error:
        raise LocalModelError(f"{path} cannot be read: {error.strerror}", why="no_model") from None


def _plan_of_folder(policy: LocalPolicy, path: Path) -> Plan:
    files: tuple[Path, ...] = ()
    for pattern in _WEIGHTS[:3]:
        files = files or tuple(sorted(path.glob(pattern)))
    if not files or not (path / "config.json").exists():
        raise LocalModelError(
            f"{path} holds no model: it needs config.json and *.safetensors, or a GGUF file", why="no_model"
        )
    engine = _of_folders(policy)
    made = Plan(str(path), str(path) if engine == "transformers" else path.name, engine, files)
    return replace(made, context_bytes=_context_of_folder(policy, _config(made)))


def _of_folders(policy: LocalPolicy) -> str:
    if policy.engine == "llamacpp":
        raise LocalModelError(
            'the engine llamacpp wants a GGUF file: give one, or engine="transformers" or "vllm"', why="no_model"
        )
    if policy.engine != "auto":
        return policy.engine
    return "vllm" if not ENGINES["vllm"].missing() else "transformers"


def _choose(files: list[Path], int8: bool) -> Path:
    """Of several quantisations in a folder: Q8_0 where 8 bits are asked for, else Q4_K_M, else the first."""
    wanted = "q8_0" if int8 else "q4_k_m"
    return next((file for file in files if wanted in file.name.lower()), files[0])


def _shards(path: Path) -> tuple[Path, ...]:
    """All parts of a file that was split (`...-00001-of-00003.gguf`)."""
    stem, of, count = path.stem.rpartition("-of-")
    if of and count.isdigit() and stem[-5:].isdigit():
        parts = tuple(sorted(path.parent.glob(f"{stem[:-5]}*-of-{count}.gguf")))
        if len(parts) < int(count):
            raise LocalModelError(
                f"{path} is one of {int(count)} parts, and {len(parts)} are there: get the others", why="corrupt"
            )
        return parts
    return (path,)


def _context(policy: LocalPolicy, head: GgufHead) -> int:
    return head.context_bytes(policy.context * policy.parallel)


def _context_of_folder(policy: LocalPolicy, config: Mapping[str, object]) -> int:
    """Keys and values at 16 bits, by config.json; 0 where it does not tell."""

    def of(name: str) -> int:
        value = config.get(name)
        return value if isinstance(value, int) else 0

    heads = of("num_attention_heads")
    size = of("head_dim") or (of("hidden_size") // heads if heads else 0)
    return (
        policy.context * policy.parallel * of("num_hidden_layers") * 2 * (of("num_key_value_heads") or heads) * size * 2
    )


def _config(plan: Plan) -> dict[str, object]:
    try:
        found = json.loads((Path(plan.model) / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_quantised(plan: Plan) -> bool:
    """Whether the weights of a folder are quantised already."""
    return "quantization_config" in _config(plan)


def thinks(plan: Plan) -> bool:
    """Whether the model thinks before it answers: its chat template knows `<think>`; on the hub, by its name."""
    folder = Path(plan.model)
    if not folder.is_dir():
        return any(word in plan.model.lower() for word in ("-r1", "qwq", "thinking"))
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        try:
            if "<think>" in (folder / name).read_text("utf-8", "replace"):
                return True
        except OSError:
            continue
    return False


def gpus(environ: Mapping[str, str]) -> int:
    """How many NVIDIA cards a child would see: those that are here, of them what the environment leaves.

    Where the driver cannot be asked (no `nvidia-ml-py`) its folder is counted.
    """
    found = sum(gpu.kind == "nvidia" for gpu in detect(environ).gpus)
    if found:
        return found
    try:
        here = len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        return 0
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return here
    return min(here, len([card for card in chosen.split(",") if card.strip() not in ("", "-1")]))


def tensor_parallel(plan: Plan, cards: int) -> int:
    """Over how many of the cards a model is split: the most that its attention heads divide into evenly."""
    heads = _config(plan).get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1:
        return cards
    return next((count for count in range(cards, 0, -1) if heads % count == 0), 0)
