"""A whole answer, as it is kept: what the cache, the persistent store and calls that share an answer hand on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from deepseek_resilient.usage import Usage


class Answer(NamedTuple):
    """A complete, good answer.

    `chunks` is the body as it came, one chunk for an answer that was not streamed; `at` is when it was complete, Unix
    seconds; `usage` is what it took, where that was stated.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    chunks: tuple[bytes, ...]
    stream: bool
    at: float
    usage: Usage | None = None
