"""The HTTP server, on a socket in this process."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient.lab.deepseek import SimulatedDeepSeek
from deepseek_resilient.lab.server import LabServer, LoopbackOnlyError
from deepseek_resilient.lab.settings import LabSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CHAT = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hi"}]}


class Wire:
    """A server and raw connections to it."""

    def __init__(self, server: LabServer, port: int) -> None:
        self.server = server
        self.brain = server.brain
        self.port = port

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def talk(self, data: bytes) -> bytes:
        """Send bytes, close our half at the end of the reply, return all that came."""
        reader, writer = await self.open()
        writer.write(data)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


def wired(test: Callable[[Wire], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            brain = SimulatedDeepSeek(asyncio.get_running_loop(), LabSettings().changed(settings))
            server = LabServer(brain)
            url = await server.start()
            try:
                await test(Wire(server, int(url.rpartition(":")[2])))
            finally:
                await server.stop()

    asyncio.run(main())


def request(body: object = CHAT, path: str = "/chat/completions", method: str = "POST", **headers: str) -> bytes:
    data = json.dumps(body).encode() if body is not None else b""
    fields = {"authorization": "Bearer sk-t", "content-length": str(len(data)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def closing(**more: Any) -> bytes:
    return request(connection="close", **more)


async def until(check: Callable[[], bool]) -> None:
    """Wait for the loop to have done something; the test's own time limit ends it."""
    while not check():  # noqa: ASYNC110 -- what is waited for is the inside of the server, which has no event
        await asyncio.sleep(0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])  # noqa: S104
def test_only_loopback_is_listened_on(host: str) -> None:
    """Any address that others could reach is refused, and the message says which are allowed."""

    async def main() -> None:
        brain = SimulatedDeepSeek(asyncio.get_running_loop())
        with pytest.raises(LoopbackOnlyError, match=r"loopback only \(127.0.0.1, ::1 or localhost\)"):
            await LabServer(brain).start(host)

    asyncio.run(main())


def test_a_known_body_has_its_length() -> None:
    """A whole answer is framed by content-length, a stream by chunks."""

    async def test(wire: Wire) -> None:
        head, _, body = (await wire.talk(closing())).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"content-length: {len(body)}".encode() in head
        head, _, body = (await wire.talk(closing(body={**CHAT, "stream": True}))).partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    wired(test)


def test_pipelined_requests_are_answered_in_order() -> None:
    """Many requests in one write, some slow and some quick, are answered one after the other."""

    async def test(wire: Wire) -> None:
        slow = request(x_lab_fault="status;status=418;delay=0.02")
        many = b"".join([slow, request(path="/one"), request(path="/two")] * 30)
        answer = await wire.talk(many + closing(path="/last"))
        found = re.findall(rb"status 418|at /one|at /two|at /last", answer)
        assert [*[b"status 418", b"at /one", b"at /two"] * 30, b"at /last"] == found

    wired(test)


def test_head_has_no_body() -> None:
    """HEAD gets the length and no body, and the connection can be used on."""

    async def test(wire: Wire) -> None:
        answer = await wire.talk(request(None, "/models", "HEAD") + request(None, "/models", "GET", connection="close"))
        first, _, rest = answer.partition(b"\r\n\r\n")
        assert rest.startswith(b"HTTP/1.1 200 OK")
        length = len(rest.partition(b"\r\n\r\n")[2])
        assert f"content-length: {length}".encode() in first

    wired(test)


def test_what_is_no_http_gets_an_error_and_is_closed() -> None:
    """Rubbish is answered with its status, after the good requests before it."""

    async def test(wire: Wire) -> None:
        answer = await wire.talk(request(path="/x") + b"rubbish\r\n\r\n")
        assert answer.index(b"404 Not Found") < answer.index(b"400 Bad Request")
        assert b"connection: close" in answer
        assert (await wire.talk(b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000)).startswith(b"HTTP/1.1 431")
        assert (await wire.talk(b"GET / HTTP/3\r\n\r\n")).startswith(b"HTTP/1.1 505")

    wired(test)


def test_a_body_is_asked_for() -> None:
    """A client that expects a 100 gets one before it sends its body."""

    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        head, _, body = closing(expect="100-continue").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()

    wired(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_is_noticed(stream: bool) -> None:
    """Hanging up ends the request at once, and its work is wasted."""

    async def test(wire: Wire) -> None:
        _, writer = await wire.open()
        writer.write(request({**CHAT, "stream": stream}))
        await until(lambda: wire.brain.statistics()["in_flight"] == 1)
        writer.close()
        await writer.wait_closed()
        await until(lambda: wire.brain.statistics()["in_flight"] == 0)
        await until(lambda: wire.brain.statistics()["wasted"] == 1)
        assert 0 == wire.brain.statistics()["answered"]

    wired(test, service_time=0.1)


def test_a_client_that_does_not_read_pauses_its_stream() -> None:
    """A long stream to a client that does not read waits in the model, not in memory, and comes whole in the end."""

    async def test(wire: Wire) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port, limit=1024)
        ask = {**CHAT, "stream": True, "messages": [{"role": "user", "content": "x" * 1000}]}
        writer.write(closing(body=ask))
        await until(lambda: any(not c._writable for c in wire.server._connections))
        (connection,) = wire.server._connections
        assert connection._transport.get_write_buffer_size() < 300_000
        answer = await reader.read()
        assert answer.endswith(b"0\r\n\r\n")
        assert len(answer) > 5_000_000
        writer.close()
        await writer.wait_closed()

    wired(test, service_time=0.0, answer_tokens=60_000)


def test_control_changes_and_shows() -> None:
    """A script changes what comes next, statistics show it, a reset forgets it."""

    async def test(wire: Wire) -> None:
        async def call(method: str, name: str, data: object = None) -> tuple[bytes, Any]:
            answer = await wire.talk(closing(body=data, path=f"/__lab__/{name}", method=method))
            return answer[9:12], json.loads(answer.partition(b"\r\n\r\n")[2])

        script = {"next": ["outage_503"], "windows": [{"kind": "hang", "start": 99}], "settings": {"slots": 3}}
        assert (b"200", {"ok": True}) == await call("POST", "script", script)
        assert (await wire.talk(closing())).startswith(b"HTTP/1.1 503")
        assert (await wire.talk(closing())).startswith(b"HTTP/1.1 200")
        _, statistics = await call("GET", "statistics")
        assert {"200": 1, "503": 1} == statistics["statuses"]
        assert 3 == wire.brain.settings.capacity.slots
        await call("POST", "reset")
        assert 0 == (await call("GET", "statistics"))[1]["attempts"]
        assert b"404" == (await call("GET", "other"))[0]
        for bad in ([], {"later": []}, {"next": "hang"}, {"next": ["boom"]}, {"settings": []}, {"settings": {"x": 1}}):
            status, body = await call("POST", "script", bad)
            assert (b"400", True) == (status, bool(body["error"]))
        assert (await wire.talk(closing())).startswith(b"HTTP/1.1 200")

    wired(test)


def test_stopping_drops_everybody() -> None:
    """Stop closes idle, waiting and hanging connections alike."""

    async def test(wire: Wire) -> None:
        connections = [await wire.open() for _ in range(3)]
        connections[0][1].write(request(x_lab_fault="hang"))
        connections[1][1].write(request(x_lab_fault="keep_alive_forever;interval=0.01"))
        await until(lambda: wire.brain.statistics()["in_flight"] == 2)
        await wire.server.stop()
        assert 0 == wire.brain.statistics()["in_flight"]
        for _, writer in connections:
            writer.close()

    wired(test)
