"""What the simulated model answers, and its bytes in DeepSeek's shapes.

`draft` decides what is said: it follows from the request alone. `vary` applies the faults that are a matter of content.
`render` turns a draft into the bytes of a whole body or of a stream's events, in the dialect of the request.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, Literal

from .schema import example

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .asks import Ask

Finish = Literal["stop", "length", "tool_calls", "insufficient_system_resource"]

_PIECE: Final = re.compile(r"\s*\S{1,16}|\s+\Z")
_FILLER: Final = ("so", "the", "simulated", "model", "goes", "on", "—", "token", "by", "token,")
_ECHO: Final = 2000
DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Draft:
    """What will be said, before it takes a dialect's shape. The pieces are tokens; joined they are the text."""

    reasoning: tuple[str, ...]
    content: tuple[str, ...]
    calls: tuple[Call, ...] = ()
    finish: Finish = "stop"

    @property
    def text(self) -> str:
        """The whole content."""
        return "".join(self.content)

    @property
    def thought(self) -> str:
        """The whole reasoning."""
        return "".join(self.reasoning)

    @property
    def tokens(self) -> int:
        """How many tokens of output it is."""
        return len(self.reasoning) + len(self.content) + sum(len(call.arguments) // 4 + 8 for call in self.calls)


@dataclass(frozen=True, slots=True)
class Answer:
    """The bytes of a reply: a whole `body`, or a stream's `events`, each ending in a blank line.

    Of the events, those from `first` up to `last` (exclusive) carry content, reasoning or tool calls; what comes after
    ends the stream.
    """

    media: str
    body: bytes = b""
    events: tuple[bytes, ...] = ()
    first: int = 0
    last: int = 0


def dump(data: object) -> bytes:
    """Compact JSON in UTF-8, characters as they are; what UTF-8 cannot carry becomes a question mark."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


@lru_cache(maxsize=512)
def pieces(text: str) -> tuple[str, ...]:
    """The text in tokens: words with the space before them, long ones in parts of 16."""
    return tuple(_PIECE.findall(text))


def draft(ask: Ask, identity: str = "", least: int = 0) -> Draft:
    """The answer to a request: an echo of its last user message, a tool call, or an instance of the schema it gives.

    `least` tokens of content at least, filled up with made-up words; `max_tokens` of the request at most, reasoning
    not counted. The ids of tool calls come from `identity`. Of an answer that has been begun, the rest.
    """
    about = ask.prompt[:_ECHO]
    reasoning = pieces(f"The user says: {about[:60]} I shall answer.") if ask.thinking else ()
    if ask.calls:
        calls = tuple(
            Call(
                f"call_{number:02}_{identity[:24]}",
                tool.name,
                dump(example(tool.schema, about or "simulated")).decode(),
            )
            for number, tool in enumerate(ask.calls)
        )
        return Draft(reasoning, (), calls, "tool_calls")
    if ask.schema is not None:
        content = pieces(dump(example(ask.schema, f"Simulated answer to: {about}")).decode())
    else:
        verb = "completion of" if ask.endpoint == "fim" else "answer to"
        content = pieces(f"Simulated {verb}: {about}")
        if len(content) < least:
            content += tuple(f" {_FILLER[i % len(_FILLER)]}" for i in range(least - len(content)))
    if ask.prefix is not None:
        reasoning = () if ask.prefix else pieces("".join(reasoning).removeprefix(ask.thought))
        content = pieces("".join(content).removeprefix(ask.prefix))
    if ask.max_tokens is not None and len(content) > ask.max_tokens:
        return Draft(reasoning, content[: ask.max_tokens], finish="length")
    return Draft(reasoning, content)


def vary(said: Draft, kind: str) -> Draft:
    """The draft as a fault of that kind leaves it; kinds that are no matter of content leave it as it is."""
    match kind:
        case "empty_content":
            return Draft(said.reasoning, ())
        case "length_no_content":
            return Draft(said.reasoning, (), finish="length")
        case "reasoning_only":
            return Draft(said.reasoning or pieces("I have thought about it and said nothing."), ())
        case "insufficient_system_resource":
            return replace(
                said,
                content=said.content[: (len(said.content) + 1) // 2],
                calls=(),
                finish="insufficient_system_resource",
            )
    return said


def chat_usage(ask: Ask, said: Draft) -> dict[str, Any]:
    """Usage with DeepSeek's names for cache hits and with OpenAI's."""
    usage: dict[str, Any] = {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": said.tokens,
        "total_tokens": ask.prompt_tokens + said.tokens,
        "prompt_tokens_details": {"cached_tokens": ask.cached_tokens},
        "prompt_cache_hit_tokens": ask.cached_tokens,
        "prompt_cache_miss_tokens": ask.prompt_tokens - ask.cached_tokens,
    }
    if ask.thinking:
        usage["completion_tokens_details"] = {"reasoning_tokens": len(said.reasoning)}
    return usage


def render(ask: Ask, said: Draft, model: str, identity: str, created: int) -> Answer:
    """The bytes of a draft in the dialect of the request; `identity` is hexadecimal, `created` in Unix seconds."""
    match ask.endpoint:
        case "fim":
            return _fim(ask, said, model, identity, created)
        case "responses":
            from .dialect_responses import render_response

            return render_response(ask, said, model, identity, created)
        case "messages":
            from .dialect_messages import render_message

            return render_message(ask, said, model, identity)
    return (
        _chat_stream(ask, said, model, identity, created) if ask.stream else _chat(ask, said, model, identity, created)
    )


def _chat(ask: Ask, said: Draft, model: str, identity: str, created: int) -> Answer:
    message: dict[str, Any] = {"role": "assistant", "content": said.text}
    if ask.thinking:
        message["reasoning_content"] = said.thought
    if said.calls:
        message["tool_calls"] = [
            {
                "index": index,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(said.calls)
        ]
    body = {
        "id": identity,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": said.finish}],
        "usage": chat_usage(ask, said),
        "system_fingerprint": "fp_simulated",
    }
    return Answer("application/json", dump(body))


def _chat_stream(ask: Ask, said: Draft, model: str, identity: str, created: int) -> Answer:
    head = dump(
        {
            "id": identity,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": "fp_simulated",
        }
    )[:-1]
    before = b"data: " + head + b',"choices":[{"index":0,"delta":'
    after = b',"logprobs":null,"finish_reason":null}]}\n\n'
    events = [before + b'{"role":"assistant","content":""}' + after]
    events += [before + b'{"content":null,"reasoning_content":' + dump(p) + b"}" + after for p in said.reasoning]
    events += [before + b'{"content":' + dump(p) + b"}" + after for p in said.content]
    events += [before + dump({"tool_calls": [delta]}) + after for delta in _call_deltas(said.calls)]
    last = len(events)
    finish = b',"logprobs":null,"finish_reason":' + dump(said.finish) + b"}]}\n\n"
    events.append(before + b'{"content":""}' + finish)
    if ask.include_usage:
        events.append(b"data: " + head + b',"choices":[],"usage":' + dump(chat_usage(ask, said)) + b"}\n\n")
    events.append(DONE)
    return Answer("text/event-stream", events=tuple(events), first=1, last=last)


def _call_deltas(calls: Sequence[Call]) -> Iterable[dict[str, Any]]:
    """Each call's name first, then the arguments of all of them by turns: only `index` tells whose they are."""
    for index, call in enumerate(calls):
        yield {
            "index": index,
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }
    for turn in zip_longest(*(split(call.arguments) for call in calls)):
        for index, part in enumerate(turn):
            if part is not None:
                yield {"index": index, "function": {"arguments": part}}


def split(text: str, size: int = 8) -> list[str]:
    """The text in parts of `size` characters."""
    return [text[start : start + size] for start in range(0, len(text), size)]


def _fim(ask: Ask, said: Draft, model: str, identity: str, created: int) -> Answer:
    head: dict[str, Any] = {"id": identity, "object": "text_completion", "created": created, "model": model}

    def choice(text: str, finish: str | None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]}

    if not ask.stream:
        return Answer("application/json", dump({**choice(said.text, said.finish), "usage": chat_usage(ask, said)}))
    events = [b"data: " + dump(choice(piece, None)) + b"\n\n" for piece in said.content]
    last = len(events)
    events.append(b"data: " + dump(choice("", said.finish)) + b"\n\n")
    if ask.include_usage:
        events.append(b"data: " + dump({**head, "choices": [], "usage": chat_usage(ask, said)}) + b"\n\n")
    events.append(DONE)
    return Answer("text/event-stream", events=tuple(events), first=0, last=last)


def models(names: Sequence[str]) -> bytes:
    """The body of `GET /models`."""
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "deepseek"} for name in names]
    return dump({"object": "list", "data": listed})


def balance(available: bool) -> bytes:
    """The body of `GET /user/balance`."""
    total = "110.00" if available else "0.00"
    info = {"currency": "USD", "total_balance": total, "granted_balance": "0.00", "topped_up_balance": total}
    return dump({"is_available": available, "balance_infos": [info]})
