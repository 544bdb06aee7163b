"""The pages for those who run a gateway: health, readiness, status, metrics and the dashboard. On loopback by default.

GET /           the dashboard       GET /status    how it stands, JSON     GET /events    the same, live, by SSE
GET /healthz    the process lives   GET /readyz    it takes calls: 200, or 503 while it starts or drains
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from hmac import compare_digest
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from deepseek_resilient import wire
from deepseek_resilient.gateway.loopback import is_from_here
from deepseek_resilient.gateway.protocol import CALLER
from deepseek_resilient.gateway.relay import EVENT_STREAM, JSON, answer
from deepseek_resilient.gateway.tenants import digest_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from deepseek_resilient.gateway.protocol import Caller

_EVERY = 1.0
_HTML = (b"content-type", b"text/html; charset=utf-8")
_EXPOSITION = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_SAFE = [
    (b"content-security-policy", b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
     b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]  # fmt: skip


class Pages:
    """The pages as an ASGI application.

    Args:
        status: how the gateway stands now. metrics: the same for Prometheus. ready: whether it takes calls.
        key: the digest of the key that all pages but health and readiness ask for, as bearer token or as the password
            of HTTP's basic authentication; None for none.
    """

    def __init__(
        self,
        status: Callable[[], Awaitable[dict[str, Any]]],
        metrics: Callable[[], Awaitable[bytes]],
        ready: Callable[[], bool],
        key: str | None,
    ) -> None:
        self.key = key
        self._status = status
        self._metrics = metrics
        self._ready = ready
        self._watched: set[asyncio.Event] = set()

    def end(self) -> None:
        """End what is live, as whole answers."""
        for over in self._watched:
            over.set()

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            await answer(
                send, 405, wire.error_body("Only GET", "invalid_request_error"), [JSON, (b"allow", b"GET, HEAD")]
            )
        elif path == "/healthz":
            await answer(send, 200, b"ok\n", [_TEXT])
        elif path == "/readyz":
            ready = self._ready()
            await answer(send, 200 if ready else 503, b"ready\n" if ready else b"not ready\n", [_TEXT])
        elif self.key is None and not is_from_here(_host(scope["headers"])):
            await answer(send, 403, b"Without an admin_key these pages are for this machine.\n", [_TEXT])
        elif not self._may(scope["headers"]):
            asks = (b"www-authenticate", b'Basic realm="deepseek-resilient gateway", charset="UTF-8"')
            await answer(send, 401, b"The key of the admin, as bearer token or password.\n", [_TEXT, asks])
        elif path == "/":
            page = files("deepseek_resilient.gateway").joinpath("dashboard.html").read_bytes()
            await answer(send, 200, page, [_HTML, *_SAFE])
        elif path == "/status":
            await answer(send, 200, json.dumps(await self._status()).encode(), [JSON, *_SAFE])
        elif path == "/metrics":
            await answer(send, 200, await self._metrics(), [_EXPOSITION])
        elif path == "/events":
            await send({"type": "http.response.start", "status": 200, "headers": [EVENT_STREAM, *_SAFE]})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body"})
            else:
                await self._live(scope["extensions"][CALLER], send)
        else:
            await answer(send, 404, b"Here are /, /status, /events, /metrics, /healthz and /readyz.\n", [_TEXT])

    def _may(self, headers: list[tuple[bytes, bytes]]) -> bool:
        if self.key is None:
            return True
        said = next((value for name, value in headers if name == b"authorization"), b"")
        return compare_digest(self.key, digest_of(_password(said)))

    async def _live(self, caller: Caller, send: Callable[..., Any]) -> None:
        over = asyncio.Event()
        self._watched.add(over)
        caller.watch(over.set)
        try:
            while not over.is_set():
                data = json.dumps(await self._status()).encode()
                await send({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": True})
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), _EVERY)
            await send({"type": "http.response.body"})
        finally:
            self._watched.discard(over)


def _host(headers: list[tuple[bytes, bytes]]) -> bytes:
    return next((value for name, value in headers if name == b"host"), b"")


def _password(said: bytes) -> bytes:
    scheme, _, rest = said.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""
