"""The Responses dialect: a response object, or the events that build it up to `response.completed`; no `[DONE]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .answers import Answer, dump, split

if TYPE_CHECKING:
    from .answers import Draft
    from .asks import Ask


def render_response(ask: Ask, said: Draft, model: str, identity: str, created: int) -> Answer:
    """The bytes of a draft as a response, whole or streamed."""
    items = _items(ask, said, identity)
    status = "completed"
    details = None
    error = None
    if said.finish == "length":
        status, details = "incomplete", {"reason": "max_output_tokens"}
    elif said.finish == "insufficient_system_resource":
        status, error = "failed", {"code": "server_error", "message": "Insufficient system resource"}
    whole: dict[str, Any] = {
        "id": f"resp_{identity}",
        "object": "response",
        "created_at": created,
        "status": status,
        "error": error,
        "incomplete_details": details,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": items,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": ask.prompt_tokens,
            "input_tokens_details": {"cached_tokens": ask.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": said.tokens,
            "output_tokens_details": {"reasoning_tokens": len(said.reasoning)},
            "total_tokens": ask.prompt_tokens + said.tokens,
        },
    }
    if not ask.stream:
        return Answer("application/json", dump(whole))
    begun = {**whole, "status": "in_progress", "error": None, "incomplete_details": None, "output": [], "usage": None}
    events = _Events()
    events.add("response.created", response=begun)
    events.add("response.in_progress", response=begun)
    first = len(events.events)
    for index, item in enumerate(items):
        events.item(index, item, said)
    last = len(events.events)
    events.add(f"response.{status}", response=whole)
    return Answer("text/event-stream", events=tuple(events.events), first=first, last=last)


def _items(ask: Ask, said: Draft, identity: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    status = "completed" if said.finish in ("stop", "tool_calls") else "incomplete"
    if ask.thinking:
        thought = [{"type": "reasoning_text", "text": said.thought}]
        items.append(
            {"id": f"rs_{identity}", "type": "reasoning", "summary": [], "content": thought, "status": "completed"}
        )
    items += [
        {
            "id": f"fc_{identity}_{number}",
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "status": "completed",
        }
        for number, call in enumerate(said.calls)
    ]
    if not said.calls:
        text = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
        items.append(
            {"id": f"msg_{identity}", "type": "message", "role": "assistant", "status": status, "content": [text]}
        )
    return items


class _Events:
    """Collects the events of a response, numbered."""

    def __init__(self) -> None:
        self.events: list[bytes] = []

    def add(self, kind: str, **fields: object) -> None:
        data = {"type": kind, "sequence_number": len(self.events), **fields}
        self.events.append(b"event: " + kind.encode() + b"\ndata: " + dump(data) + b"\n\n")

    def item(self, index: int, item: dict[str, Any], said: Draft) -> None:
        match item["type"]:
            case "reasoning":
                self.add("response.output_item.added", output_index=index, item={**item, "content": []})
                self._text(index, item, "response.reasoning_text", said.reasoning, {})
            case "function_call":
                self.add("response.output_item.added", output_index=index, item={**item, "arguments": ""})
                place: dict[str, Any] = {"item_id": item["id"], "output_index": index}
                for part in split(item["arguments"]):
                    self.add("response.function_call_arguments.delta", **place, delta=part)
                self.add(
                    "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
                )
            case _:
                self.add("response.output_item.added", output_index=index, item={**item, "content": []})
                self._text(index, item, "response.output_text", said.content, {"logprobs": []})
        self.add("response.output_item.done", output_index=index, item=item)

    def _text(
        self, index: int, item: dict[str, Any], kind: str, parts: tuple[str, ...], extra: dict[str, object]
    ) -> None:
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        whole = item["content"][0]
        self.add("response.content_part.added", **place, part={**whole, "text": ""})
        for part in parts:
            self.add(f"{kind}.delta", **place, delta=part, **extra)
        self.add(f"{kind}.done", **place, text=whole["text"], **extra)
        self.add("response.content_part.done", **place, part=whole)
