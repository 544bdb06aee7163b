"""Other inner transports that could be the asynchronous default: `E2E_INNER=httpx2 pytest tests/e2e` runs all with one.

The suite is what a default has to pass. Each candidate is configured as well as it can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from collections.abc import Callable


def _httpx2(proxy: str | None) -> Any:
    return httpx2.AsyncHTTPTransport(proxy=proxy, limits=httpx2.Limits(max_connections=1000))


def _httpx_aiohttp(proxy: str | None) -> Any:
    import aiohttp
    from httpx_aiohttp.httpx2 import AiohttpTransport

    context = httpx2.create_ssl_context()

    def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1000, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            max_line_size=100_000,
            max_field_size=100_000,
        )

    return AiohttpTransport(client=session, proxy=None if proxy is None else httpx2.Proxy(proxy))


def _pyreqwest(_: str | None) -> Any:
    from pyreqwest.compatibility.httpx import HttpxTransport

    return HttpxTransport()


CANDIDATES: dict[str, Callable[[str | None], Any]] = {
    "httpx2": _httpx2,
    "httpx-aiohttp": _httpx_aiohttp,
    "pyreqwest": _pyreqwest,
}
