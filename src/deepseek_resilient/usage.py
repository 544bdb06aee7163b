"""What answers say of the tokens they took: the part of the wire that is paid for.

Seen without parsing: inside JSON strings the quotes are escaped, so text of the answer cannot look like a field.

    dialect     prompt                                  cached                       answer
    chat, FIM   prompt_tokens                           prompt_cache_hit_tokens,     completion_tokens
                                                        cached_tokens
    responses   input_tokens                            cached_tokens                output_tokens
    messages    input_tokens, cache_read_input_tokens,  cache_read_input_tokens      output_tokens
                cache_creation_input_tokens

Sources: DeepSeek's API documentation (2026-11) and OpenAI's and Anthropic's for the fields that they name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_FIELD = re.compile(
    rb'"((?:prompt|completion|total|input|output|cached|prompt_cache_hit|cache_read_input|cache_creation_input)_tokens)"'
    rb"\s*:\s*(\d{1,12})"
)
_MARK = b'"usage"'
_OPENED = re.compile(rb'"usage"\s*:\s*\{')
_LONGEST = 1024


class Usage(NamedTuple):
    """Tokens: of the prompt, those of them that the server had in its own cache, and of the answer."""

    prompt: int
    cached: int
    output: int

    @property
    def total(self) -> int:
        """Prompt and answer."""
        return self.prompt + self.output

    def merge(self, later: Usage) -> Usage:
        """With what a later event of the stream says: all counts only grow."""
        return Usage(max(self.prompt, later.prompt), max(self.cached, later.cached), max(self.output, later.output))


def usage_of(data: bytes) -> Usage | None:
    """The usage that an answer, or an event of a stream, states; None if it states none."""
    place = len(data)
    while (place := data.rfind(_MARK, 0, place)) >= 0:
        if _OPENED.match(data, place):  # else it is a value, as in {"content":"usage"}, or null
            said: dict[bytes, int] = {}
            for name, count in _FIELD.findall(data, place, place + _LONGEST):
                if name not in said:
                    said[name] = int(count)
            if said:
                return _usage(said)
    return None


def _usage(said: dict[bytes, int]) -> Usage:
    output = said.get(b"completion_tokens", said.get(b"output_tokens", 0))
    read = said.get(b"cache_read_input_tokens", 0)
    cached = said.get(b"prompt_cache_hit_tokens", said.get(b"cached_tokens", read))
    prompt = said.get(b"prompt_tokens", said.get(b"input_tokens"))
    if prompt is None:
        prompt = max(said.get(b"total_tokens", 0) - output, 0)
    prompt += read + said.get(b"cache_creation_input_tokens", 0)
    return Usage(prompt, min(cached, prompt), output)
