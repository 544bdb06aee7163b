"""Between the core and the two HTTP libraries, `httpx` and `httpx2`: requests in, responses and exceptions out.

The libraries have the same names for everything used here, so a library is passed around as the module itself.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import httpx
import httpx2

from deepseek_resilient import wire
from deepseek_resilient.ambient import SURROUNDINGS
from deepseek_resilient.core.messages import CALL_ATTRIBUTE, Failure, FailureKind, Request, Response
from deepseek_resilient.errors import DeadlineExceededError, StreamInterruptedError
from deepseek_resilient.headers import (
    CREDENTIALS,
    OF_THE_HOST,
    OURS,
    RETRIES,
    VARY,
    account_of,
    told,
    variant_of,
    with_count,
)
from deepseek_resilient.libraries import Library, library_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from deepseek_resilient.config import Upstream
    from deepseek_resilient.drivers.aio import AioCall
    from deepseek_resilient.drivers.threads import ThreadCall

_LOOKED_AT = frozenset((b"authorization", b"x-api-key", b"accept-encoding", b"content-encoding", RETRIES, *VARY, *OURS))


def must_be_read(library: Library, request: Any) -> bool:
    """Whether the body is a stream that has to be read before the request can be understood and repeated."""
    try:
        _ = request.content
    except library.RequestNotRead:
        return wire.dialect_of(request.method, request.url.path).is_inference
    return False


def prepare(library: Library, request: Any) -> tuple[Request, dict[str, Any]]:
    """The core's view of a native request, and the limits it carries.

    Where our own headers must go, or a content encoding must not be asked for, the request gets headers of its own for
    the time of the call; the transport puts back what the caller gave.
    """
    url, headers = request.url, request.headers
    path = url.path
    replayable = True
    try:
        body = request.content
    except library.RequestNotRead:
        body, replayable = b"", False
    # one pass over the raw pairs: each look-up by name would normalise them all
    found = {name: value for raw, value in headers.raw if (name := raw.lower()) in _LOOKED_AT}
    account = found.get(b"authorization") or found.get(b"x-api-key")
    timeouts: dict[str, Any] = {}
    limits = request.extensions.get("timeout")
    if limits is not None:
        timeouts = {"timeout": limits.get("read"), "connect_timeout": limits.get("connect")}
    if not found.keys().isdisjoint(OURS):
        timeouts |= told(headers.raw)
        request.headers = headers = headers.copy()
        for name in OURS:
            headers.pop(name.decode(), None)
    with_count(timeouts, found.get(RETRIES, b"0"))
    if (surroundings := SURROUNDINGS.get()) is not None:
        surroundings.tell(timeouts)
    encodings = found.get(b"accept-encoding", b"")
    if (b"br" in encodings or b"zstd" in encodings) and wire.dialect_of(request.method, path).is_inference:
        request.headers = headers = headers.copy()
        headers["accept-encoding"] = "gzip, deflate"
    core_request = Request(
        method=request.method,
        origin=f"{url.scheme}://{url.netloc.decode('ascii')}",
        path=path,
        body=body,
        account=account_of(account) if account else 0,
        replayable=replayable,
        native=request,
        adapt=_adapt,
        encoded=found.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"),
        variant=variant_of(url.query, found, encodings),
    )
    return core_request, timeouts


def _adapt(request: Request, body: bytes, upstream: Upstream | None, path: str) -> Request:
    """The same call with another body, at another path or at the address of `upstream` and with its key.

    What belongs to the caller's own host (cookies, the query, other credentials) goes to no other.
    """
    native: Any = request.native
    library = library_of(native)
    url, origin, account = native.url, request.origin, request.account
    dropped = {b"content-length"} if body is not request.body else set()
    added: list[tuple[bytes, bytes]] = []
    if path != request.path:
        url = url.copy_with(path=path)
    if upstream is not None:
        query = url.query
        url, origin, path = _address(library, upstream.base_url, path)
        if origin != request.origin:
            dropped |= OF_THE_HOST
        elif query:
            url = url.copy_with(query=query)
        dropped.add(b"host")
        added.append((b"Host", url.netloc))
        if upstream.api_key is not None:
            key = upstream.api_key.encode("ascii")
            named = any(name.lower() == b"x-api-key" for name, _ in native.headers.raw)
            dropped |= CREDENTIALS
            added.append((b"x-api-key", key) if named else (b"Authorization", b"Bearer " + key))
            account = account_of(added[-1][1])
    headers = library.Headers([*added, *(pair for pair in native.headers.raw if pair[0].lower() not in dropped)])
    if body is request.body:  # making a request anew costs more than all that the engine does with it
        sent = object.__new__(type(native))
        vars(sent).update(vars(native), url=url, headers=headers)
    else:
        sent = library.Request(native.method, url, headers=headers, content=body, extensions=native.extensions)
    return Request(
        method=request.method, origin=origin, path=path, body=body, account=account, replayable=request.replayable,
        native=sent, adapt=_adapt, encoded=request.encoded,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _address(library: Library, base_url: str, path: str) -> tuple[Any, str, str]:
    """Of an upstream: URL, origin and path."""
    url = library.URL(wire.address_of(base_url, path))
    return url, f"{url.scheme}://{url.netloc.decode('ascii')}", url.path


def respond(library: Library, response: Response, stream: Callable[[], Any]) -> Any:
    """The native response; `stream` makes the body's stream when it is not complete yet."""
    return library.Response(
        status_code=response.status,
        headers=response.headers,
        stream=stream() if response.body is None else library.ByteStream(response.body),
        extensions=response.extensions,
    )


def sync_stream(library: Library, call: ThreadCall) -> Any:
    """The rest of `call` as the library's synchronous body."""
    return _sync_stream_class(library)(call)


def async_stream(library: Library, call: AioCall) -> Any:
    """The rest of `call` as the library's asynchronous body."""
    return _async_stream_class(library)(call)


@cache
def _sync_stream_class(library: Library) -> type:
    class ResilientStream(library.SyncByteStream):  # type: ignore[misc]
        def __init__(self, call: ThreadCall) -> None:
            self._call = call

        def __iter__(self) -> Iterator[bytes]:
            return self._call.chunks()

        def close(self) -> None:
            self._call.close()

    return ResilientStream


@cache
def _async_stream_class(library: Library) -> type:
    class AsyncResilientStream(library.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, call: AioCall) -> None:
            self._call = call

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self._call.chunks()

        async def aclose(self) -> None:
            await self._call.aclose()

    return AsyncResilientStream


def exception_of(library: Library, failure: Failure) -> BaseException:
    """What the caller of `library` gets for a failure: the library's own exception, or ours within its tree; it knows
    its call."""
    error = _exception_of(library, failure)
    with suppress(AttributeError):  # somebody else's, with slots
        setattr(error, CALL_ATTRIBUTE, failure.call)
    return error


def _exception_of(library: Library, failure: Failure) -> BaseException:
    late, cut, silent = _exceptions(library)
    if failure.kind is FailureKind.TIMEOUT:
        return late(failure.message)
    if failure.kind is FailureKind.CUT:
        return cut(failure.message, partial=failure.partial, resume=failure.resume)
    if failure.kind is FailureKind.SILENT:
        return silent(failure.message, partial=failure.partial, resume=failure.resume)
    original = failure.exception
    if original is None:
        unusable = failure.kind is FailureKind.UNUSABLE
        plain: BaseException = (library.LocalProtocolError if unusable else library.RemoteProtocolError)(
            failure.message
        )
        return plain
    if library_of(original) is library or not hasattr(library, type(original).__name__):
        return original
    translated: BaseException = getattr(library, type(original).__name__)(str(original))
    return translated


@cache
def _exceptions(library: Library) -> tuple[type[Exception], type[StreamInterruptedError], type[StreamInterruptedError]]:
    class DeadlineExceeded(DeadlineExceededError, library.ReadTimeout):  # type: ignore[misc]
        __doc__ = DeadlineExceededError.__doc__

        def __reduce__(self) -> tuple[object, ...]:
            return _unpickle, (library.__name__, 0, {"message": str(self)})

    class StreamCut(StreamInterruptedError, library.RemoteProtocolError):  # type: ignore[misc]
        __doc__ = StreamInterruptedError.__doc__

        def __reduce__(self) -> tuple[object, ...]:
            return _unpickle, (library.__name__, 1, _values(self))

    class StreamSilent(StreamInterruptedError, library.ReadTimeout):  # type: ignore[misc]
        __doc__ = StreamInterruptedError.__doc__

        def __reduce__(self) -> tuple[object, ...]:
            return _unpickle, (library.__name__, 2, _values(self))

    return DeadlineExceeded, StreamCut, StreamSilent


def _values(error: StreamInterruptedError) -> dict[str, Any]:
    return {"message": str(error), "partial": error.partial, "resume": error.resume}


def _unpickle(library: str, which: int, values: dict[str, Any]) -> Exception:
    return _exceptions(httpx if library == "httpx" else httpx2)[which](**values)


_KINDS = {
    "ConnectError": FailureKind.CONNECT,
    "ConnectTimeout": FailureKind.CONNECT,
    "ProxyError": FailureKind.CONNECT,
    "PoolTimeout": FailureKind.LOCAL,
    "UnsupportedProtocol": FailureKind.UNUSABLE,
    "LocalProtocolError": FailureKind.UNUSABLE,
    "InvalidURL": FailureKind.UNUSABLE,
    "TimeoutException": FailureKind.TIMEOUT,
    "TimeoutError": FailureKind.TIMEOUT,
    "TransportError": FailureKind.BROKEN,
    "OSError": FailureKind.BROKEN,
    "EndOfStream": FailureKind.BROKEN,
}


def failure_of(error: Exception) -> Failure | None:
    """An exception of the inner transport as a failure; None for what is no failure of sending (a bug, say)."""
    for base in type(error).__mro__:
        kind = _KINDS.get(base.__name__)
        if kind is not None:
            if kind is FailureKind.UNUSABLE:  # the library quotes what it rejects, the header with the key as well
                what = f"{type(error).__name__}: the request cannot be sent (illegal URL or header)"
                return Failure(kind, what, type(error)(what))
            return Failure(kind, f"{type(error).__name__}: {error}", error)
    return None
