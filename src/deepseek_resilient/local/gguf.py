"""What the head of a GGUF file says: whether it is one, and what its context will take in memory.

The format (github.com/ggml-org/ggml, docs/gguf.md): "GGUF", version, number of tensors, number of pairs of a key and a
typed value. Only the pairs are read, arrays are passed over. The memory of a context of c tokens:

    2 bytes · c · layers · heads of keys and values · (length of a key + length of a value)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_Q8_0 = 7
_MOST = 1 << 24


class GgufError(ValueError):
    """The file is no GGUF file, or its head is broken; the message says which."""


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
    """Read it. Raises GgufError, and OSError where the file cannot be read."""
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise GgufError("it is no GGUF file" if magic else "it is empty")
        try:
            version, _, pairs = _scalar(file, "<I"), _scalar(file, "<Q"), _scalar(file, "<Q")
            if version not in (2, 3) or pairs > _MOST:
                raise GgufError(f"it is of an unknown version ({version}), or damaged")
            found = {}
            for _ in range(pairs):
                key = _text(file)
                value = _value(file, _scalar(file, "<I"))
                if value is not None:
                    found[key] = value
        except (struct.error, UnicodeDecodeError, RecursionError):
            raise GgufError("its head is cut off or damaged") from None
    return GgufHead(found)


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
