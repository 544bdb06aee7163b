"""exchange.py: what an application sends becomes one answer of HTTP, or a mistake that the caller sees nothing of."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deepseek_resilient.gateway.exchange import Exchange

LENGTH = (b"content-length", b"4")
Message = dict[str, Any]


class Wire:
    """What was written, write by write; a transport and its flow control. There is no `writelines`: that of asyncio
    keeps an empty item for ever from Python 3.12 on, and does not pause who writes."""

    write_paused = False

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def resume_reading(self) -> None:
        """Nothing comes by itself."""

    def close(self) -> None:
        self.closed = True


def exchange(wire: Wire, *, method: str = "GET", version: str = "1.1", keep_alive: bool = True) -> Exchange:
    flow: Any = wire
    return Exchange(
        {"method": method, "http_version": version}, flow, flow, [(b"date", b"now")], False, keep_alive, lambda: None,
    )  # fmt: skip


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sent(*messages: Message, method: str = "GET", keep_alive: bool = True) -> Wire:
    """What these messages come to."""
    wire = Wire()

    async def work() -> None:
        one = exchange(wire, method=method, keep_alive=keep_alive)
        for message in messages:
            await one.send(message)

    asyncio.run(work())
    return wire


def test_the_head_leaves_with_the_body() -> None:
    """In one write, names in small letters; nothing leaves before."""
    assert [] == sent(start(LENGTH)).written
    told = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 4\r\nx-y: Z\r\n\r\nbody"
    assert [told] == sent(start((b"Content-Length", b"4"), (b"X-Y", b"Z")), body(b"body")).written


def test_a_body_of_unknown_length_comes_in_chunks() -> None:
    """Each with its length, and an end; an empty piece is none."""
    wire = sent(start(), body(b"0123456789", more=True), body(more=True), body(b"ab"))
    head, rest = wire.written[0].split(b"\r\n\r\n", 1)
    assert head.endswith(b"transfer-encoding: chunked")
    assert b"a\r\n0123456789\r\n2\r\nab\r\n0\r\n\r\n" == rest + b"".join(wire.written[1:])
    assert sent(start(), body()).written[0].endswith(b"chunked\r\n\r\n0\r\n\r\n")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_what_has_no_body_is_no_chunks(method: str, status: int) -> None:
    """The head alone."""
    (told,) = sent(start(status=status), body(), method=method).written
    assert b"transfer-encoding" not in told
    assert told.endswith(b"\r\n\r\n")


def test_the_head_of_head_is_that_of_get() -> None:
    """With the length of a body that does not come."""
    (told,) = sent(start(LENGTH), body(b"body"), method="HEAD").written
    assert told.endswith(b"content-length: 4\r\n\r\n")


@pytest.mark.parametrize(("headers", "keep_alive"), [((b"connection", b"x, Close"), True), ((b"x", b"y"), False)])
def test_a_connection_that_ends_says_so_once(headers: tuple[bytes, bytes], keep_alive: bool) -> None:
    """Whether the application or the caller wants it."""
    wire = sent(start(LENGTH, headers), body(b"body"), keep_alive=keep_alive)
    assert wire.closed
    assert 1 == wire.written[0].lower().count(b"close")


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"y\r\nz: 1"), (b"x", b"y\nz: 1"), (b"x\r\nz", b"1"), (b"x: 1\r\nz", b"1"), (b"x y", b"1"), (b"", b"1"),
        (b"x", b"\0"), (b"x", b"\x7f"), (b"x", b"y\r\n"),
    ],
)  # fmt: skip
def test_no_header_begins_another_line(header: tuple[bytes, bytes]) -> None:
    """It is refused before anything was said, so something else can still be."""
    wire = Wire()

    async def work() -> None:
        one = exchange(wire)
        with pytest.raises(RuntimeError, match="none that HTTP allows"):
            await one.send(start(header, (b"content-length", b"9"), (b"connection", b"close")))
        await one.send(start(LENGTH))
        await one.send(body(b"body"))

    asyncio.run(work())
    assert [b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 4\r\n\r\nbody"] == wire.written
    assert not wire.closed


@pytest.mark.parametrize(
    "messages",
    [
        (body(),), (start(), start()), (start(), body(), body()), (start(LENGTH), body(b"bodies")),
        (start(LENGTH), body(b"bo")), (start(LENGTH), body(b"bo", more=True), body(b"dy!")),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_a_mistake(messages: tuple[Message, ...]) -> None:
    """A wrong order, or a body of another length."""
    with pytest.raises(RuntimeError):
        sent(*messages)


def test_who_speaks_an_old_version_gets_no_chunks() -> None:
    """Of an answer without a length the end of the connection is the end."""
    wire = Wire()
    it = exchange(wire, version="1.0", keep_alive=False)

    async def test() -> None:
        await it.send(start())
        await it.send(body(b"one", more=True))
        await it.send(body(b"two"))

    asyncio.run(test())
    assert [b"connection: close\r\n\r\none", b"two"] == [wire.written[0][-24:], wire.written[1]]
    assert b"chunked" not in wire.written[0]
    assert wire.closed


def test_a_body_in_pieces_is_received_at_once() -> None:
    """As much of it as has come; who waits for more is woken by it, or by the caller's end. Only one may wait."""

    async def work() -> None:
        one = exchange(Wire())
        assert [2, 5] == [one.feed(b"ab"), one.feed(b"cde")]
        assert {"type": "http.request", "body": b"abcde", "more_body": True} == await one.receive()
        waiting = asyncio.ensure_future(one.receive())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task waits"):
            await one.receive()
        one.hang_up()
        assert {"type": "http.disconnect"} == await waiting

    asyncio.run(work())
