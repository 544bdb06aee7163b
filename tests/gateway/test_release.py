"""protocol.py and connection.py: what was closed is gone at once, and does not wait for the collector of cycles."""

from __future__ import annotations

import asyncio
import gc
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from deepseek_resilient.gateway.connection import Connection
from deepseek_resilient.gateway.protocol import bounded
from deepseek_resilient.gateway.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
ASKED = {
    "nothing": b"",
    "one request": GET,
    "two at once": GET + GET,
    "another protocol": b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "half a request": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf",
    "no HTTP": b"no HTTP\r\n\r\n",
}


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def _app(scope: Any, receive: Any, send: Any) -> None:
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_caller_that_hung_up_leaves_nothing(asked: bytes) -> None:
    """Whatever was asked before."""

    async def work() -> None:
        config = uvicorn.Config(_app, log_config=None, proxy_headers=False)
        config.load()
        gone = asyncio.Event()

        def make() -> asyncio.Protocol:
            one = bounded(Limits())(config, ServerState(), {})
            weakref.finalize(one, gone.set)
            return one

        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(asked)
        for _ in range(asked.count(b"GET")):
            await reader.readuntil(b"whole")
        writer.close()
        await gone.wait()
        server.close()

    _run(work())


def test_a_connection_to_an_upstream_that_ended_leaves_nothing() -> None:
    """With a reply that was read."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        def lost(_: Connection) -> None:
            """Held by the connection alone."""

        gone = asyncio.Event()
        weakref.finalize(lost, gone.set)
        _, connection = await asyncio.get_running_loop().create_connection(partial(Connection, lost), *address)
        connection.send(GET)
        assert await connection.head() is None
        assert b"ok" == await connection.chunk()
        del lost, connection, _
        await gone.wait()
        server.close()

    _run(work())
