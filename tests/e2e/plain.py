"""A client of `httpx` or `httpx2`, sync or async, behind one face, with our transport in it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from deepseek_resilient import AsyncResilientTransport, ResilientTransport

from .faces import policy

if TYPE_CHECKING:
    from collections.abc import Callable

HEADERS = {"authorization": "Bearer sk-test"}


class Plain:
    """A client of one library, sync or async, in the same words."""

    def __init__(self, library: Any, is_async: bool) -> None:
        self.library, self.is_async = library, is_async
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.http: Any = None

    def transport(self, given: Any = None, **options: Any) -> Any:
        """Our transport around `given`, by default around its own."""
        options.setdefault("policy", policy())
        return AsyncResilientTransport(given, **options) if self.is_async else ResilientTransport(given, **options)

    def wire(self, library: Any = None, **options: Any) -> Any:
        """A transport of the library itself."""
        library = library or self.library
        return (library.AsyncHTTPTransport if self.is_async else library.HTTPTransport)(**options)

    def client(self, **options: Any) -> Any:
        """A client around our transport."""
        options.setdefault("transport", None)
        options["transport"] = options["transport"] or self.transport()
        kind = self.library.AsyncClient if self.is_async else self.library.Client
        self.http = kind(**{"headers": HEADERS, "timeout": 5, **options})
        self.stack.push_async_callback(self.close, self.http)
        return self.http

    async def close(self, client: Any) -> None:
        closing = client.aclose() if self.is_async else client.close()
        if closing is not None:
            await closing

    def do(self, work: Callable[[], Any]) -> Any:
        """What `work` comes to."""

        async def wait() -> Any:
            return await work()

        return self.runner.run(wait()) if self.is_async else work()

    def request(self, method: str, url: str, **options: Any) -> Any:
        """A response, read."""
        return self.do(lambda: self.http.request(method, url, **options))

    def stream(self, url: str, **options: Any) -> list[bytes]:
        """The raw chunks of a streamed POST."""
        if not self.is_async:
            with self.http.stream("POST", url, **options) as response:
                return list(response.iter_raw())

        async def collect() -> list[bytes]:
            async with self.http.stream("POST", url, **options) as response:
                return [chunk async for chunk in response.aiter_raw()]

        return self.runner.run(collect())


def iter_of(plain: Plain, parts: list[bytes]) -> Any:
    """A body that can be read once."""

    async def stream() -> Any:
        for part in parts:
            yield part

    return stream() if plain.is_async else iter(parts)
