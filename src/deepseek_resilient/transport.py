"""The engine as an HTTP transport: one pair of classes for the clients of `httpx` and of `httpx2`.

`ResilientTransport` wraps any inner transport and goes wherever a transport goes: `httpx.Client(transport=…)`, a value
of `mounts=`, an SDK's `http_client=`. Proxies, certificates and HTTP/2 are the inner transport's business. The two
libraries have the same shape and unrelated classes, so the library is taken from each request, and what goes back
(response, exceptions) is of that library; the inner transport may even be of the other one.

Timeouts: the request's `read` timeout is the deadline of the whole call, its `connect` timeout bounds each connection.
Requests that are no inference call pass through with their timeouts untouched.

For one call, by request header: `x-resilient-max-retries: 3` (not sent on).
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import httpx2

from deepseek_resilient import bridge, libraries
from deepseek_resilient.drivers.aio import AioCall
from deepseek_resilient.drivers.threads import ThreadCall
from deepseek_resilient.engine import Engine
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.senders import AsyncHttpSender, HttpSender

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from deepseek_resilient.config import Policy
    from deepseek_resilient.core.messages import Failure
    from deepseek_resilient.core.runtime import EngineStatistics
    from deepseek_resilient.events import Listener


class _Resilient:
    """What both transports share: the engine, and how a native request becomes a call."""

    def __init__(
        self, *, policy: Policy | None = None, engine: Engine | None = None, listeners: Sequence[Listener] = ()
    ) -> None:
        if engine is not None and (policy is not None or listeners):
            raise ConfigError("engine", engine, "given alone: a policy or listeners belong to the engine already")
        if engine is not None and not isinstance(engine, Engine):
            raise ConfigError("engine", engine, "a deepseek_resilient.Engine")
        self._owns_engine = engine is None
        self.engine = engine or Engine(policy, listeners=listeners)

    def describe(self) -> str:
        """The path of a call, for people."""
        return self.engine.describe()

    def statistics(self) -> EngineStatistics:
        """Counts since the start, and how budget, gates and circuits stand now."""
        return self.engine.statistics()


class ResilientTransport(_Resilient, httpx.BaseTransport, httpx2.BaseTransport):
    """For `httpx.Client` and `httpx2.Client`. Thread-safe if the inner transport is (the libraries' own are).

    Args:
        inner: the transport that does the sending. None makes one of the requests' own library with up to 1,000
            connections, which is made anew in a forked child ...
        proxy: ... and goes through this proxy.
        policy, listeners: for an engine of its own. engine: a shared one, instead.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport | httpx2.BaseTransport | None = None,
        *,
        proxy: str | None = None,
        policy: Policy | None = None,
        engine: Engine | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        super().__init__(policy=policy, engine=engine, listeners=listeners)
        if inner is not None and not hasattr(inner, "handle_request"):
            raise ConfigError("inner", inner, "a transport with handle_request, such as httpx.HTTPTransport()")
        _check_proxy(inner, proxy)
        self._inners = libraries.Inners(
            inner,
            lambda library: library.HTTPTransport(limits=libraries.limits_of(library), proxy=proxy),
            lambda library: library.HTTPTransport(limits=libraries.limits_of(library)),
        )

    def handle_request(self, request: Any) -> Any:
        """Make the call. Raises what the inner transport would, or our exceptions in the same library's tree."""
        library = libraries.library_of(request)
        engine = self.engine
        if bridge.must_be_read(library, request):
            request.read()
        headers, extensions = request.headers, request.extensions
        core_request, limits = bridge.prepare(library, request)
        inner, inner_library = self._inners.get(library)
        dropped = self._inners.dropped()
        if dropped:
            _close_all(dropped)

        def raise_as(failure: Failure) -> BaseException:
            return bridge.exception_of(library, failure)

        call = ThreadCall(
            engine.call(core_request, **limits),
            HttpSender(inner, inner_library, engine.clock, dropped, partial(self._inners.direct, library)),
            clock=engine.clock,
            sleep=time.sleep,
            raise_as=raise_as,
        )
        try:
            response = call.start()
        finally:
            request.headers, request.extensions = headers, extensions
        return bridge.respond(library, response, lambda: bridge.sync_stream(library, call))

    def close(self) -> None:
        """Close the inner transport, and the engine if it is this one's own."""
        _close_all(self._inners.dropped())
        for inner in self._inners.take():
            inner.close()
        if self._owns_engine:
            self.engine.close()


class AsyncResilientTransport(_Resilient, httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
    """For `httpx.AsyncClient` and `httpx2.AsyncClient` on asyncio or uvloop; arguments as `ResilientTransport`.

    The inner transport that is made where none is given is an `AiohttpTransport`, which costs less than the libraries'
    own. It may be used from several event loops; with another inner transport, one transport belongs to one event loop.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport | None = None,
        *,
        proxy: str | None = None,
        policy: Policy | None = None,
        engine: Engine | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        super().__init__(policy=policy, engine=engine, listeners=listeners)
        if inner is not None and not hasattr(inner, "handle_async_request"):
            raise ConfigError(
                "inner", inner, "a transport with handle_async_request, such as httpx.AsyncHTTPTransport()"
            )
        _check_proxy(inner, proxy)
        self._inners = libraries.Inners(inner, lambda _: _asynchronous(proxy), lambda _: _asynchronous(None))

    async def handle_async_request(self, request: Any) -> Any:
        """Make the call. Raises what the inner transport would, or our exceptions in the same library's tree."""
        library = libraries.library_of(request)
        engine = self.engine
        if bridge.must_be_read(library, request):
            await request.aread()
        headers, extensions = request.headers, request.extensions
        core_request, limits = bridge.prepare(library, request)
        inner, inner_library = self._inners.get(library)

        def raise_as(failure: Failure) -> BaseException:
            return bridge.exception_of(library, failure)

        call = AioCall(
            engine.call(core_request, **limits),
            AsyncHttpSender(inner, inner_library, engine.clock, partial(self._inners.direct, library)),
            clock=engine.clock,
            raise_as=raise_as,
        )
        try:
            response = await call.start()
        finally:
            request.headers, request.extensions = headers, extensions
        return bridge.respond(library, response, lambda: bridge.async_stream(library, call))

    async def aclose(self) -> None:
        """Close the inner transport, and the engine if it is this one's own."""
        for inner in self._inners.take():
            await inner.aclose()
        if self._owns_engine:
            await self.engine.aclose()


def _check_proxy(inner: object, proxy: str | None) -> None:
    if inner is not None and proxy is not None:
        raise ConfigError("proxy", proxy, "left out: the inner transport that is given brings its own")


def _asynchronous(proxy: str | None) -> httpx2.AsyncBaseTransport:
    if proxy is not None and not proxy.startswith(("http://", "https://")):  # SOCKS: only the libraries' own know it
        return httpx2.AsyncHTTPTransport(limits=libraries.limits_of(httpx2), proxy=proxy)
    from deepseek_resilient.aiohttp_transport import AiohttpTransport

    return AiohttpTransport(max_connections=libraries.MAX_CONNECTIONS, proxy=proxy)


def _close_all(dropped: deque[libraries.Dropped]) -> None:
    while dropped:
        try:
            coroutine, reply = dropped.popleft()
        except IndexError:  # another thread was quicker
            return
        coroutine.close()
        if reply is not None:
            with contextlib.suppress(Exception):  # the failure of a call that nobody waits for
                reply.native.response.close()  # type: ignore[attr-defined]
