"""What the gateway sends to an upstream: a request of its own, with the upstream's key and few of the caller's headers.

An allowlist: what is not needed for an answer (cookies, credentials, addresses of callers) does not leave the company.
Everything but the body is bytes from the beginning: no HTTP library takes it apart and puts it together again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from deepseek_resilient import wire
from deepseek_resilient.core.messages import RawHeaders, Request
from deepseek_resilient.headers import account_of, variant_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from urllib.parse import SplitResult

    from deepseek_resilient.config import Upstream

_ENCODING = b"accept-encoding"
PASSED_ON = frozenset(
    (
        b"accept", b"content-type", b"content-encoding", _ENCODING, b"user-agent", b"anthropic-version",
        b"anthropic-beta", b"openai-beta", b"x-request-id", b"idempotency-key", b"traceparent", b"tracestate",
    )
)  # fmt: skip
NOT_PASSED_BACK = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"trailer", b"upgrade", b"te",
        b"content-length", b"set-cookie", b"date", b"server", b"alt-svc", b"strict-transport-security",
    )
)  # fmt: skip
_READABLE = b"gzip, deflate"
_SHORT = 200


class Place(NamedTuple):
    """Where connections go to."""

    host: str
    port: int
    secure: bool


class Outgoing:
    """The native request of `Sender`: request line and host, headers passed on, credentials, each as lines."""

    __slots__ = ("base_url", "credentials", "encoding", "line", "passed", "place", "query")

    def __init__(
        self, base_url: str, place: Place, line: bytes, passed: bytes, encoding: bytes, credentials: bytes, query: bytes
    ) -> None:
        self.base_url = base_url
        self.place = place
        self.line = line
        self.passed = passed
        self.encoding = encoding
        self.credentials = credentials
        self.query = query

    def bytes_of(self, request: Request, said: Iterable[tuple[str, str]]) -> bytes:
        """The request as it goes out, with what this attempt says to the layer below."""
        told = "".join([f"{name}: {value}\r\n" for name, value in said]).encode("ascii")
        encoding = b"" if request.plain or not self.encoding else b"%b: %b\r\n" % (_ENCODING, self.encoding)
        body = request.body
        length = b"content-length: %d\r\n" % len(body) if body or request.method == "POST" else b""
        return b"%b%b%b%b%b%b\r\n%b" % (self.line, self.passed, encoding, self.credentials, told, length, body)


def request_to(
    base_url: str, key: str | None, method: str, path: str, query: bytes, headers: RawHeaders, body: bytes
) -> Request:
    """The core's request for a call that came at `path`, to go to the server at `base_url` with `key`."""
    found = {name: value for name, value in headers if name in PASSED_ON}
    encoding = found.pop(_ENCODING, b"")
    if b"br" in encoding or b"zstd" in encoding:
        encoding = _READABLE
    place, origin, way, line = _address(base_url, method, path, query)
    passed = b"".join([b"%b: %b\r\n" % pair for pair in found.items()])
    credentials = _credentials(key, path)
    return Request(
        method=method,
        origin=origin,
        path=way,
        body=body,
        account=_account(key),
        native=Outgoing(base_url, place, line, passed, encoding, credentials, query),
        adapt=_adapt,
        encoded=found.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"),
        variant=variant_of(query, found, encoding),
        own=True,
    )


def _account(key: str | None) -> int:
    """The same in each dialect, whatever header has the key."""
    return account_of((key or "").encode())


def _credentials(key: str | None, path: str) -> bytes:
    name = "x-api-key: " if path.rstrip("/").endswith("/messages") else "authorization: Bearer "
    return f"{name}{key or 'none'}\r\n".encode("ascii")


def _address(base_url: str, method: str, path: str, query: bytes) -> tuple[Place, str, str, bytes]:
    """Remembered where it is short: what callers make up does not fill the memory."""
    make = _address_of if len(path) + len(query) <= _SHORT else _address_of.__wrapped__
    return make(base_url, method, path, query)


@lru_cache(maxsize=1024)
def _address_of(base_url: str, method: str, path: str, query: bytes) -> tuple[Place, str, str, bytes]:
    if wire.dialect_of(method, path).is_inference:
        parts = urlsplit(wire.address_of(base_url, path))
    else:
        parts = urlsplit(base_url.rstrip("/") + "/models" + quote(path.rpartition("/models")[2]))
    place = _place(parts)
    asked = "?" + quote(query.decode("latin-1"), safe="/?:@!$&'()*+,;=-._~%") if query else ""
    line = f"{method} {parts.path}{asked} HTTP/1.1\r\nhost: {parts.netloc}\r\n".encode("ascii")
    return place, f"{parts.scheme}://{parts.netloc}", parts.path, line


def place_of(base_url: str) -> Place:
    """Where connections to that server go."""
    return _place(urlsplit(base_url))


def _place(parts: SplitResult) -> Place:
    secure = parts.scheme == "https"
    return Place(parts.hostname or "", parts.port or (443 if secure else 80), secure)


def _adapt(request: Request, body: bytes, upstream: Upstream | None, path: str) -> Request:
    """The same call with another body, at another path, or at the address of `upstream` and with its key."""
    native: Outgoing = request.native  # type: ignore[assignment]
    base_url, credentials, account = native.base_url, native.credentials, request.account
    if upstream is not None:
        base_url = upstream.base_url
        if upstream.api_key is not None:
            credentials = _credentials(upstream.api_key, path)
            account = _account(upstream.api_key)
    place, origin, way, line = _address(base_url, request.method, path, native.query)
    return Request(
        method=request.method, origin=origin, path=way, body=body, account=account,
        native=Outgoing(base_url, place, line, native.passed, native.encoding, credentials, native.query),
        adapt=_adapt, encoded=request.encoded, variant=request.variant,
    )  # fmt: skip
