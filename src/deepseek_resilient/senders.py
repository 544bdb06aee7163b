"""Senders: the core's wishes to send and to read, carried out by an inner transport of `httpx` or `httpx2`.

On threads the library's own read limit is all that bounds a blocked read, so it is set from the effect whenever the
library looks: for the head, and when the body begins (then to the longest pause that any later read may allow). Under
asyncio the driver bounds every await itself and the library gets a connect limit only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepseek_resilient.bridge import failure_of
from deepseek_resilient.core.messages import Reply
from deepseek_resilient.headers import RETRY_COUNT, foreign, of_attempt
from deepseek_resilient.libraries import Dropped, Library, library_of

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Coroutine

    from deepseek_resilient.core.effects import Read, Send
    from deepseek_resilient.core.messages import Failure

_SHORTEST = 0.001

Direct = Callable[[], tuple[Any, Library]]
"""The transport for requests to this machine, and its library."""


class _Open:
    """A reply being read: the library's response, its body's iterator, and the limits it was given."""

    __slots__ = ("body", "limits", "patience", "response")

    def __init__(self, response: Any, limits: dict[str, float | None] | None, patience: float | None) -> None:
        self.response = response
        self.body: Any = None
        self.limits = limits
        self.patience = patience


class HttpSender:
    """Sends through a synchronous transport. One per call; holds no state of its own.

    A dropped call goes to `dropped`, for the transport to close at its next request: the collector may run while this
    thread holds the locks of the inner transport's pool, or a listener's.
    """

    __slots__ = ("_clock", "_direct", "_dropped", "_inner", "_library")

    def __init__(
        self, inner: Any, library: Library, clock: Callable[[], float], dropped: deque[Dropped], direct: Direct
    ) -> None:
        self._inner = inner
        self._direct = direct
        self._library = library
        self._clock = clock
        self._dropped = dropped

    def send(self, effect: Send) -> Reply | Failure:
        """The head of the reply, or how sending failed."""
        inner, library = self._direct() if effect.request.direct else (self._inner, self._library)
        native = _native(library, effect, iter, self._clock)
        limits = None
        if effect.bounded:
            left = None if effect.until is None else max(effect.until - self._clock(), _SHORTEST)
            limits = {"connect": _least(effect.connect, left), "read": left, "write": left, "pool": left}
            native.extensions = {**native.extensions, "timeout": limits}
        try:
            response = inner.handle_request(native)
        except Exception as error:
            return _failure_or_raise(error)
        opened = _Open(response, limits, effect.patience)
        return Reply(response.status_code, foreign(response.headers.raw), opened, response.extensions)

    def read(self, effect: Read) -> bytes | Failure:
        """The next bytes of the body."""
        opened: _Open = effect.reply.native  # type: ignore[assignment]
        try:
            if opened.body is None:
                if opened.limits is not None and effect.until is not None:
                    left = max(effect.until - self._clock(), _SHORTEST)
                    opened.limits["read"] = None if opened.patience is None else max(left, opened.patience)
                opened.body = iter(opened.response.stream)
            while True:
                chunk: bytes = next(opened.body)
                if chunk:
                    return chunk
        except StopIteration:
            opened.response.stream.close()
            return b""
        except Exception as error:
            opened.response.close()
            return _failure_or_raise(error)

    def close(self, reply: Reply) -> None:
        """Give up the rest."""
        reply.native.response.close()  # type: ignore[attr-defined]

    def abandon(self, coroutine: Coroutine[Any, Any, Any], reply: Reply | None) -> None:
        """Leave them to be closed later."""
        self._dropped.append((coroutine, reply))


class AsyncHttpSender:
    """Sends through an asynchronous transport. One per call; holds no state of its own."""

    __slots__ = ("_clock", "_direct", "_inner", "_library")

    def __init__(self, inner: Any, library: Library, clock: Callable[[], float], direct: Direct) -> None:
        self._inner = inner
        self._direct = direct
        self._library = library
        self._clock = clock

    async def send(self, effect: Send) -> Reply | Failure:
        """The head of the reply, or how sending failed."""
        inner, library = self._direct() if effect.request.direct else (self._inner, self._library)
        native = _native(library, effect, aiter, self._clock)
        if effect.bounded:
            limits = {"connect": effect.connect, "read": None, "write": None, "pool": None}
            native.extensions = {**native.extensions, "timeout": limits}
        try:
            response = await inner.handle_async_request(native)
        except Exception as error:
            return _failure_or_raise(error)
        headers = foreign(response.headers.raw)
        return Reply(response.status_code, headers, _Open(response, None, None), response.extensions)

    async def read(self, effect: Read) -> bytes | Failure:
        """The next bytes of the body."""
        opened: _Open = effect.reply.native  # type: ignore[assignment]
        try:
            if opened.body is None:
                opened.body = aiter(opened.response.stream)
            while True:
                chunk: bytes = await anext(opened.body)
                if chunk:
                    return chunk
        except StopAsyncIteration:
            await opened.response.stream.aclose()
            return b""
        except Exception as error:
            await opened.response.aclose()
            return _failure_or_raise(error)

    async def close(self, reply: Reply) -> None:
        """Give up the rest."""
        await reply.native.response.aclose()  # type: ignore[attr-defined]

    def abandon(self, reply: Reply) -> None:
        """Close it soon. Called on its loop."""
        task = asyncio.get_running_loop().create_task(self.close(reply))
        _closing.add(task)
        task.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()


def _native(library: Library, effect: Send, iterate: Callable[[Any], Any], clock: Callable[[], float]) -> Any:
    """The request as the inner transport's library knows it. It tells a layer below which attempt this is, also in the
    SDK's count of retries where there is one, and how long it is waited for."""
    native: Any = effect.request.native
    if effect.attempt > 1 or effect.until is not None or effect.request.plain or effect.headers:
        native.headers = headers = native.headers.copy()
        if effect.request.plain:
            headers["accept-encoding"] = "identity"
        headers.update(of_attempt(effect, clock))
        if effect.attempt > 1 and RETRY_COUNT in headers:
            headers[RETRY_COUNT] = str(effect.attempt - 1)
    if library_of(native) is library:
        return native
    return library.Request(
        native.method,
        str(native.url),
        headers=native.headers.raw,
        content=effect.request.body if effect.request.replayable else iterate(native.stream),
        extensions=dict(native.extensions),
    )


def _failure_or_raise(error: Exception) -> Failure:
    failure = failure_of(error)
    if failure is None:
        raise error
    return failure


def _least(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)
