"""The way out: through the proxy that the environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).

    CONNECT api.deepseek.com:443     then TLS, or HTTP, with the server itself

Also for `http://`: a proxy that allows no tunnel to that port says so. The proxy itself is spoken to in plain HTTP/1.1.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from deepseek_resilient.gateway.connection import Connection
    from deepseek_resilient.gateway.outgoing import Place

_LONGEST = 65_536


class ProxyError(OSError):
    """There is no way through a proxy."""


class Proxy(NamedTuple):
    """Where it is, and the line that it asks for."""

    host: str
    port: int
    credentials: bytes


def proxy_for(place: Place, proxies: Mapping[str, str | None]) -> Proxy | None:
    """The one that leads to `place` by `proxies_from_environment`; None where nothing stands between. Raises
    ProxyError where it is of a kind that is not spoken here."""
    scheme = "https" if place.secure else "http"
    for pattern, address in proxies.items():
        kind, _, host = pattern.partition("://")
        if address is None and kind in ("all", scheme) and _covers(host, place):
            return None
    chosen = proxies.get(f"{scheme}://") or proxies.get("all://")
    if chosen is None:
        return None
    parts = urlsplit(chosen)
    if parts.scheme != "http" or not parts.hostname:
        raise ProxyError(f"the environment's proxy is {parts.scheme}://…, and only http:// is spoken to one here")
    credentials = b""
    if parts.username is not None:
        said = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        credentials = b"proxy-authorization: Basic %b\r\n" % b64encode(said)
    return Proxy(parts.hostname, parts.port or 80, credentials)


def _covers(pattern: str, place: Place) -> bool:
    """Whether an entry of NO_PROXY, as `proxies_from_environment` has it, is for that place."""
    host, _, port = pattern.rpartition(":")
    if not host or not port.isdigit():
        host, port = pattern, ""
    if port and int(port) != place.port:
        return False
    known, asked = host.strip("[]").lower(), place.host.lower()
    if known.startswith("*"):
        end = known[1:].removeprefix(".")
        return asked.endswith(f".{end}") or (asked == end and not known.startswith("*."))
    return asked == known


async def tunnel(
    proxy: Proxy, place: Place, make: Callable[[], Connection], context: ssl.SSLContext | None
) -> Connection:
    """A connection to `place` through `proxy`; with `context` over TLS. Raises OSError."""
    loop = asyncio.get_running_loop()
    transport, asking = await loop.create_connection(_Asking, proxy.host, proxy.port)
    try:
        host = f"[{place.host}]" if ":" in place.host else place.host
        where = f"{host}:{place.port}".encode()
        transport.write(b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (where, where, proxy.credentials))
        await asking.answered
        connection = make()
        connection.connection_made(transport)
        transport.set_protocol(connection)
        if context is not None:
            secured = await loop.start_tls(transport, connection, context, server_hostname=place.host)
            connection.connection_made(secured)
    except BaseException:
        transport.abort()
        raise
    return connection


class _Asking(asyncio.Protocol):
    """Until the proxy has answered."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answered.add_done_callback(_seen)
        self._came = b""

    def data_received(self, data: bytes) -> None:
        """A piece of its answer."""
        self._came += data
        head, ended, more = self._came.partition(b"\r\n\r\n")
        if not ended:
            if len(self._came) > _LONGEST:
                self._refuse("the proxy's answer does not end")
            return
        status = head.split(b"\r\n")[0].split(b" ")[1:2]
        if not head.startswith(b"HTTP/1.") or not status or not status[0].isdigit():
            self._refuse("the proxy speaks no HTTP")
        elif not status[0].startswith(b"2"):
            self._refuse(f"the proxy refuses the tunnel with {status[0].decode()[:3]}")
        elif more:  # the server speaks second
            self._refuse("somebody spoke before it was asked")
        elif not self.answered.done():
            self.answered.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """It hung up."""
        self._refuse("the proxy closed the connection")

    def _refuse(self, why: str) -> None:
        if not self.answered.done():
            self.answered.set_exception(ProxyError(why))


def _seen(answered: asyncio.Future[None]) -> None:
    """Its error is fetched: where the limit passes on the way to the proxy nobody else does, and the loop logs it."""
    if not answered.cancelled():
        answered.exception()
