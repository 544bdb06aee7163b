"""What the gateway sends to an upstream: a request of its own, with the upstream's key and few of the caller's headers.

An allowlist: what is not needed for an answer (cookies, credentials, addresses of callers) does not leave the company.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from yarl import URL

from deepseek_resilient import wire
from deepseek_resilient.core.messages import RawHeaders, Request
from deepseek_resilient.headers import VARY, account_of, variant_of

if TYPE_CHECKING:
    from deepseek_resilient.config import Upstream

PASSED_ON = frozenset(
    (
        b"accept", b"content-type", b"content-encoding", b"accept-encoding", b"user-agent", b"anthropic-version",
        b"anthropic-beta", b"openai-beta", b"x-request-id", b"idempotency-key", b"traceparent", b"tracestate",
    )
)  # fmt: skip
NOT_PASSED_BACK = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"trailer", b"upgrade", b"te",
        b"content-length", b"set-cookie", b"date", b"server", b"alt-svc", b"strict-transport-security",
    )
)  # fmt: skip
_ENCODINGS = (b"accept-encoding", b"gzip, deflate")


class Outgoing:
    """The native request of `Sender`."""

    __slots__ = ("headers", "url")

    def __init__(self, url: URL, headers: list[tuple[str, str]]) -> None:
        self.url = url
        self.headers = headers


def request_to(
    base_url: str, key: str | None, method: str, path: str, query: bytes, headers: RawHeaders, body: bytes
) -> Request:
    """The core's request for a call that came at `path`, to go to the server at `base_url` with `key`."""
    found = {name: value for name, value in headers if name in PASSED_ON}
    encodings = found.get(b"accept-encoding", b"")
    if b"br" in encodings or b"zstd" in encodings:
        found[b"accept-encoding"] = encodings = _ENCODINGS[1]
    url, origin, way = _address(base_url, path, query)
    said = [(name.decode("ascii"), value.decode("latin-1")) for name, value in found.items()]
    said.append(_credentials(key, path))
    return Request(
        method=method,
        origin=origin,
        path=way,
        body=body,
        account=account_of(said[-1][1].encode("latin-1")),
        native=Outgoing(url, said),
        adapt=_adapt,
        encoded=found.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"),
        variant=variant_of(query, {name: found[name] for name in VARY if name in found}, encodings),
    )


def _credentials(key: str | None, path: str) -> tuple[str, str]:
    if path.endswith("/messages"):
        return "x-api-key", key or ""
    return "authorization", f"Bearer {key or ''}"


@lru_cache(maxsize=1024)
def _address(base_url: str, path: str, query: bytes) -> tuple[URL, str, str]:
    text = wire.address_of(base_url, path)
    parts = urlsplit(text)
    url = URL(text + (f"?{query.decode('latin-1')}" if query else ""), encoded=True)
    return url, f"{parts.scheme}://{parts.netloc}", parts.path


def _adapt(request: Request, body: bytes, upstream: Upstream | None, path: str) -> Request:
    """The same call with another body, at another path, or at the address of `upstream` and with its key."""
    native: Outgoing = request.native  # type: ignore[assignment]
    url, origin, account, headers = native.url, request.origin, request.account, native.headers
    if upstream is not None:
        url, origin, path = _address(upstream.base_url, path, native.url.raw_query_string.encode("latin-1"))
        if upstream.api_key is not None:
            headers = [*headers[:-1], _credentials(upstream.api_key, path)]
            account = account_of(headers[-1][1].encode("latin-1"))
    elif path != request.path:
        url = url.with_path(path, encoded=True, keep_query=True)
    return Request(
        method=request.method, origin=origin, path=path, body=body, account=account, native=Outgoing(url, headers),
        adapt=_adapt, encoded=request.encoded, variant=request.variant,
    )  # fmt: skip
