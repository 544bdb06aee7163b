"""The tiny model made wide and deep: the same sentence, over and over, by as much arithmetic as a real model takes.

All layers are zeros, which lie in the file as holes; what leaves them is still the embedding of the last token. Weights
are of 16 bits (bfloat16), in which the few that are not 0 are exact.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from local.tiny import SENTENCE, Tiny

if TYPE_CHECKING:
    from pathlib import Path

ONE, FOUR = b"\x80\x3f", b"\x80\x40"


def write_wide(folder: Path, words: tuple[str, ...] = SENTENCE, *, hidden: int, layers: int, loop: bool = True) -> Path:
    """A folder for transformers and vLLM; `hidden` is at least the number of tokens, and a multiple of 64."""
    tiny = Tiny(words, loop=loop)
    tiny.write_folder(folder)
    size, inner = tiny.size, hidden * 4
    assert hidden >= size
    embedding, output = bytearray(2 * size * hidden), bytearray(2 * size * hidden)
    for row in range(size):
        for column in range(size):
            if tiny.embedding[row * size + column]:
                start = 2 * (row * hidden + column)
                embedding[start : start + 2] = ONE
            if tiny.output[row * size + column]:
                start = 2 * (row * hidden + column)
                output[start : start + 2] = FOUR
    tensors: dict[str, tuple[tuple[int, ...], bytes | None]] = {
        "model.embed_tokens.weight": ((size, hidden), bytes(embedding)),
        "lm_head.weight": ((size, hidden), bytes(output)),
        "model.norm.weight": ((hidden,), ONE * hidden),
    }
    for layer in range(layers):
        name = f"model.layers.{layer}"
        tensors |= {
            f"{name}.{norm}_layernorm.weight": ((hidden,), ONE * hidden) for norm in ("input", "post_attention")
        }
        tensors |= {f"{name}.self_attn.{part}_proj.weight": ((hidden, hidden), None) for part in "qkvo"}
        tensors |= {f"{name}.mlp.{part}_proj.weight": ((inner, hidden), None) for part in ("gate", "up")}
        tensors[f"{name}.mlp.down_proj.weight"] = ((hidden, inner), None)
    _write(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "dtype": "bfloat16",
        "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _write(path: Path, tensors: dict[str, tuple[tuple[int, ...], bytes | None]]) -> None:
    """A file of safetensors in bfloat16; None is all zeros."""
    head, end = {}, 0
    for name, (shape, _) in tensors.items():
        count = 2
        for side in shape:
            count *= side
        head[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + end)
        for name, (_, data) in tensors.items():
            if data is not None:
                file.seek(start + head[name]["data_offsets"][0])  # type: ignore[index]
                file.write(data)
