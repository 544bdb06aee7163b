"""The two HTTP libraries, `httpx` and `httpx2`: which one a thing belongs to, and the transports that send.

They have the same names for everything used here, so a library is passed around as the module itself.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Coroutine
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx
import httpx2

from deepseek_resilient.core.messages import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

Dropped = tuple[Coroutine[Any, Any, Any], Reply | None]
"""A call that nobody holds any more, and its open reply."""

Library = Any
"""The module `httpx` or `httpx2`."""

MAX_CONNECTIONS = 1000


def library_of(thing: Any) -> Library:
    """The library that an object (a request, a transport) belongs to; httpx2 for a transport of neither."""
    kind: Any = type(thing)
    return _library_of_type(kind)


@cache
def _library_of_type(kind: Any) -> Library:
    for base in kind.__mro__:
        root = base.__module__.partition(".")[0]
        if root in ("httpx", "httpx2"):
            return httpx if root == "httpx" else httpx2
    return httpx2


def limits_of(library: Library) -> Any:
    """Connection limits of the transports we make: as the OpenAI SDK's."""
    return library.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=100)


class Inners:
    """The transport(s) that send: the one that was given, or one made for each library at its first request.

    One that was made here is made anew in a forked child: two processes must not talk over the same connections.
    """

    def __init__(self, given: Any, make: Callable[[Library], Any], make_direct: Callable[[Library], Any]) -> None:
        self._given = None if given is None else (given, library_of(given))
        self._make = make
        self._make_direct = make_direct
        self._made: dict[tuple[Library, int], Any] = {}
        self._dropped: dict[int, deque[Dropped]] = {}

    def get(self, library: Library) -> tuple[Any, Library]:
        """The inner transport for requests of `library`, and the library it belongs to itself."""
        if self._given is not None:
            return self._given
        key = (library, os.getpid())
        inner = self._made.get(key)
        if inner is None:  # without a lock, which a fork could leave held; a second one made meanwhile is unused
            inner = self._made.setdefault(key, self._make(library))
        return inner, library_of(inner)

    def direct(self, library: Library) -> tuple[Any, Library]:
        """The same without a proxy, for requests to this machine."""
        key = (library, -os.getpid())
        inner = self._made.get(key)
        if inner is None:
            inner = self._made.setdefault(key, self._make_direct(library))
        return inner, library_of(inner)

    def dropped(self) -> deque[Dropped]:
        """Calls that were dropped in this process without being closed, still to be closed."""
        return self._dropped.setdefault(os.getpid(), deque())

    def take(self) -> list[Any]:
        """The inner transports of this process, to be closed."""
        made, self._made = self._made, {}
        own = [inner for (_, pid), inner in made.items() if abs(pid) == os.getpid()]
        return own if self._given is None else [*own, self._given[0]]
