"""What the guard measures of a body or a text, each by a few passes at C speed, whatever the bytes are.

Tokens, as a lower bound: a prompt is refused only when it is surely too long. DeepSeek counts 0.3 tokens per English
and 0.6 per Chinese character (its documentation); here

    tokens >= (ASCII letters and digits + characters of two bytes) / 8 + characters of three or four bytes / 4

Signs (typographic ones, too) and white space count nothing, for runs of them become few tokens. So about half of what
prose really has. Only a text of nothing but the longest words that are one token each has fewer than this says.
"""

from __future__ import annotations

import string
from itertools import accumulate
from typing import AnyStr

_WORD = (string.ascii_letters + string.digits).encode() + bytes(range(0xC0, 0xE0))
_NO_WORD = bytes(set(range(256)) - set(_WORD))
_NO_LONG_CHARACTER = bytes([*range(0xE0), 0xE2])


def least_tokens(text: str) -> int:
    """How many tokens `text` has at the very least."""
    data = text.encode("utf-8", "surrogatepass")
    tokens = len(data.translate(None, _NO_WORD)) // 8
    return tokens if len(data) == len(text) else tokens + len(data.translate(None, _NO_LONG_CHARACTER)) // 4


def has_white_run(data: AnyStr, length: int) -> bool:
    """Whether one of the blocks of `length` in `data` is nothing but white space.

    So a run is found for certain when it is twice as long, and none that is shorter than `length`.
    """
    for start in range(0, len(data) - length + 1, length):
        if data[start : start + 1].isspace() and data[start : start + length].isspace():
            return True
    return False


_BRACKETS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKET = bytes(set(range(256)) - set(b'[{]}"'))


def nests_deeper(body: bytes, levels: int) -> bool:
    """Whether arrays and objects lie more than `levels` deep in each other in `body`, which is valid JSON.

    What has no more opening brackets than that cannot. Otherwise all but brackets and quotes is dropped, then the
    strings; the rest are steps up (1) and down (-1). The innermost pairs go first: one level less, most of the steps.
    """
    if len(body) <= 2 * levels or body.count(b"[") + body.count(b"{") <= levels:
        return False
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    steps = body.translate(_BRACKETS, _NO_BRACKET).replace(b'""', b"")
    if b'"' in steps:
        steps = b"".join(steps.split(b'"')[::2])
    steps = steps.replace(b"\x01\xff", b"")
    return steps.count(1) >= levels and max(accumulate(memoryview(steps).cast("b"))) >= levels
