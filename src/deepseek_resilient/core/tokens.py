"""How many tokens a request has, without a tokenizer: estimated from above, so that a rate limit is kept.

A linear mix over the classes of characters and over what stands next to what (a letter after a blank begins a word; a
capital after a small letter, a new part of one), computed by counting in C:

    tokens(text) ~ sum of weight[pattern] * count[pattern]

The weights were fitted (a linear programme: the least sum that is not below the real count) to 2,000 texts of 27
languages, source code, JSON, URLs, base64, digits, symbols and emoji, with the real counts of DeepSeek's tokenizer;
`benchmarks/tokens.py` shows how close they come. `len / 4` is half of the real count for Chinese. Rare Chinese
characters in random order, and words of no language (ROT13), can have more tokens than estimated.

`tokenizer.py` counts exactly, where the tokenizer is installed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PER_MESSAGE = 6
_PICTURE = 2000
"""Characters of a `data:` address that count: what a picture costs does not grow with its bytes."""
_DEPTH = 50
_OUTPUT = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_NOT_TEXT = frozenset((*_OUTPUT, "model", "role", "type", "stream", "tool_choice", "metadata", "user"))


def _table() -> bytes:
    """The class of each byte of UTF-8, where a longer character is known by its first."""
    classes = bytearray(b"." * 256)
    for first, last, letter in (
        (ord("a"), ord("z"), "a"), (ord("A"), ord("Z"), "A"), (ord("0"), ord("9"), "0"),
        (0xC2, 0xCC, "l"),  # Latin with accents
        (0xCD, 0xD3, "g"),  # Greek, Cyrillic
        (0xD4, 0xDF, "r"),  # Armenian, Hebrew, Arabic
        (0xE0, 0xE0, "i"),  # Indic scripts, Thai
        (0xE1, 0xE1, "v"),  # Georgian, Vietnamese, Mongolian
        (0xE2, 0xE2, "s"),  # typographic and mathematical signs
        (0xE3, 0xE3, "k"),  # kana
        (0xE4, 0xE9, "h"),  # Chinese characters
        (0xEA, 0xEF, "o"),  # Hangul, full-width forms
        (0xF0, 0xF7, "f"),  # emoji and the rest
    ):  # fmt: skip
        classes[first : last + 1] = letter.encode() * (last + 1 - first)
    for code in b" \t":
        classes[code] = ord(" ")
    for code in b"\n\r\f\v":
        classes[code] = ord("n")
    return bytes(classes)


_CLASSES = _table()
_CONTINUATIONS = bytes(range(0x80, 0xC0))
_WEIGHTS: tuple[tuple[bytes, float], ...] = (
    (b"a", 0.13), (b"A", 0.66), (b"0", 0.37), (b".", 0.31), (b"n", 1.41), (b"l", 2.19), (b"g", 0.77), (b"r", 0.0),
    (b"i", 0.98), (b"v", 1.1), (b"s", 3.0), (b"k", 0.75), (b"h", 1.05), (b"o", 1.12), (b"f", 2.68),
    (b"Aa", 1.53), (b"a0", 2.12), (b".a", 0.59), (b" a", 0.85), (b"..", 0.96), (b"rr", 1.65), (b".0", 1.6),
    (b" 0", 1.52), (b". ", 0.53), (b"aaaaaaaa", 1.25), (b"aaaaaaaaaaaa", 4.2),
)  # fmt: skip
"""Of a character of the class, and of classes in a row. Without a class: blanks (part of the word that follows)."""


def estimate(text: str) -> int:
    """The tokens of `text`, at most. 100,000 words take a few milliseconds."""
    count = text.encode("utf-8", "replace").translate(_CLASSES, _CONTINUATIONS).count
    return int(sum(weight * count(pattern) for pattern, weight in _WEIGHTS)) + 1


def estimate_request(fields: Mapping[str, Any], count: Callable[[str], int] = estimate) -> int:
    """The tokens of a request by its JSON fields: everything that is read, and the output that it reserves.

    Nothing is assumed about the output of a request that names no limit; its `usage` corrects that afterwards.
    """
    texts: list[str] = []
    for name, value in fields.items():
        if name not in _NOT_TEXT:
            _collect(value, texts, _DEPTH)
    messages = fields.get("messages")
    overhead = _PER_MESSAGE * (len(messages) if isinstance(messages, list) else 1)
    reserved = next((n for name in _OUTPUT if type(n := fields.get(name)) is int and n > 0), 0)
    answers = fields.get("n")
    times = answers if type(answers) is int and answers > 1 else 1
    return count("\n".join(texts)) + overhead + reserved * times


def _collect(value: Any, texts: list[str], depth: int) -> None:
    """The strings in `value`; of what is not nested like a message, its JSON text."""
    if isinstance(value, str):
        texts.append(value[:_PICTURE] if value.startswith("data:") else value)
    elif isinstance(value, (list, dict)) and depth:
        if isinstance(value, dict):
            texts.extend(value)
            value = value.values()
        for inner in value:
            _collect(inner, texts, depth - 1)
    elif not isinstance(value, (list, dict)):
        texts.append(json.dumps(value))
