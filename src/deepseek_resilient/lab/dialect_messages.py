"""The Anthropic dialect: a message, or the events from `message_start` to `message_stop`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from .answers import Answer, dump, split

if TYPE_CHECKING:
    from .answers import Draft
    from .asks import Ask

_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def render_message(ask: Ask, said: Draft, model: str, identity: str) -> Answer:
    """The bytes of a draft as an Anthropic message, whole or streamed."""
    usage = {
        "input_tokens": ask.prompt_tokens - ask.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": ask.cached_tokens,
        "output_tokens": said.tokens,
    }
    stop = _STOP_REASONS.get(said.finish, said.finish)
    whole: dict[str, Any] = {
        "id": f"msg_{identity}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": _blocks(said),
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage,
    }
    if not ask.stream:
        return Answer("application/json", dump(whole))
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 0}}
    events = [_event("message_start", message=begun)]
    for index, block in enumerate(whole["content"]):
        events += _block_events(index, block, said)
    last = len(events)
    events.append(
        _event(
            "message_delta",
            delta={"stop_reason": stop, "stop_sequence": None},
            usage={"output_tokens": said.tokens},
        )
    )
    events.append(_event("message_stop"))
    return Answer("text/event-stream", events=tuple(events), first=1, last=last)


def _blocks(said: Draft) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if said.reasoning:
        blocks.append({"type": "thinking", "thinking": said.thought, "signature": "simulated"})
    if said.content:
        blocks.append({"type": "text", "text": said.text})
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
        for call in said.calls
    ]
    return blocks


def _block_events(index: int, block: dict[str, Any], said: Draft) -> list[bytes]:
    deltas: list[dict[str, Any]]
    match block["type"]:
        case "thinking":
            start = {**block, "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in said.reasoning]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case "text":
            start = {**block, "text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in said.content]
        case _:
            start = {**block, "input": {}}
            arguments = dump(block["input"]).decode()
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in split(arguments)]
    return [
        _event("content_block_start", index=index, content_block=start),
        *(_event("content_block_delta", index=index, delta=delta) for delta in deltas),
        _event("content_block_stop", index=index),
    ]


def _event(kind: str, **fields: object) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + dump({"type": kind, **fields}) + b"\n\n"
