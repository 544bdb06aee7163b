"""One request and its answer: what uvicorn does for an application, in fewer steps.

The head of an answer leaves with the first bytes that follow it, as ASGI asks for: each write is a system call, and a
packet that wakes the caller. It is checked as a whole, so nothing that an upstream says can begin a line of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINES = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9a-z-]+: [^\x00-\x08\x0a-\x1f\x7f]*\r\n)*")
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection"))
_NO_BODY = (204, 304)


class Exchange(RequestResponseCycle):
    """uvicorn's cycle of a request, with an answer of our own."""

    _head = b""

    async def send(self, message: Any) -> None:
        """A message of the application."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        expected = "http.response.body" if self.response_started else "http.response.start"
        if self.response_complete or message["type"] != expected:
            raise RuntimeError(f"{message['type']} was sent where only {expected}, or nothing, may come")
        if not self.response_started:
            self._head = self._begin(message["status"], message.get("headers", ()))
            self.response_started = True
            self.waiting_for_100_continue = False
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.scope["method"] == "HEAD":
            self.expected_content_length, body = 0, b""
        elif self.chunked_encoding is False:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (self.expected_content_length and not more):
                raise RuntimeError("the answer is not as long as its content-length says")
        elif self.chunked_encoding and body:
            body = b"%x\r\n%b\r\n%b" % (len(body), body, b"" if more else b"0\r\n\r\n")
        elif self.chunked_encoding and not more:
            body = b"0\r\n\r\n"
        head, self._head = self._head, b""
        if head or body:
            self.transport.write(head + body)  # not writelines: asyncio's keeps an empty item for ever and never pauses
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The head of the answer; how its end will be known, and whether another request may follow it."""
        lines: list[bytes] = []
        chunked: bool | None = None
        closes, length = False, 0
        for name, value in (*self.default_headers, *headers):
            low = name.lower()
            if low in _FRAMING:
                if low == b"connection":
                    closes = closes or b"close" in [token.strip() for token in value.lower().split(b",")]
                elif low == b"transfer-encoding":
                    chunked = value.lower() == b"chunked"
                elif chunked is None:
                    chunked, length = False, int(value)
            lines.append(b"%b: %b\r\n" % (low, value))
        told = b"".join(lines)
        if not _LINES.fullmatch(told) or told.count(b"\n") != len(lines):
            raise RuntimeError("a header of the answer is none that HTTP allows")
        if not (closes or self.keep_alive):
            told += b"connection: close\r\n"
        if chunked is None and (self.scope["method"] == "HEAD" or status in _NO_BODY):
            chunked = False
        elif chunked is None and self.scope["http_version"] != "1.0":  # there the end of the connection is the end
            chunked = True
            told += b"transfer-encoding: chunked\r\n"
        self.keep_alive = self.keep_alive and not closes
        self.chunked_encoding, self.expected_content_length = chunked, length
        return b"%b%b\r\n" % (STATUS_LINE[status], told)
