"""One request and its answer: what uvicorn does for an application, in fewer steps.

The head of an answer leaves with the first bytes that follow it, as ASGI asks for: each write is a system call, and a
packet that wakes the caller. It is checked as a whole, so nothing that an upstream says can begin a line of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from uvicorn.protocols.http.flow_control import FlowControl

    from deepseek_resilient.core.messages import RawHeaders

log = logging.getLogger("uvicorn.error")

_LINES = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9a-z-]++: [^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+")
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection"))
_NO_BODY = (204, 304)
_FAILED = (
    {
        "type": "http.response.start",
        "status": 500,
        "headers": [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"21"),
            (b"connection", b"close"),
        ],
    },
    {"type": "http.response.body", "body": b"Internal Server Error"},
)


class Exchange:
    """A request for an application, and its answer. Its connection says what comes of the request.

    Args:
        on_response: called once the answer has ended.
    """

    __slots__ = (
        "_head", "_held", "_news", "_parts", "_waiter", "chunked_encoding", "default_headers", "disconnected",
        "expected_content_length", "flow", "keep_alive", "more_body", "on_response", "response_complete",
        "response_started", "scope", "transport", "waiting_for_100_continue",
    )  # fmt: skip

    def __init__(
        self,
        scope: dict[str, Any],
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: RawHeaders,
        expect_100_continue: bool,
        keep_alive: bool,
        on_response: Callable[[], None],
    ) -> None:
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.default_headers = default_headers
        self.waiting_for_100_continue = expect_100_continue
        self.keep_alive = keep_alive
        self.on_response = on_response
        self._parts: list[bytes] = []
        self._held = 0
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False
        self.chunked_encoding: bool | None = None
        self.expected_content_length = 0
        self._head = b""
        self._news = False
        self._waiter: asyncio.Future[None] | None = None

    async def run(self, app: Callable[..., Awaitable[None]]) -> None:
        """Serve it. An application that owes an answer is a mistake; one that has not ended it, is hung up for."""
        failed = False
        try:
            try:
                await app(self.scope, self.receive, self.send)
            except BaseException as error:
                log.error("Exception in ASGI application\n", exc_info=error)
                failed = True
            if failed or not (self.response_complete or self.disconnected):
                if self.response_started:
                    self.transport.close()
                    return
                if not failed:
                    log.error("ASGI callable returned without starting response.")
                for message in _FAILED:
                    await self.send(message)
        finally:
            self.on_response, self.scope = _nothing, {}  # the connection, which is in both, holds this

    def feed(self, body: bytes) -> int:
        """More of the request has come: how many bytes of it were not received yet."""
        self._parts.append(body)
        self._held += len(body)
        self.wake()
        return self._held

    def wake(self) -> None:
        """There is something for `receive`."""
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hang_up(self) -> None:
        """The caller is gone."""
        self.disconnected = True
        self.wake()

    async def receive(self) -> dict[str, Any]:
        """The next of the request, for one task at a time. Raises RuntimeError for a second one."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not (self.disconnected or self.response_complete):
            self.flow.resume_reading()
            if not self._news:
                if self._waiter is not None and not self._waiter.done():
                    raise RuntimeError("another task waits for this request")
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            self._news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        parts, self._parts, self._held = self._parts, [], 0
        return {"type": "http.request", "body": b"".join(parts), "more_body": self.more_body}

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
            self.wake()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The head of the answer; how its end will be known, and whether another request may follow it."""
        lines: list[bytes] = []
        chunked: bool | None = None
        closes, length = False, 0
        for name, value in headers:
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
        own = b"".join([b"%b: %b\r\n" % pair for pair in self.default_headers])
        return b"%b%b%b\r\n" % (STATUS_LINE[status], own, told)


def _nothing() -> None:
    pass
