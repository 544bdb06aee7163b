"""A model of 1 MB that says one sentence, whatever it is asked; as GGUF and as safetensors. Not trained: written down.

It is a Llama of one layer whose attention and feed-forward weights are 0, so that what leaves it is the embedding of
the last token. Embeddings are one-hot (as many dimensions as tokens), and the output matrix has a 1 in row j, column i
where token j follows token i: a table of successors. The chat template ends with a token of its own, whose successor is
the first word; the last word's is the end, or the first word again.
"""

from __future__ import annotations

import array
import json
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SENTENCE = ("The", "▁local", "▁model", "▁answers", "▁from", "▁this", "▁machine", ".")
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}<|go|>"
_GO, _EOS = 3, 2
_LOGIT = 4.0  # times sqrt(size): certain at any temperature one would set


def text(words: tuple[str, ...] = SENTENCE) -> str:
    """What the model says."""
    return "".join(words).replace("▁", " ")


class Tiny:
    """The tokens, their kinds and the matrices.

    `loop` says the sentence for ever; a `template` of one's own ends with a line break, which the first word follows.
    """

    def __init__(self, words: tuple[str, ...] = SENTENCE, *, loop: bool = False, template: str = TEMPLATE) -> None:
        special = ["<unk>", "<s>", "</s>", "<|go|>"]
        tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
        self.size = -(-len(tokens) // 64) * 64
        tokens += [f"<pad{number}>" for number in range(self.size - len(tokens))]
        self.tokens = tokens
        self.special = special
        said = [tokens.index(word) for word in words]
        self.template = template
        first = _GO if template == TEMPLATE else 4 + ord("\n")
        follows = dict(zip([first, *said], [*said, said[0] if loop else _EOS], strict=True))
        self.embedding = self._matrix({(token, token): 1.0 for token in range(self.size)})
        self.output = self._matrix({(after, before): _LOGIT for before, after in follows.items()})

    def tensors(self, gguf: bool) -> dict[str, tuple[tuple[int, ...], array.array[float]]]:
        """By name: shape (rows first) and numbers."""
        size, hidden = self.size, 64
        ones, square = array.array("f", [1.0]) * size, array.array("f", [0.0]) * (size * size)
        wide = array.array("f", [0.0]) * (size * hidden)
        found = {
            "token_embd": ((size, size), self.embedding), "output": ((size, size), self.output),
            "output_norm": ((size,), ones), "blk.0.attn_norm": ((size,), ones), "blk.0.ffn_norm": ((size,), ones),
            "blk.0.ffn_gate": ((hidden, size), wide), "blk.0.ffn_up": ((hidden, size), wide),
            "blk.0.ffn_down": ((size, hidden), wide),
        }  # fmt: skip
        found |= {f"blk.0.attn_{name}": ((size, size), square) for name in ("q", "k", "v", "output")}
        return {f"{name if gguf else _NAMES[name]}.weight": pair for name, pair in found.items()}

    def write_gguf(self, path: Path, file_type: int | None = None) -> Path:
        """One file for llama.cpp; `file_type` is what its head says of the weights (0: 32 bits, 7: Q8_0)."""
        kinds = array.array("i", [2, 3, 3, 3] + [6] * 256 + [1] * (self.size - 260))
        scores = [0.0] * 260 + [-float(number) for number in range(self.size - 260)]
        pairs = [
            _pair("general.architecture", "llama"), _pair("general.name", path.stem),
            _pair("llama.context_length", 65536), _pair("llama.embedding_length", self.size),
            _pair("llama.block_count", 1), _pair("llama.feed_forward_length", 64),
            _pair("llama.attention.head_count", self.size // 64),
            _pair("llama.attention.head_count_kv", self.size // 64),
            _pair("llama.attention.layer_norm_rms_epsilon", 1e-5), _pair("llama.rope.dimension_count", 64),
            _pair("tokenizer.ggml.model", "llama"), _pair("tokenizer.ggml.tokens", self.tokens),
            _pair("tokenizer.ggml.scores", scores), _pair("tokenizer.ggml.token_type", kinds),
            _pair("tokenizer.ggml.bos_token_id", 1), _pair("tokenizer.ggml.eos_token_id", _EOS),
            _pair("tokenizer.ggml.unknown_token_id", 0), _pair("tokenizer.chat_template", self.template),
        ]  # fmt: skip
        pairs += [] if file_type is None else [_pair("general.file_type", file_type)]
        tensors = self.tensors(gguf=True)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs)
        offset, data = 0, b""
        for name, (shape, numbers) in tensors.items():
            head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), 0, offset)
            block = numbers.tobytes()
            data += block + bytes(-len(block) % 32)
            offset = len(data)
        path.write_bytes(head + bytes(-len(head) % 32) + data)
        return path

    def write_folder(self, folder: Path) -> Path:
        """A folder for transformers and vLLM."""
        folder.mkdir(exist_ok=True)
        head, data = {}, b""
        for name, (shape, numbers) in self.tensors(gguf=False).items():
            block = numbers.tobytes()
            head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(block)]}
            data += block
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        (folder / "config.json").write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": self.size,
            "hidden_size": self.size, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads":
            self.size // 64, "num_key_value_heads": self.size // 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": _EOS, "dtype": "float32",
            "tie_word_embeddings": False,
        }))  # fmt: skip
        (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": _EOS}))
        added = [
            {"id": number, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
            for number, token in enumerate(self.special)
        ]  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps({
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": None, "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}]},
            "model": {"type": "BPE", "vocab": {token: number for number, token in enumerate(self.tokens)},
                      "merges": [], "byte_fallback": True, "unk_token": "<unk>", "fuse_unk": False},
        }))  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>",
            "unk_token": "<unk>", "chat_template": self.template,
        }))  # fmt: skip
        return folder

    def _matrix(self, cells: dict[tuple[int, int], float]) -> array.array[float]:
        numbers = array.array("f", [0.0]) * (self.size * self.size)
        for (row, column), value in cells.items():
            numbers[row * self.size + column] = value
        return numbers


_NAMES = {
    "token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm",
    "blk.0.attn_norm": "model.layers.0.input_layernorm", "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
    "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj", "blk.0.ffn_up": "model.layers.0.mlp.up_proj",
    "blk.0.ffn_down": "model.layers.0.mlp.down_proj", "blk.0.attn_q": "model.layers.0.self_attn.q_proj",
    "blk.0.attn_k": "model.layers.0.self_attn.k_proj", "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
    "blk.0.attn_output": "model.layers.0.self_attn.o_proj",
}  # fmt: skip


def _pair(key: str, value: object) -> bytes:
    return _string(key) + _typed(value)


def _typed(value: object) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, array.array):  # of signed numbers
        return struct.pack("<IIQ", 9, 5, len(value)) + value.tobytes()
    assert isinstance(value, list)
    inner = [_typed(one) for one in value]
    return struct.pack("<I", 9) + inner[0][:4] + struct.pack("<Q", len(inner)) + b"".join(one[4:] for one in inner)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
