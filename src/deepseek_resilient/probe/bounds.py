"""What a probe may spend, and what is asked for with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PROMPT_TOKENS: Final = 40
"""More than a question takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The most that is spent: `requests` in all, `seconds` in all, `max_tokens` an answer; `concurrency` at once.

    A request that takes longer than `timeout` seconds is given up, and nothing further is tried.
    """

    requests: int = 600
    seconds: float = 120.0
    max_tokens: int = 16
    concurrency: int = 256
    timeout: float = 60.0

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers together, at most."""
        return self.requests * self.max_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts together, at most."""
        return self.requests * PROMPT_TOKENS
