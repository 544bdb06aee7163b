"""One uvicorn server in an event loop that belongs to us: no signal handlers of its own, no access log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from typing import TYPE_CHECKING, Any

import uvicorn

from deepseek_resilient.gateway.protocol import bounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_resilient.gateway.settings import Limits, Listen

_BACKLOG = 2048


class Server(uvicorn.Server):
    """Ends when `should_exit` is set: no new connections, those in flight may end within the drain time."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        """Connections are accepted."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the business of whoever runs it."""
        yield


def log_to_stderr(form: str) -> None:
    """What a gateway does, and warnings of all else; `form` is "text" or "json". A refusal is no warning: in a storm
    there are thousands each second, which metrics count."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        from deepseek_resilient.telemetry.logs import JsonFormatter

        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("deepseek_resilient.gateway").setLevel(logging.INFO)


def make_server(app: Any, limits: Limits, *, drain: float, lifespan: bool) -> Server:
    """A server for `app`; `lifespan`: whether the application is to be told of its start and end."""
    config = uvicorn.Config(
        app,
        http=bounded(limits),
        ws="none",
        loop="auto",
        lifespan="on" if lifespan else "off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
    )
    config.timeout_keep_alive = limits.idle_timeout  # type: ignore[assignment]  # said to be whole seconds, used as any
    config.timeout_graceful_shutdown = drain  # type: ignore[assignment]
    return Server(config)


def bind(listen: Listen) -> socket.socket:
    """A socket that listens there. Raises OSError, with the address as its file name."""
    made: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        if made is not None:
            made.close()
        raise OSError(error.errno, error.strerror, str(listen)) from None
    made.setblocking(False)
    return made


def address_of(listening: socket.socket) -> str:
    """As a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
