"""Sends for the gateway: a pool of connections for each upstream, and nothing of an HTTP library around them.

`benchmarks/gateway.py` has what that saves against aiohttp. HTTP/1.1 over TCP or TLS, through the environment's
proxy where there is one (egress.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from deepseek_resilient.core.messages import Failure, FailureKind, Reply
from deepseek_resilient.gateway.connection import Connection
from deepseek_resilient.gateway.egress import proxy_for, tunnel
from deepseek_resilient.headers import of_attempt
from deepseek_resilient.proxies import proxies_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deepseek_resilient.core.effects import Read, Send
    from deepseek_resilient.gateway.outgoing import Outgoing, Place

log = logging.getLogger("deepseek_resilient.gateway")

_QUIET = 60.0
"""Seconds for which the log does not say again why there is no connection to a place."""
_MESSAGES = 100
"""So many reasons are remembered."""
_RESTED = 1.0
"""Seconds after which the loop is given a turn to see that an idle connection is closed, before it is used."""


class Sender:
    """One for all calls of a worker; belongs to its event loop. Connections are as many as the engine has calls.

    Args:
        clock: the engine's.
        keepalive: seconds that an idle connection is kept.
        context: for https; None for the system's certificates.
        proxies: as `proxies_from_environment` has them; None for what the environment says now.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        keepalive: float = 15.0,
        context: ssl.SSLContext | None = None,
        proxies: Mapping[str, str | None] | None = None,
    ) -> None:
        self._clock = clock
        self._keepalive = keepalive
        self._context = context
        self._proxies = proxies_from_environment() if proxies is None else proxies
        self._idle: defaultdict[Place, deque[Connection]] = defaultdict(deque)
        self._open: dict[Connection, Place] = {}
        self._told: dict[str, float] = {}

    async def send(self, effect: Send) -> Reply | Failure:
        """The head of the reply, or how sending failed."""
        native: Outgoing = effect.request.native  # type: ignore[assignment]
        connection = await self._take(native.place)
        if connection is None:
            try:
                connection = await self._connect(native.place, effect.connect, direct=effect.request.direct)
            except TimeoutError:
                return self._unconnected(native.place, f" in {effect.connect:g} s")
            except OSError as error:  # ssl.SSLError is one
                return self._unconnected(native.place, f": {error}", error)
        try:
            connection.send(native.bytes_of(effect.request, of_attempt(effect, self._clock)))
            failure = await connection.head()
        except BaseException:
            connection.close()
            raise
        if failure is not None:
            connection.close()
            return failure
        reply = Reply(connection.status, connection.headers, connection)
        if connection.complete:
            reply.body, reply.ended = connection.take(), True
            self._give_back(connection)
        return reply

    async def read(self, effect: Read) -> bytes | Failure:
        """The next bytes of the body."""
        reply = effect.reply
        if reply.ended:
            body, reply.body = reply.body or b"", None
            return body
        connection: Connection = reply.native  # type: ignore[assignment]
        data = await connection.chunk()
        if connection.drained or data.__class__ is Failure:
            reply.ended = True
            self._give_back(connection)
        return data

    async def close(self, reply: Reply) -> None:
        """Give up the rest of a reply."""
        self.abandon(reply)

    def abandon(self, reply: Reply) -> None:
        """The same, at once."""
        if not reply.ended:
            reply.ended = True
            self._give_back(reply.native)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        """Close all connections."""
        for connection in list(self._open):
            connection.close()
        self._idle.clear()

    async def _take(self, place: Place) -> Connection | None:
        idle = self._idle.get(place)
        while idle:
            connection = idle.pop()
            rested = self._clock() - connection.idle_since
            if rested > _RESTED:
                try:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                except BaseException:
                    connection.close()
                    raise
            if rested < self._keepalive and connection.reusable:
                return connection
            connection.close()
        return None

    async def _connect(self, place: Place, limit: float | None, *, direct: bool) -> Connection:
        context = None
        if place.secure:
            context = self._context = self._context or ssl.create_default_context()
        proxy = None if direct else proxy_for(place, self._proxies)
        async with asyncio.timeout(limit):
            if proxy is None:
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._forget), place.host, place.port, ssl=context
                )
            else:
                connection = await tunnel(proxy, place, lambda: Connection(self._forget), context)
        self._open[connection] = place
        return connection

    def _unconnected(self, place: Place, how: str, error: OSError | None = None) -> Failure:
        """There is no connection; the log tells each reason once in a while."""
        message, now = f"no connection to {place.host}{how}", self._clock()
        if now - self._told.get(message, -math.inf) >= _QUIET:
            if len(self._told) >= _MESSAGES:
                self._told.clear()
            self._told[message] = now
            log.warning("%s", message)
        return Failure(FailureKind.CONNECT, message, error)

    def _give_back(self, connection: Connection) -> None:
        place = self._open.get(connection)
        if place is None:
            return
        if not connection.reusable:
            connection.close()
            return
        idle, now = self._idle[place], self._clock()
        while idle and now - idle[0].idle_since > self._keepalive:
            idle.popleft().close()
        if connection not in idle:
            connection.idle_since = now
            idle.append(connection)

    def _forget(self, connection: Connection) -> None:
        place = self._open.pop(connection, None)
        idle = None if place is None else self._idle.get(place)
        if idle and connection in idle:
            idle.remove(connection)
