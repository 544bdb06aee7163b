"""What is known of DeepSeek's chat prefix completion: a last message of the assistant that the model goes on with.

    POST {base}/beta/chat/completions
    {"messages": [..., {"role": "assistant", "content": "Once upon", "reasoning_content": "...", "prefix": true}], ...}

The answer is what follows the prefix, without it. A server that does not know the address answers 404. (wire.py has all
other facts of the wire. Source: DeepSeek's API documentation, "Chat Prefix Completion (Beta)".)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_resilient.wire import BETA_PATH, address_of, encode, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_CHAT = "/chat/completions"
_LIMITS = ("max_tokens", "max_completion_tokens")
_LOST = "\ufffd"
"""What half a character reads as."""

Message = dict[str, Any]


def path_of(path: str) -> str:
    """Where a call to that chat path is continued."""
    return address_of(path.rstrip("/").removesuffix(_CHAT), BETA_PATH + _CHAT)


def can_continue(fields: Mapping[str, Any]) -> bool:
    """Whether the answer to such a request is one text: not several, not JSON, no audio."""
    wanted = fields.get("response_format")
    messages = fields.get("messages")
    return (
        fields.get("n") in (None, 1)
        and (wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text"))
        and fields.get("audio") is None
        and isinstance(messages, list)
        and bool(messages)
        and all(isinstance(message, dict) for message in messages)
    )


def message_of(fields: Mapping[str, Any], text: str, thought: str) -> Message | None:
    """The message that stands for an answer to `fields` so far; None where it cannot be gone on with."""
    if not can_continue(fields) or not (text or thought) or text.endswith(_LOST) or thought.endswith(_LOST):
        return None
    begun = _begun(fields)
    if begun is not None:
        if not isinstance(begun.get("content"), str):
            return None
        text = begun["content"] + text
        thought = str(begun.get("reasoning_content") or "") + thought
    message: Message = {"role": "assistant", "content": text, "prefix": True}
    if thought:
        message["reasoning_content"] = thought
    return message


def continued(fields: Mapping[str, Any], message: Mapping[str, Any], tokens: int) -> dict[str, Any] | None:
    """The request that goes on from `message`, after `tokens` of the answer; None if it may have no more."""
    asked = dict(fields)
    messages = list(asked["messages"])
    asked["messages"] = [*(messages if _begun(fields) is None else messages[:-1]), message]
    for name in _LIMITS:
        if isinstance(asked.get(name), int):
            asked[name] -= tokens
            if asked[name] < 1:
                return None
    return asked


def _begun(fields: Mapping[str, Any]) -> Message | None:
    """The prefix that the caller gave."""
    last: Message = fields["messages"][-1]
    return last if last.get("role") == "assistant" and last.get("prefix") is True else None


def thought_of(events: Iterable[bytes]) -> str:
    """The reasoning that these events of a chat stream carry; a surrogate pair may be split over two of them."""
    return "".join(str(delta.get("reasoning_content") or "") for event in events for delta in _deltas(fields_of(event)))


def calls_tools(events: Iterable[bytes]) -> bool:
    """Whether these events of a chat stream hold a part of a call of a tool."""
    return any(
        delta.get("tool_calls") or delta.get("function_call") for event in events for delta in _deltas(fields_of(event))
    )


def identity_of(event: bytes) -> dict[str, Any]:
    """What says of an event which answer it belongs to."""
    fields = fields_of(event)
    return {name: fields[name] for name in ("id", "created") if name in fields}


def adopted(event: bytes, identity: Mapping[str, Any], said: Mapping[str, Any]) -> bytes | None:
    """An event of a continuing stream as one of the answer that it continues, with what is `said` about it under the
    name `resilient`; None for one that only begins an answer. What is no chunk of a chat stays as it is."""
    fields = fields_of(event)
    choices = _choices(fields)
    if not fields or fields.get("error"):
        return event
    for choice in choices:
        choice["delta"].pop("role", None)
    if choices and not fields.get("usage") and not any(map(_says_something, choices)):
        return None
    if said:
        fields["resilient"] = said
    return encode({**fields, **identity}) or event


def unended(event: bytes) -> bytes:
    """An event of a chat stream without the `finish_reason` that it has."""
    fields = fields_of(event)
    for choice in _choices(fields):
        choice["finish_reason"] = None
    return encode(fields) or event


def _says_something(choice: dict[str, Any]) -> bool:
    return any(choice["delta"].values()) or bool(choice.get("finish_reason") or choice.get("logprobs"))


def _choices(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = fields.get("choices")
    found = choices if isinstance(choices, list) else []
    return [choice for choice in found if isinstance(choice, dict) and isinstance(choice.get("delta"), dict)]


def _deltas(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [choice["delta"] for choice in _choices(fields)]
