"""`<think>` in an answer becomes `reasoning_content`, as DeepSeek itself has it.

    <think>The user wants ...</think>Three rivers are ...
    └── reasoning_content ──────┘       └── content ───

Engines that know this do it themselves; then there is nothing to do here. A tag may be split over any number of chunks:
what may be the beginning of one is held back until it is known.
"""

from __future__ import annotations

from typing import Any

from deepseek_resilient.core.sse import EventSplitter, EventStreamParser, split
from deepseek_resilient.wire import encode, fields_of

_OPEN, _CLOSE = "<think>", "</think>"
_OTHER_NAME = "reasoning"
"""What vLLM calls `reasoning_content`."""


class Thought:
    """The text of one answer, told apart as it comes. Not thread-safe: one per answer."""

    __slots__ = ("_began", "_fresh", "_held", "_over")

    def __init__(self) -> None:
        self._began = self._over = self._fresh = False
        self._held = ""

    def feed(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """What of it is thought, and what is the answer; `last` says that no more will come. Line ends around the
        thought are part of neither."""
        text, self._held = self._held + text, ""
        if self._over:
            return "", self._answer(text)
        if not self._began:
            bare = text.lstrip()
            if _OPEN.startswith(bare) and bare != _OPEN and not last:
                self._held = text
                return "", ""
            if not bare.startswith(_OPEN):
                self._over = True
                return "", text
            self._began = self._fresh = True
            text = bare.removeprefix(_OPEN)
        if self._fresh:
            text = text.lstrip("\n")
            self._fresh = not text
        thought, tag, rest = text.partition(_CLOSE)
        if tag:
            self._over = self._fresh = True
            return thought.rstrip("\n"), self._answer(rest)
        kept = 0 if last else _maybe_close(thought)
        self._held = thought[len(thought) - kept :]
        return thought[: len(thought) - kept], ""

    def skip(self) -> None:
        """The engine tells thought apart itself."""
        self._over = True

    def _answer(self, text: str) -> str:
        if self._fresh:
            text = text.lstrip("\n")
            self._fresh = not text
        return text


def _maybe_close(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of the closing tag, and line ends before it."""
    size = next((n for n in range(min(len(_CLOSE) - 1, len(text)), 0, -1) if _CLOSE.startswith(text[-n:])), 0)
    before = text[: len(text) - size]
    return len(text) - len(before.rstrip("\n"))


class ThoughtStream:
    """The events of a chat stream with the thought told apart. Not thread-safe: one per stream."""

    __slots__ = ("_splitter", "_thought")

    def __init__(self) -> None:
        self._thought = Thought()
        self._splitter = EventSplitter()

    def take(self, chunk: bytes, *, bad: bool = False) -> bytes:
        """What of `chunk` the caller gets now: whole events."""
        return b"".join(map(self._told, split(self._splitter.take(chunk))))

    def rest(self) -> bytes:
        """What was held back of a stream that has ended well."""
        return self._splitter.rest()

    def _told(self, event: bytes) -> bytes:
        for _, data in EventStreamParser().feed(event):
            fields = fields_of(data)
            if fields and self._changed(fields):
                return b"data: " + (encode(fields) or data) + b"\n\n"
        return event

    def _changed(self, fields: dict[str, Any]) -> bool:
        """Tell apart what this event says, in place; whether anything is different."""
        changed = False
        for choice in _choices(fields):
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if not isinstance(delta, dict):
                continue
            if delta.get(_OTHER_NAME) and not delta.get("reasoning_content"):
                delta["reasoning_content"] = delta.pop(_OTHER_NAME)
                changed = True
            if delta.get("reasoning_content"):
                self._thought.skip()
            content = delta.get("content")
            text = content if isinstance(content, str) else ""
            thought, answer = self._thought.feed(text, last=choice.get("finish_reason") is not None)
            if (thought, answer) != ("", text):
                changed = True
                delta["content"] = answer
                if thought:
                    delta["reasoning_content"] = thought
        return changed


def _choices(fields: dict[str, Any]) -> list[Any]:
    choices = fields.get("choices")
    return choices if isinstance(choices, list) else []


def tell_apart(body: bytes) -> bytes:
    """A whole chat answer with the thought told apart; the same bytes where there is none."""
    fields = fields_of(body)
    changed = False
    for choice in _choices(fields):
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict) and message.get(_OTHER_NAME) and not message.get("reasoning_content"):
            message["reasoning_content"] = message.pop(_OTHER_NAME)
            changed = True
        elif isinstance(message, dict) and isinstance(message.get("content"), str):
            thought, answer = Thought().feed(message["content"], last=True)
            if thought:
                changed = True
                message["content"], message["reasoning_content"] = answer, thought
    return (encode(fields) or body) if changed else body
