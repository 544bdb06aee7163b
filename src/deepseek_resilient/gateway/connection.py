"""One HTTP/1.1 connection to an upstream: llhttp (httptools) reads, the event loop moves the bytes, nothing is between.

A reply is read through `Connection.head` and `Connection.chunk`. What has come and nobody has asked for is bounded: the
socket is not read while more than 256 kB wait. A connection is good for another request once a reply has ended by its
own framing and neither side wants to close.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools

from deepseek_resilient.core.messages import Failure, FailureKind, RawHeaders
from deepseek_resilient.headers import OURS_BEGIN

if TYPE_CHECKING:
    from collections.abc import Callable

_HIGH = 256 << 10
_LONGEST_HEAD = 256 << 10
_NO_BODY = frozenset((204, 304))


class Connection(asyncio.Protocol):
    """Used by one call at a time, on the loop that made it. `idle_since` is for its pool."""

    __slots__ = (
        "_body", "_chunks", "_closing", "_ended", "_failure", "_framed", "_held", "_loop", "_lost", "_parser",
        "_paused", "_surplus", "_unclaimed", "_waiter", "fresh", "headers", "idle_since", "status", "transport",
    )  # fmt: skip

    def __init__(self, lost: Callable[[Connection], None]) -> None:
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.idle_since = 0.0
        self.fresh = True
        """No request has been sent on it yet."""
        self._closing = False
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: RawHeaders = []
        self._body = self._ended = self._framed = self._paused = self._surplus = False
        self._failure: Failure | None = None
        self._held = self._unclaimed = 0  # bytes: not taken yet; since the last that were of a head or a body
        self._chunks.clear()

    def send(self, data: bytes) -> None:
        """A whole request."""
        if not self.fresh:
            self._reset()
        self.fresh = False
        self.transport.write(data)

    async def head(self) -> Failure | None:
        """Wait for the head of the reply: `status` and `headers`. Returns a failure where none came."""
        while not self._body:
            if self._failure is not None:
                return self._failure
            await self._wait()
        return None

    async def chunk(self) -> bytes | Failure:
        """The next bytes of the body; `b""` at its end."""
        while not self._chunks:
            if self._ended:
                return b""
            if self._failure is not None:
                return self._failure
            await self._wait()
        return self.take()

    def take(self) -> bytes:
        """The bytes of the body that have come and were not taken."""
        if len(self._chunks) == 1:
            data = self._chunks.popleft()
        else:
            data = b"".join(self._chunks)
            self._chunks.clear()
        self._held = 0
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        return data

    @property
    def drained(self) -> bool:
        """Whether the whole reply has been read."""
        return self._ended and not self._chunks

    @property
    def complete(self) -> bool:
        """Whether the whole reply has come."""
        return self._ended

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on it."""
        if not self._ended or self._chunks or self._closing or self.transport.is_closing():
            return False
        return not self.transport.get_write_buffer_size()  # else the server answered without the whole request

    def close(self) -> None:
        """Hang up."""
        if self.transport is not None:
            self.transport.abort()

    def _wait(self) -> asyncio.Future[None]:
        """Done once something has come."""
        waiter = self._waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, message: str, error: BaseException | None = None) -> None:
        if self._failure is None and not self._ended:
            self._failure = Failure(FailureKind.BROKEN, message, error)
        self._wake()

    # of asyncio

    def connection_made(self, transport: Any) -> None:
        """It is there."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes of a reply."""
        if self._ended or self.fresh:  # nobody has asked for them
            self._closing = True
            self.transport.abort()
            return
        self._unclaimed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._spoil("the server wants to speak another protocol")
        except httptools.HttpParserError as error:
            self._spoil(f"the server speaks no HTTP: {type(error).__name__}: {error}")
        else:
            if self._unclaimed > _LONGEST_HEAD:
                self._spoil(f"the server's head, or what follows its body, has more than {_LONGEST_HEAD} bytes")
            elif self._body:
                self._wake()

    def eof_received(self) -> bool:
        """The server hung up; without a length that is the end of the body."""
        self._hung_up()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone."""
        self._closing = True
        self._parser = None  # it holds this
        if error is None:
            self._hung_up()
        else:
            self._fail(f"{type(error).__name__}: {error}", error)
        self._lost(self)

    def _hung_up(self) -> None:
        self._closing = True
        if self._body and not self._framed:
            self._ended = True
            self._wake()
        else:
            self._fail("the server closed the connection")

    def _spoil(self, message: str) -> None:
        self._closing = True
        self._fail(message)
        self.transport.abort()

    # of httptools

    def on_message_begin(self) -> None:
        """A reply; one that nobody asked for, where one has ended: its bytes are nobody's."""
        if self._ended:
            self._closing = self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, its name in small letters. A server that speaks with our tongue is not believed; what comes
        behind the body is none."""
        if self._surplus or self._body:
            return
        name = name.lower()
        if name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower()):
            self._framed = True
        if not name.startswith(OURS_BEGIN):
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head, or that of an interim reply."""
        if self._surplus:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.headers, self._framed = [], False
            return
        self.status, self._unclaimed = status, 0
        self._body = True
        self._framed = self._framed or status in _NO_BODY

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._surplus:
            return
        self._unclaimed = 0
        self._chunks.append(data)
        self._held += len(data)
        if self._held > _HIGH and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        """The end, unless it was an interim reply."""
        if self._body and not self._surplus:
            self._ended = True
            self._closing = self._closing or not self._parser.should_keep_alive()
