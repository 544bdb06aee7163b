"""Sends for the gateway: aiohttp's client without an HTTP library's requests and responses around it.

`benchmarks/gateway.py` has what that saves against the transport of the SDK's clients.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from deepseek_resilient.core.messages import Failure, FailureKind, Reply
from deepseek_resilient.headers import foreign, of_attempt

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from deepseek_resilient.core.effects import Read, Send
    from deepseek_resilient.gateway.outgoing import Outgoing

_LARGE: Final = 1 << 20
_HEAD_LIMIT: Final = 100 << 10
_NEVER_SENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class Sender:
    """Sends through connections of the running event loop; one for all calls of a worker.

    Args:
        clock: the engine's.
        max_connections: at most this many at once; more wait.
        keepalive: seconds that an idle connection is kept.
        context: for https; None for the system's certificates.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        max_connections: int = 1000,
        keepalive: float = 15.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._clock = clock
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=max_connections, keepalive_timeout=keepalive, ssl=True if context is None else context
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),
            auto_decompress=False,
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            max_line_size=_HEAD_LIMIT,
            max_field_size=_HEAD_LIMIT,
            max_headers=1000,
        )
        self._limits: dict[float | None, aiohttp.ClientTimeout] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def send(self, effect: Send) -> Reply | Failure:
        """The head of the reply, or how sending failed."""
        request = effect.request
        native: Outgoing = request.native  # type: ignore[assignment]
        body = request.body
        limit = self._limits.get(effect.connect)
        if limit is None:
            limit = self._limits[effect.connect] = aiohttp.ClientTimeout(sock_connect=effect.connect)
        headers = [*native.headers, *of_attempt(effect, self._clock)]
        if request.plain:
            headers = [pair for pair in headers if pair[0] != "accept-encoding"]
        try:
            response = await self._session.request(
                request.method,
                native.url,
                headers=headers,
                data=(io.BytesIO(body) if len(body) > _LARGE else body) or None,
                allow_redirects=False,
                timeout=limit,
            )
        except Exception as error:
            return _failure(error)
        return Reply(response.status, foreign(response.raw_headers), response)

    async def read(self, effect: Read) -> bytes | Failure:
        """The next bytes of the body."""
        response: aiohttp.ClientResponse = effect.reply.native  # type: ignore[assignment]
        content = response.content
        try:
            chunk = await content.readany()
        except Exception as error:
            # aiohttp tells the error before what came ahead of it: a reader that is busy would lose the end
            left: Any = getattr(content, "_read_nowait", lambda _: b"")(-1)
            return bytes(left) or _failure(error)
        if not chunk:
            response.release()
        return chunk

    async def close(self, reply: Reply) -> None:
        """Give up the rest of a reply."""
        response: aiohttp.ClientResponse = reply.native  # type: ignore[assignment]
        if response.content.at_eof():
            response.release()
        else:
            response.close()

    def abandon(self, reply: Reply) -> None:
        """Close it soon. Called on its loop."""
        task = asyncio.get_running_loop().create_task(self.close(reply))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


def _failure(error: Exception) -> Failure:
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError)):
        return Failure(FailureKind.UNUSABLE, f"{type(error).__name__}: the request cannot be sent")
    if isinstance(error, _NEVER_SENT):
        return Failure(FailureKind.CONNECT, f"{type(error).__name__}: {error}", error)
    if isinstance(error, asyncio.TimeoutError):
        return Failure(FailureKind.TIMEOUT, f"{type(error).__name__}: {error}", error)
    if isinstance(error, (aiohttp.ClientError, OSError)):
        return Failure(FailureKind.BROKEN, f"{type(error).__name__}: {error}", error)
    raise error
