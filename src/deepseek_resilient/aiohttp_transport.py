"""The default inner transport of our asynchronous side: `httpx2` in front, `aiohttp` behind.

httpx2's own asynchronous transport costs about half as much again per call, twice as much per streamed chunk and three
times as much with 64 calls at once (`benchmarks/http_clients.py`). The package httpx-aiohttp costs as much as this
module and was turned down by `tests/e2e`: it tells a refused, broken or untrusted connection as a connect timeout,
loses a body that was read from a stream, rewrites URLs, and warns about large bodies, proxies with a password and
unclosed sessions.

What is different from httpx2's own: HTTP/1.1 only, no SOCKS; a GET on a connection that the server has just closed is
repeated once by aiohttp itself.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import io
import os
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import httpx2
from yarl import URL

if TYPE_CHECKING:
    import ssl

_LARGE: Final = 1 << 20
_HEAD_LIMIT: Final = 100 << 10
_ADDED_BY_AIOHTTP: Final = ("accept", "accept-encoding", "content-type", "user-agent")

# the first that fits
_TRANSLATIONS: Final[tuple[tuple[type[BaseException], type[httpx2.TransportError]], ...]] = (
    (aiohttp.ClientProxyConnectionError, httpx2.ProxyError),
    (aiohttp.ClientHttpProxyError, httpx2.ProxyError),
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.SocketTimeoutError, httpx2.ReadTimeout),
    (asyncio.TimeoutError, httpx2.ReadTimeout),
    (aiohttp.ServerDisconnectedError, httpx2.RemoteProtocolError),
    (aiohttp.ClientPayloadError, httpx2.RemoteProtocolError),
    (aiohttp.ClientResponseError, httpx2.RemoteProtocolError),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (aiohttp.NonHttpUrlClientError, httpx2.UnsupportedProtocol),
    (aiohttp.ClientError, httpx2.ReadError),
    (OSError, httpx2.ReadError),
)


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """A transport for `httpx2.AsyncClient` and for `AsyncResilientTransport`.

    Args:
        verify: True for the certificates `httpx2` trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` count), or a context.
        proxy: an `http://` or `https://` address, credentials within.
        max_connections: at most this many at once; more wait.
        keepalive: seconds that an idle connection is kept.

    Each event loop gets connections of its own, so it may be used from several, one after the other or at once.
    `aclose` closes those of the running loop; those of a transport that is merely dropped are closed quietly.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | bool = True,
        proxy: str | None = None,
        max_connections: int = 1000,
        keepalive: float = 5.0,
    ) -> None:
        self._verify = verify
        self._proxy = proxy
        self._max_connections = max_connections
        self._keepalive = keepalive
        self._context: ssl.SSLContext | None = None
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        self._bodies: set[_Body] = set()
        self._pid = os.getpid()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send, and return the head with the body to be read."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop) or self._open(loop)
        # aiohttp reuses a connection unless the loop has seen it close, which one that was busy has not: two turns of
        # the loop show it. Without them a server that hangs up between requests costs a repeat each time
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        limits = request.extensions.get("timeout") or {}
        timeout = aiohttp.ClientTimeout(
            connect=limits.get("pool"), sock_connect=limits.get("connect"), sock_read=limits.get("read")
        )
        try:
            response = await session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=[
                    (_text(name), _text(value)) for name, value in request.headers.raw if name.lower() not in _OWN
                ],
                data=_body_of(request),
                allow_redirects=False,
                timeout=timeout,
                server_hostname=request.extensions.get("sni_hostname"),
            )
        except Exception as error:
            raise _translated(error, request) from error
        extensions = {"http_version": b"HTTP/1.0" if response.version == (1, 0) else b"HTTP/1.1"}
        if response.reason:
            extensions["reason_phrase"] = response.reason.encode("latin-1", "replace")
        body = _Body(response, request, self._bodies)
        return httpx2.Response(response.status, headers=list(response.raw_headers), stream=body, extensions=extensions)

    async def aclose(self) -> None:
        """Close the connections of the running loop, and forget those of loops that are gone."""
        loop = asyncio.get_running_loop()
        session = self._sessions.pop(loop, None)
        self._forget_dead()
        for body in [body for body in self._bodies if body.loop is loop]:
            await body.aclose()
        if session is not None:
            _connectors.discard(session.connector)
            await session.close()

    def __del__(self) -> None:
        for loop, session in getattr(self, "_sessions", {}).items():
            _retire(loop, session, self._pid)

    def _open(self, loop: asyncio.AbstractEventLoop) -> aiohttp.ClientSession:
        self._forget_dead()
        if self._context is None:
            given = self._verify
            self._context = httpx2.create_ssl_context(verify=given) if isinstance(given, bool) else given
        connector = aiohttp.TCPConnector(
            limit=self._max_connections, keepalive_timeout=self._keepalive, ssl=self._context
        )
        _connectors.add(connector)
        session = self._sessions[loop] = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),
            auto_decompress=False,
            skip_auto_headers=_ADDED_BY_AIOHTTP,
            proxy=self._proxy,
            max_line_size=_HEAD_LIMIT,
            max_field_size=_HEAD_LIMIT,
            max_headers=1000,
        )
        return session

    def _forget_dead(self) -> None:
        for loop in [loop for loop in self._sessions if loop.is_closed()]:
            _retire(loop, self._sessions.pop(loop), self._pid)


class _Body(httpx2.AsyncByteStream):
    """The body as it comes: an iterator, because a generator costs more per chunk."""

    def __init__(self, response: aiohttp.ClientResponse, request: httpx2.Request, unclosed: set[_Body]) -> None:
        self.loop = asyncio.get_running_loop()
        self._response = response
        self._request = request
        self._unclosed = unclosed
        unclosed.add(self)

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        content = self._response.content
        try:
            chunk = await content.readany()
        except Exception as error:
            # aiohttp tells the error before what came ahead of it: a reader that is busy would lose the end
            left = getattr(content, "_read_nowait", _nothing)(-1)
            if left:
                return bytes(left)
            raise _translated(error, self._request) from error
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        self._unclosed.discard(self)
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


_OWN: Final = frozenset((b"transfer-encoding",))
"""Headers that aiohttp writes itself where they are needed."""


def _nothing(_: int) -> bytes:
    return b""


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _body_of(request: httpx2.Request) -> Any:
    try:
        content = request.content
    except httpx2.RequestNotRead:
        return request.stream
    return (io.BytesIO(content) if len(content) > _LARGE else content) or None


def _translated(error: Exception, request: httpx2.Request) -> Exception:
    cause = error.__cause__
    if type(error) is aiohttp.ClientConnectionError and isinstance(cause, Exception) and not isinstance(cause, OSError):
        return cause  # the caller's own, from the generator of the request's body
    for kind, translation in _TRANSLATIONS:
        if isinstance(error, kind):
            return translation(str(error) or type(error).__name__, request=request)
    if isinstance(error, ValueError):
        return httpx2.LocalProtocolError(str(error), request=request)
    return error


_connectors: set[aiohttp.BaseConnector | None] = set()
"""Those not closed yet: held here, so that none is collected, and complains, before its transport."""
_closing: set[asyncio.Task[None]] = set()


def _retire(loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession, pid: int) -> None:
    """Close a session that was dropped: on any thread, whatever became of its loop."""
    connector = session.connector
    session.detach()
    if connector is not None and not loop.is_closed() and os.getpid() == pid:  # after a fork it is the parent's
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_close_soon, connector)
            return
    _silence(connector)


def _close_soon(connector: aiohttp.BaseConnector) -> None:
    async def close() -> None:
        _connectors.discard(connector)
        await connector.close()

    task = asyncio.get_running_loop().create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _silence(connector: aiohttp.BaseConnector | None) -> None:
    """Nothing can be closed any more, and nobody is to be told so."""
    if connector is not None:
        connector._closed = True
    _connectors.discard(connector)


@atexit.register
def _at_exit() -> None:
    for connector in list(_connectors):
        _silence(connector)
