"""The rule that chooses a model for the hardware that is here, and what a text that names a model means (`resolve`).

**Memory.** A model fits where

    0.9 * free - 1.5 GB  >=  weights + KV per token * tokens

`free` is what the GPU (or the machine) has free now. A tenth of it is left alone, 1.5 GB are for the engine: CUDA's
context, activations, a scratch buffer. `tokens` are those of all requests at once, 25,000 unless asked otherwise, and
for a model with a shorter context that context.

**GPUs.** vLLM can lay a model over 2, 4 or 8 whole NVIDIA GPUs of one name (tensor parallel): each holds an equal part,
so each must have room for its part, and its own 1.5 GB. vLLM's models are for NVIDIA's GPUs of a compute capability
that it has kernels for. llama.cpp uses one GPU, of any kind.

**Processors.** Each token reads all weights once, so tokens/s is at most bandwidth / weights. SmolLM2's 0.098 GB gave
79 tokens/s on one core, which is 7.8 GB/s, and the memory feeds about four such cores. A model that thinks before it
answers is of use from about 6.5 tokens/s on:

    weights  <=  1.2 GB * min(cores, 4)

**Choice.** The highest `quality` that fits wins; of equals a GPU before the processors, then the fewest GPUs, then the
place with the most room. So more memory never gives a worse model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.files import Source, resolve
from deepseek_resilient.local.models import CATALOG, TOKENS, Model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deepseek_resilient.local.hardware import Gpu, Hardware

__all__ = [
    "AUTOMATIC",
    "CATALOG",
    "TOKENS",
    "Choice",
    "Model",
    "Source",
    "budget",
    "choose",
    "least",
    "places",
    "resolve",
    "why_not",
]

OVERHEAD: Final = 1_500_000_000
WEIGHTS_PER_CORE: Final = 1_200_000_000
CORES_FED: Final = 4

AUTOMATIC: Final = tuple(model for model in CATALOG if model.automatic)
"""What is chosen from unasked: all but what is for tests."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A model and the place for it.

    Attributes:
        where: the GPU, or "cpu"; of several GPUs the first.
        spare: bytes of the budget that stay free, on all GPUs together.
        why: one sentence.
        gpus: all of its GPUs; more than one only for vLLM, as its `--tensor-parallel-size`. Empty on the processors.
    """

    model: Model
    where: Gpu | Literal["cpu"]
    spare: int
    why: str
    gpus: tuple[Gpu, ...] = ()


def budget(free: int) -> int:
    """Bytes for weights and KV where so many are free; may be negative."""
    return free * 9 // 10 - OVERHEAD


def choose(
    hardware: Hardware, *, int8: bool = False, tokens: int = TOKENS, models: Sequence[Model] = AUTOMATIC
) -> Choice:
    """The best of `models` that fits here; with `int8` only those whose weights have 8 bits.

    `models` may be those that an installed engine can run. Raises `LocalModelError` where none fits: what is missing.
    """
    wanted = [model for model in models if model.bits == 8 or not int8]
    found = [choice for model in wanted for choice in places(model, hardware, tokens)]
    if not found:
        raise LocalModelError(_nothing(wanted, hardware, tokens))
    return max(found, key=_preference)


def places(model: Model, hardware: Hardware, tokens: int = TOKENS) -> Iterator[Choice]:
    """Every place on this machine where the model fits, by the rules of this module."""
    needed = model.needs(tokens)
    for gpus in _arrangements(model, hardware.gpus):
        # equal parts: the GPU with the least room decides
        spare = budget(min(gpu.free for gpu in gpus)) * len(gpus) - needed
        if spare >= 0:
            room = f"{_gb(spare)} to spare of the {_gb(sum(gpu.free for gpu in gpus))} that are free"
            names = gpus[0].name if len(gpus) == 1 else f"{len(gpus)} x {gpus[0].name}"
            yield Choice(model, gpus[0], spare, f"fits {names}: {room}", gpus)
    spare = budget(hardware.available) - needed
    if spare >= 0 and model.engine == "llama.cpp" and model.weights <= fast_enough(hardware.cores):
        room = f"{_gb(spare)} to spare of the {_gb(hardware.available)} that are free"
        yield Choice(model, "cpu", spare, f"answers fast enough on {hardware.cores} cores: {room}")


def fast_enough(cores: int) -> int:
    """Bytes of weights up to which processors give about 6 tokens/s."""
    return WEIGHTS_PER_CORE * min(max(cores, 1), CORES_FED)


def _arrangements(model: Model, gpus: tuple[Gpu, ...]) -> Iterator[tuple[Gpu, ...]]:
    """The sets of GPUs that could hold the model together, by kind alone."""
    usable = [gpu for gpu in gpus if _runs_on(model, gpu)]
    for gpu in usable:
        yield (gpu,)
    if model.engine != "vllm":
        return
    for name in sorted({gpu.name for gpu in usable}):
        alike = [gpu for gpu in usable if gpu.name == name and not gpu.is_instance]
        alike.sort(key=lambda gpu: gpu.free, reverse=True)
        for count in (2, 4, 8):  # what the numbers of heads of every model here can be divided by
            if len(alike) >= count:
                yield tuple(alike[:count])


def _runs_on(model: Model, gpu: Gpu) -> bool:
    if model.engine == "llama.cpp":
        return True
    has_kernels = gpu.capability == (0, 0) or model.since <= gpu.capability < model.before
    return gpu.kind == "nvidia" and has_kernels


def _preference(choice: Choice) -> tuple[int, bool, int, int]:
    return choice.model.quality, choice.where != "cpu", -len(choice.gpus), choice.spare


def least(model: Model, tokens: int = TOKENS) -> int:
    """Bytes that must be free in one place for the model to fit there."""
    return -(-(model.needs(tokens) + OVERHEAD) * 10 // 9)


def why_not(model: Model, hardware: Hardware, tokens: int = TOKENS) -> str:
    """For a model that fits nowhere here: what it would need."""
    on_processors = model.engine == "llama.cpp" and budget(hardware.available) >= model.needs(tokens)
    slow = f"; too slow for {hardware.cores} cores" if on_processors else ""
    return f"needs {model.gpus} with {_gb(least(model, tokens))} free{slow}"


def _nothing(models: Sequence[Model], hardware: Hardware, tokens: int) -> str:
    if not models:
        return "no model is left to choose from"
    free = ", ".join(f"{_gb(gpu.free)} on {gpu.name}" for gpu in hardware.gpus)
    free = f"{free}, {_gb(hardware.available)} of memory" if free else f"{_gb(hardware.available)} of memory"
    smallest = min(models, key=lambda model: model.needs(tokens))
    return (
        f"no model of the catalog fits here ({free} free): {smallest.name} with room for {tokens:,} tokens needs "
        f"{_gb(least(smallest, tokens))}; free some memory, or ask for fewer tokens"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
