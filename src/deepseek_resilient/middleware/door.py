"""The door of a web application: who may come in, and what surrounds the calls that a request makes."""

from __future__ import annotations

import time
from random import SystemRandom
from threading import Lock
from typing import TYPE_CHECKING, Any

from deepseek_resilient.ambient import Surroundings
from deepseek_resilient.config.checks import time_limit, whole
from deepseek_resilient.config.quality import PRIORITY_HEADER, Priority
from deepseek_resilient.engine import Engine
from deepseek_resilient.errors import ConfigError, InvalidRequestError, ShedError
from deepseek_resilient.headers import ATTEMPT_HEADER, DEADLINE_HEADER, RETRIES, told, with_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_random = SystemRandom()
_LISTENED_TO = frozenset((ATTEMPT_HEADER.encode(), DEADLINE_HEADER.encode()))


class Visit:
    """One request inside: what surrounds its calls, and its place in the application. Thread-safe."""

    __slots__ = ("_door", "surroundings")

    def __init__(self, door: Door, surroundings: Surroundings) -> None:
        self._door: Door | None = door
        self.surroundings = surroundings

    def leave(self) -> None:
        """Give the place back. May be repeated."""
        door, self._door = self._door, None
        if door is not None:
            door.leave()


class Door:
    """Decides by the options that all adapters share. Thread-safe.

    Args:
        engine: whose load decides at the door; None for no admission there.
        model: only the load of this model's targets counts; None for all targets of the engine.
        tenant: whose requests these are, or what says so of a request (its scope, environ or HttpRequest); None for
            nobody's. It must not block.
        priority: how much they matter, likewise; None for the policy's own.
        deadline: seconds that a request's calls have, at most; None for no limit but the caller's.
        trust_headers: whether a caller may say `x-resilient-priority`, and is believed before `priority`.
        max_in_app: requests in the application at once, at least 1; None for no bound.

    Raises:
        ConfigError: an option is none of these.
    """

    def __init__(
        self,
        *,
        engine: Engine | None = None,
        model: str | None = None,
        tenant: str | Callable[[Any], str | None] | None = None,
        priority: Priority | str | Callable[[Any], Priority | str | None] | None = None,
        deadline: float | None = None,
        trust_headers: bool = False,
        max_in_app: int | None = None,
    ) -> None:
        if engine is not None and not isinstance(engine, Engine):
            raise ConfigError("engine", engine, "a deepseek_resilient.Engine, or None")
        if tenant is not None and not isinstance(tenant, str) and not callable(tenant):
            raise ConfigError("tenant", tenant, "a name, a function of the request, or None")
        time_limit("deadline", deadline)
        self.max_in_app = max_in_app
        whole(self, "max_in_app", 1, optional=True)
        self._engine = engine
        self._model = model
        self._tenant = tenant
        self._priority = priority if priority is None or callable(priority) else Priority.parse(priority)
        self._deadline = deadline
        self._names = _LISTENED_TO | {PRIORITY_HEADER} if trust_headers else _LISTENED_TO
        self._inside = 0
        self._lock = Lock()

    def enter(self, request: Any, headers: Iterable[tuple[bytes, bytes]]) -> Visit:
        """Let a request in. Header names are in lower case.

        Raises:
            RejectedError: it is not let in: load, `max_in_app`, or headers of ours that cannot be read.
        """
        said = self._told(headers)
        tenant = self._tenant(request) if callable(self._tenant) else self._tenant
        priority = said.get("priority")
        if priority is None:
            own = self._priority(request) if callable(self._priority) else self._priority
            priority = None if own is None else Priority.parse(own)
        dice = None
        if self._engine is not None:
            dice = _random.random()
            shed = self._engine.would_shed(priority, model=self._model, dice=dice)
            if shed is not None:
                raise shed
        limits = [seconds for seconds in (self._deadline, said.get("at_most")) if seconds is not None]
        surroundings = Surroundings(
            until=time.monotonic() + min(limits) if limits else None,
            tenant=tenant,
            priority=priority,
            retries_above=said.get("retries_above", 0),
            dice=dice,
        )
        with self._lock:
            if self.max_in_app is not None and self._inside >= self.max_in_app:
                raise ShedError(
                    f"{self._inside} requests are in the application, the most there may be (max_in_app).",
                    step="max_in_app",
                )
            self._inside += 1
        return Visit(self, surroundings)

    def leave(self) -> None:
        """A request is over."""
        with self._lock:
            self._inside -= 1

    @property
    def inside(self) -> int:
        """Requests in the application now."""
        return self._inside

    def _told(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
        heard, count = [], b"0"
        for pair in headers:
            if pair[0] in self._names:
                heard.append(pair)
            elif pair[0] == RETRIES:
                count = pair[1]
        try:
            said = told(heard)
        except ConfigError as error:
            raise InvalidRequestError(str(error), step="headers") from None
        with_count(said, count)
        return said
