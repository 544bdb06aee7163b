"""Server-sent events, parsed to the WHATWG specification ("9.2.6 Interpreting an event stream") from bytes.

Lines end in CR, LF or CRLF; a comment starts with a colon; several `data` lines join with LF; a byte order mark at the
start is dropped; an unfinished event at the end of the stream is no event. Chunks may be split at any byte: nothing is
decoded before a line is complete, so a split inside a UTF-8 character does no harm. One thing is stricter than the
specification: a line that is no UTF-8 is an error, because it is one to the SDKs.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""A longer line is no event stream of a language model; it would only fill memory."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
"""The end of a line and a blank line: the end of an event."""
_LONGEST_END = 4


class ServerSentEvent(NamedTuple):
    """One dispatched event. `name` is empty when the stream named none."""

    name: bytes
    data: bytes


class EventStreamError(ValueError):
    """What comes is no event stream of a language model."""


class NotTextError(EventStreamError):
    """A line is no UTF-8."""


class EventTooLongError(EventStreamError):
    """A line or an event exceeded `MAX_EVENT_BYTES`."""


class EventStreamParser:
    """Feed it chunks, take events. Holds at most one unfinished event. Not thread-safe: one per stream."""

    __slots__ = ("_at_start", "_data", "_name", "_size", "_skip_lf", "_unfinished")

    def __init__(self) -> None:
        self._unfinished: list[bytes] = []
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0
        self._skip_lf = False
        self._at_start = True

    def single(self, chunk: bytes) -> bytes | None:
        """The data of `chunk` if it is exactly one unnamed event of one line, as most are; None: `feed` it."""
        if (
            chunk.endswith(b"\n\n")
            and chunk.startswith(b"data: ")
            and chunk.find(b"\n") == len(chunk) - 2
            and b"\r" not in chunk
            and not (self._unfinished or self._data or self._name or self._skip_lf)
        ):
            if not (chunk.isascii() or _is_text(chunk)):
                return None
            self._at_start = False
            self._size = 0
            return chunk[6:-2]
        return None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that `chunk` completes, in order.

        Raises:
            EventTooLongError: an unfinished event outgrew `MAX_EVENT_BYTES`.
            NotTextError: a whole line is no UTF-8; nothing of `chunk` was taken for an event.
        """
        if self._skip_lf and chunk:
            self._skip_lf = False
            chunk = chunk.removeprefix(b"\n")
        if b"\n" not in chunk and b"\r" not in chunk:
            if chunk:
                self._unfinished.append(chunk)
                self._grow(len(chunk))
            return []
        self._unfinished.append(chunk)
        text = b"".join(self._unfinished)
        if b"\r" in text:
            self._skip_lf = text.endswith(b"\r")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        if not (text.isascii() or _is_text(text[: len(text) - len(rest)])):
            raise NotTextError("the stream has a line that is no text (not UTF-8)")
        self._unfinished = [rest] if rest else []
        self._size = sum(map(len, self._data))
        events: list[ServerSentEvent] = []
        for line in lines:
            if self._at_start:
                self._at_start = False
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line:
                self._field(line)
            else:
                if self._data:
                    events.append(ServerSentEvent(self._name, b"\n".join(self._data)))
                    self._data = []
                self._name = b""
                self._size = 0
        self._grow(len(rest))
        return events

    def _grow(self, more: int) -> None:
        self._size += more
        if self._size > MAX_EVENT_BYTES:
            raise EventTooLongError(f"an event of the stream is longer than {MAX_EVENT_BYTES} bytes")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._grow(len(value))
        elif name == b"event":
            self._name = value


def _is_text(whole: bytes) -> bool:
    """Whether whole lines are UTF-8."""
    try:
        whole.decode()
    except UnicodeDecodeError:
        return False
    return True


class EventSplitter:
    """Cuts a stream where events end, and leaves its bytes as they are. Not thread-safe: one per stream.

    Looks at each byte once; holds at most one unfinished event.
    """

    __slots__ = ("_held", "_tail")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._tail = b""

    def take(self, chunk: bytes) -> bytes:
        """The whole events up to the last end in `chunk`; what follows it is held back."""
        if not self._held and chunk.endswith(b"\n\n"):
            return chunk
        seen = len(self._tail)
        window = self._tail + chunk
        end = 0
        for found in _END.finditer(window):
            end = found.end()
        if not end:
            self._held.append(chunk)
            self._tail = window[1 - _LONGEST_END :]
            return b""
        self._held.append(chunk[: end - seen])
        whole, rest = b"".join(self._held), chunk[end - seen :]
        self._held = [rest] if rest else []
        self._tail = rest[1 - _LONGEST_END :]
        return whole

    def rest(self) -> bytes:
        """What is held back; it is given up by this."""
        held, self._held, self._tail = self._held, [], b""
        return b"".join(held)


def split(block: bytes) -> list[bytes]:
    """The events of a block of whole ones, each with the blank line that ends it."""
    ends = [0, *(found.end() for found in _END.finditer(block))]
    return [block[start:end] for start, end in itertools.pairwise(ends)]
