"""Serves a `SimulatedDeepSeek` over real HTTP/1.1, on this machine only.

A raw asyncio protocol: connections are kept alive, pipelined requests are answered in order, a body is framed by its
length where the model knows it and chunked where not, and a stream pauses while its client reads too slowly.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from .control import PREFIX, control
from .exchange import Exchange
from .http1 import BadRequestError, Parsed, RequestParser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .deepseek import SimulatedDeepSeek
    from .exchange import LabRequest

_PIPELINE: Final = 32
_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_LINGER_NOT: Final = struct.pack("ii", 1, 0)


class LoopbackOnlyError(ValueError):
    """The lab was told to listen where others could reach it."""


class LabServer:
    """Listens for one brain. All on the event loop it was started on.

    `handle` begins a request that is no control request; it is the brain's own where none is given.
    """

    def __init__(
        self, brain: SimulatedDeepSeek, handle: Callable[[LabRequest, Exchange], object] | None = None
    ) -> None:
        self.brain = brain
        self.handle = handle or brain.handle
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._scheme = "http"
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(
        self, host: str = "127.0.0.1", port: int = 0, *, certfile: str | None = None, keyfile: str | None = None
    ) -> str:
        """Listen, and return the base URL. Any address but a loopback one is a `LoopbackOnlyError`."""
        check_loopback(host)
        context = None
        if certfile is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certfile, keyfile)
            self._scheme = "https"
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), host, port, ssl=context, backlog=4096, reuse_address=True
        )
        address, port = self._server.sockets[0].getsockname()[:2]
        return f"{self._scheme}://{f'[{address}]' if ':' in address else address}:{port}"

    async def stop(self) -> None:
        """Listen no more and drop every connection; returns when all are closed."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.abort()
            await self._server.wait_closed()
            await self._idle.wait()

    def joined(self, connection: _Connection) -> None:
        """A client has connected."""
        self._connections.add(connection)
        self._idle.clear()

    def left(self, connection: _Connection) -> None:
        """A client's connection is closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._idle.set()


def check_loopback(host: str) -> None:
    """Raise unless only this machine can reach `host`."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise LoopbackOnlyError(f"the lab listens on loopback only (127.0.0.1, ::1 or localhost), not on {host!r}")


class _Connection(asyncio.Protocol):
    """One client's connection: parses its requests and answers them one after the other."""

    def __init__(self, server: LabServer) -> None:
        self._server = server
        self._parser = RequestParser(self._go_on)
        self._exchange: _HttpExchange | None = None
        self._refusal: BadRequestError | None = None
        self._transport: asyncio.Transport
        self._writable = True
        self._reading = True
        self._closing = False
        self._serving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._server.left(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            self._parser.feed(data)
        except BadRequestError as error:
            self._refusal = error
        if self._reading and self._parser.waiting > _PIPELINE:
            self._reading = False
            self._transport.pause_reading()
        self._serve()

    def pause_writing(self) -> None:
        self._writable = False
        if self._exchange is not None:
            self._exchange.ready = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._exchange is not None:
            self._exchange.resume()

    def abort(self) -> None:
        """Drop the connection now."""
        self._closing = True
        self._transport.abort()

    def write(self, data: bytes) -> None:
        """Send bytes to the client."""
        self._transport.write(data)

    def finished(self, keep_alive: bool) -> None:
        """The reply to the current request has been written whole."""
        self._exchange = None
        if keep_alive:
            self._serve()
        else:
            self.close()

    def close(self, reset: bool = False) -> None:
        """Close once what was written has been sent; with `reset`, at once, so that the client sees a reset."""
        self._closing = True
        if reset:
            raw = self._transport.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self._transport.abort()
        else:
            self._transport.close()

    def _go_on(self) -> None:
        # while an earlier request is being answered the line would land in the middle of its reply
        if self._exchange is None and not self._parser.waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _serve(self) -> None:
        # answered requests come back here through finished(): a loop, so that a long pipeline is no deep recursion
        if self._serving:
            return
        self._serving = True
        try:
            while self._exchange is None and not self._closing and (parsed := self._parser.take()) is not None:
                if not self._reading:
                    self._reading = True
                    self._transport.resume_reading()
                self._begin(parsed)
            if self._exchange is None and not self._closing and self._refusal is not None:
                self._refuse(self._refusal)
        finally:
            self._serving = False

    def _begin(self, parsed: Parsed) -> None:
        exchange = self._exchange = _HttpExchange(self, parsed.request.method == "HEAD", parsed.keep_alive)
        exchange.ready = self._writable
        brain = self._server.brain
        if parsed.request.path.startswith(PREFIX):
            control(brain, parsed.request, exchange)
        else:
            self._server.handle(parsed.request, exchange)

    def _refuse(self, error: BadRequestError) -> None:
        body = str(error).encode()
        head = (
            f"{_line(error.status)}content-type: text/plain\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._transport.write(head.encode("latin-1") + body)
        self.close()


class _HttpExchange(Exchange):
    """Frames one reply. HEAD gets the headers of the body alone."""

    __slots__ = ("_bodiless", "_chunked", "_connection", "_keep_alive", "_pending")

    def __init__(self, connection: _Connection, bodiless: bool, keep_alive: bool) -> None:
        super().__init__()
        self._connection: _Connection | None = connection
        self._bodiless = bodiless
        self._keep_alive = keep_alive
        self._chunked = False

    def head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        if self._connection is None or self.gone:
            return
        self._chunked = all(name != "content-length" for name, _ in headers) and not self._bodiless
        framing = "transfer-encoding: chunked\r\n" if self._chunked else ""
        self._connection.write(self._head_bytes(status, headers, framing))

    def data(self, data: bytes) -> None:
        if self._connection is None or self.gone or self._bodiless:
            return
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data)

    def end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None or self.gone:
            return
        if self._chunked:
            connection.write(b"0\r\n\r\n")
        connection.finished(self._keep_alive)

    def cut(self, reset: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not self.gone:
            connection.close(reset)

    def reply(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        connection, self._connection = self._connection, None
        if connection is None or self.gone:
            return
        empty = status in (204, 304)
        head = self._head_bytes(status, headers, "" if empty else f"content-length: {len(body)}\r\n")
        connection.write(head if self._bodiless or empty else head + body)
        connection.finished(self._keep_alive)

    def _head_bytes(self, status: int, headers: Sequence[tuple[str, str]], framing: str) -> bytes:
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers])
        close = "" if self._keep_alive else "connection: close\r\n"
        return f"{_line(status)}{fields}{framing}{close}\r\n".encode("latin-1", "replace")


def _line(status: int) -> str:
    return _LINES.get(status) or f"HTTP/1.1 {status} Simulated\r\n"
