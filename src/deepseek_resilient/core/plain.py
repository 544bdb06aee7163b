"""What a model on this machine is asked instead: the same conversation, in the fields that every such server knows.

| of the request                                     | to the local model                                             |
| -------------------------------------------------- | -------------------------------------------------------------- |
| model                                              | its own name                                                   |
| messages                                           | role, text and name; past reasoning is left out                |
| stream, stop, temperature, top_p, seed, penalties  | as they are                                                    |
| max_tokens, max_completion_tokens                  | `max_tokens`, at most what the context has left; none, if none |
| JSON mode, JSON schema                             | as it is, where the engine can; else refused                   |
| tools that may be called, tool results, pictures   | refused: they are never left out silently                      |
| several answers (`n`), logprobs, a prefix          | refused                                                        |
| thinking, effort, user_id, and all else            | left out: they say how, not what                               |

A conversation that is too long for the context is trimmed: after the leading system messages the oldest messages are
left out, whole, until a message of the user comes first and prompt and answer fit; a last message that does not fit
alone is refused. The answer is given at least a quarter of the context, or its `max_tokens` where those are fewer.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

from deepseek_resilient.core.tokens import estimate_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_KEPT = (
    "stream", "stream_options", "stop", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ANSWER = 4
"""The answer has one part in so many of the context at least."""


class Plain(NamedTuple):
    """What is asked, and how many messages were left out of it."""

    fields: dict[str, Any]
    left_out: int


def plain(
    fields: Mapping[str, Any], model: str, *, context: int, json: bool, count: Callable[[str], int]
) -> Plain | str:
    """The request for a local model with so many tokens of context; or why it cannot be asked."""
    why = beyond(fields, json=json)
    if why:
        return why
    messages = [_message(message) for message in fields["messages"]]
    for message in messages:
        if isinstance(message, str):
            return message
    asked: dict[str, Any] = {"model": model, "messages": messages}
    asked |= {name: fields[name] for name in _KEPT if fields.get(name) is not None}
    if json and _wants_json(fields):
        asked["response_format"] = fields["response_format"]
    wanted = fields.get("max_completion_tokens") if fields.get("max_tokens") is None else fields["max_tokens"]
    if wanted is not None and (type(wanted) is not int or wanted < 1):
        return "max_tokens"
    room = context // _ANSWER if wanted is None else min(wanted, context // _ANSWER)
    left_out = _trim(asked, context - room, count)
    if left_out is None:
        return "too_long"
    if wanted is not None:  # else the server gives what it has: an estimate that is too short for it would be refused
        asked["max_tokens"] = min(wanted, max(context - estimate_request(asked, count), 1))
    return Plain(asked, left_out)


def beyond(fields: Mapping[str, Any], *, json: bool) -> str:
    """What is asked that a local model cannot do; "" for nothing."""
    if (fields.get("tools") or fields.get("functions")) and fields.get("tool_choice") != "none":
        return "tools"
    if fields.get("n") not in (None, 1) or fields.get("logprobs") or fields.get("audio"):
        return "answers"
    if _wants_json(fields) and not json:
        return "json"
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return "messages"
    return "prefix" if messages[-1].get("prefix") else ""


def _wants_json(fields: Mapping[str, Any]) -> bool:
    wanted = fields.get("response_format")
    return wanted is not None and not (isinstance(wanted, dict) and wanted.get("type") == "text")


def _message(message: Mapping[str, Any]) -> dict[str, Any] | str:
    role = _ROLES.get(str(message.get("role")))
    if role is None or message.get("tool_calls") or message.get("function_call"):
        return "tools"
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            return "content"
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        return "content"
    said: dict[str, Any] = {"role": role, "content": content}
    if isinstance(message.get("name"), str):
        said["name"] = message["name"]
    return said


def _trim(asked: dict[str, Any], room: int, count: Callable[[str], int]) -> int | None:
    """Leave out what does not fit into `room` tokens; how many messages that were, None where it cannot fit."""
    messages = asked["messages"]
    first = next((place for place, message in enumerate(messages) if message["role"] != "system"), len(messages) - 1)
    starts = [first, *(place for place in range(first + 1, len(messages)) if messages[place]["role"] == "user")]

    def fits(start: int) -> bool:
        asked["messages"] = messages[:first] + messages[start:]
        return estimate_request(asked, count) <= room

    start = starts[bisect_left(starts, True, hi=len(starts) - 1, key=fits)]  # the later, the fewer
    return start - first if fits(start) else None
