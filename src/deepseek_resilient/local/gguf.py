"""What the head of a GGUF file says: whether it is one, whether it is whole, and what its context will take in memory.

The format (github.com/ggml-org/ggml, docs/gguf.md): "GGUF", version, number of tensors, number of pairs of a key and a
typed value; the pairs, whose arrays are passed over; of each tensor name, shape, type and place; then, aligned, the
tensors, which are not read. The memory of a context of c tokens:

    2 bytes · c · layers · heads of keys and values · (length of a key + length of a value)
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_Q8_0 = 7
_MOST = 1 << 24
_DIMENSIONS = 8
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""By a tensor's type: so many numbers are so many bytes (gguf-py's GGML_QUANT_SIZES). Of others, the place counts."""


class GgufError(ValueError):
    """The file is no GGUF file, its head is broken, or it is not whole; the message says which."""


@dataclass(frozen=True, slots=True)
class GgufHead:
    """Of a GGUF file: its pairs of keys and values, without arrays."""

    values: dict[str, Any]

    @property
    def is_q8_0(self) -> bool:
        """Whether its weights are of 8 bits."""
        return self.values.get("general.file_type") == _Q8_0

    def context_bytes(self, tokens: int) -> int:
        """Memory of so many tokens of context; 0 where the head does not tell."""
        layers, heads = self._of("block_count"), self._of("attention.head_count")
        heads_kv = self._of("attention.head_count_kv") or heads
        if not (layers and heads and heads_kv):
            return 0
        length = self._of("embedding_length") // heads
        both = (self._of("attention.key_length") or length) + (self._of("attention.value_length") or length)
        return 2 * tokens * layers * heads_kv * both

    def _of(self, name: str) -> int:
        value = self.values.get(f"{self.values.get('general.architecture')}.{name}", 0)
        return value if isinstance(value, int) else 0


def read_head(path: Path) -> GgufHead:
    """Read it, and hold what it says of the tensors against the file's length. Raises GgufError, and OSError where the
    file cannot be read."""
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise GgufError("it is no GGUF file" if magic else "it is empty")
        try:
            version, tensors, pairs = _scalar(file, "<I"), _scalar(file, "<Q"), _scalar(file, "<Q")
            if version not in (2, 3) or max(tensors, pairs) > _MOST:
                raise GgufError(f"it is of an unknown version ({version}), or damaged")
            found = {}
            for _ in range(pairs):
                key = _text(file)
                value = _value(file, _scalar(file, "<I"))
                if value is not None:
                    found[key] = value
            end = max((_end_of_tensor(file) for _ in range(tensors)), default=0)
            start = file.tell()
        except (struct.error, UnicodeDecodeError, RecursionError):
            raise GgufError("its head is cut off or damaged") from None
        alignment, length = found.get("general.alignment", 32), file.seek(0, os.SEEK_END)
    if not (isinstance(alignment, int) and alignment > 0):
        raise GgufError("its head is damaged")
    whole = start + -start % alignment + end if end else start
    if length < whole:
        raise GgufError(f"it is cut off: {length:,} of its {whole:,} bytes are there")
    return GgufHead(found)


def _end_of_tensor(file: IO[bytes]) -> int:
    """Where the next tensor of the table ends, counted from where the first one begins."""
    _text(file)
    dimensions = _scalar(file, "<I")
    if dimensions > _DIMENSIONS:
        raise GgufError("its head is damaged")
    count = math.prod(_scalar(file, "<Q") for _ in range(dimensions))
    kind, offset = _scalar(file, "<I"), _scalar(file, "<Q")
    numbers, size = _BLOCKS.get(kind, (1, 0))
    return int(offset + count // numbers * size)


def _value(file: IO[bytes], kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind in _SCALARS:
        return _scalar(file, _SCALARS[kind])
    if kind != _ARRAY:
        raise GgufError("its head is damaged")
    inner, count = _scalar(file, "<I"), _scalar(file, "<Q")
    if inner in _SCALARS:
        file.seek(count * struct.calcsize(_SCALARS[inner]), 1)
        return None
    for _ in range(count):
        _value(file, inner)
    return None


def _text(file: IO[bytes]) -> str:
    length = _scalar(file, "<Q")
    data = file.read(min(length, _MOST))
    if len(data) != length:
        raise GgufError("its head is cut off or damaged")
    return data.decode("utf-8", "replace")


def _scalar(file: IO[bytes], form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]
