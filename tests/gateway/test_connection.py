"""The gateway's own connections, against servers that answer with exactly these bytes."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.servers import certificates

from deepseek_resilient.core.effects import Read, Send
from deepseek_resilient.core.messages import Failure, FailureKind, Reply
from deepseek_resilient.gateway.outgoing import Place, request_to
from deepseek_resilient.gateway.sender import Sender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE = HEAD + b"content-length: 5\r\n\r\nhello"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\ntrailer: x\r\n\r\n"


class Scripted:
    """A server that gives its answers one after the other, whoever asks; `{}` in an answer hangs up there."""

    def __init__(self, *answers: bytes | list[bytes | None]) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.requests: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                for part in answer if isinstance(answer, list) else [answer]:
                    if part is None:
                        return
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def running(server: Scripted, context: ssl.SSLContext | None = None) -> AsyncIterator[Scripted]:
    """It listens; no connection outlives it, be it with bytes that nobody read, or before its first turn."""
    writers: list[asyncio.StreamWriter] = []
    serving: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        serving.add(asyncio.ensure_future(server.serve(reader, writer)))

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    server.url = f"http{'s' if context else ''}://127.0.0.1:{port}"
    try:
        async with listening:
            yield server
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*serving)


def effect(url: str, body: bytes = b'{"model":"m"}') -> Send:
    """A call to that server."""
    request = request_to(
        url, "key", "POST", "/v1/chat/completions", b"", [(b"content-type", b"application/json")], body
    )
    return Send(request, connect=5.0)


async def ask(sender: Sender, url: str) -> bytes | Failure:
    """The whole body."""
    reply = await sender.send(effect(url))
    if isinstance(reply, Failure):
        return reply
    parts = []
    while chunk := await sender.read(Read(reply, until=None)):
        if isinstance(chunk, Failure):
            return chunk
        parts.append(chunk)
    return b"".join(parts)


def run(scenario: Callable[[Sender], Coroutine[Any, Any, None]], **options: Any) -> None:
    """With a sender of its own."""

    async def inside() -> None:
        sender = Sender(asyncio.get_running_loop().time, **options)
        try:
            await asyncio.wait_for(scenario(sender), 20)
        finally:
            await sender.aclose()

    asyncio.run(inside())


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED, HEAD + b"connection: close\r\n\r\nhello"])
def test_every_split_of_an_answer_is_the_same_answer(answer: bytes) -> None:
    """With a length, in chunks, and ended by the connection's end."""
    hangs_up: list[bytes | None] = [None] if b"close" in answer else []

    async def scenario(sender: Sender) -> None:
        splits = [[answer[:at], answer[at:], *hangs_up] for at in range(1, len(answer))]
        async with running(Scripted(*splits)) as server:
            for _ in splits:
                assert b"hello" == await ask(sender, server.url)
            assert server.connections == (len(splits) if hangs_up else 1)

    run(scenario)


def test_what_comes_behind_a_body_is_no_header() -> None:
    """Neither of its own reply nor of the next one on the connection, of which names come in small letters. What a
    server says with our tongue is none at all."""
    first = CHUNKED.replace(b"trailer: x", b"X-Resilient-Tenant: a\r\nx-own: B\r\nlast:")
    second = b"HTTP/1.1 200 OK\r\nX-Own: A\r\nX-Resilient-Error: b\r\nContent-Length: 5\r\n\r\nhello"

    async def scenario(sender: Sender) -> None:
        async with running(Scripted(first, second)) as server:
            heads = []
            for _ in range(2):
                reply = await sender.send(effect(server.url))
                assert isinstance(reply, Reply)
                while await sender.read(Read(reply, until=None)):
                    pass
                heads.append(reply.headers)
            assert [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")] == heads[0]
            assert [(b"x-own", b"A"), (b"content-length", b"5")] == heads[1]
            assert 1 == server.connections

    run(scenario)


def test_what_comes_behind_a_body_has_an_end() -> None:
    """Trailers that go on and on are no HTTP."""
    answer = [CHUNKED.partition(b"trailer")[0], *[b"x: y\r\n" * 5000] * 20]

    async def scenario(sender: Sender) -> None:
        async with running(Scripted(answer)) as server:
            reply = await sender.send(effect(server.url))
            assert isinstance(reply, Reply)
            while not isinstance(came := await sender.read(Read(reply, until=None)), Failure):
                assert came
            assert "what follows its body" in came.message

    run(scenario)


def test_interim_replies_are_passed_over() -> None:
    """100 and 103, with headers of their own."""

    async def scenario(sender: Sender) -> None:
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        async with running(Scripted(interim + WHOLE)) as server:
            reply = await sender.send(effect(server.url))
            assert isinstance(reply, Reply)
            assert 200 == reply.status
            assert [b"content-type", b"content-length"] == [name for name, _ in reply.headers]
            assert b"hello" == await sender.read(Read(reply, until=None))

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        [None],
        [b"HTTP/1.1 200", None],
        [HEAD + b"content-length: 5\r\n\r\nhel", None],
        [HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhel", None],
        [b"SSH-2.0-OpenSSH\r\n"],
        [HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello"],
        [HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"],
        [HEAD + b"x: " + b"y" * 300_000],
        [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", None],
    ],
)
def test_what_is_no_answer_is_a_broken_one(answer: list[bytes | None]) -> None:
    """Never one that looks whole, and the connection is not used again."""

    async def scenario(sender: Sender) -> None:
        async with running(Scripted(answer, WHOLE)) as server:
            failure = await ask(sender, server.url)
            assert isinstance(failure, Failure)
            assert FailureKind.BROKEN is failure.kind
            assert b"hello" == await ask(sender, server.url)
            assert 2 == server.connections

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [WHOLE + b"HTTP/1.1 200 OK\r\n", WHOLE + WHOLE, HEAD + b"connection: close\r\ncontent-length: 5\r\n\r\nhello"],
)
def test_a_connection_that_said_too_much_or_wants_to_close_is_not_used_again(answer: bytes) -> None:
    """What nobody asked for is never the answer of the next call."""

    async def scenario(sender: Sender) -> None:
        async with running(Scripted(answer, WHOLE.replace(b"hello", b"other"))) as server:
            first = await ask(sender, server.url)
            assert first == b"hello" or isinstance(first, Failure)
            assert b"other" == await ask(sender, server.url)
            assert 2 == server.connections

    run(scenario)


def test_a_call_that_is_given_up_takes_its_connection_along() -> None:
    """Before the head, and in the midst of the body."""

    async def scenario(sender: Sender) -> None:
        half = HEAD + b"content-length: 500\r\n\r\nhel"
        async with running(Scripted(b"", half, WHOLE)) as server:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await sender.send(effect(server.url))
            reply = await sender.send(effect(server.url))
            assert isinstance(reply, Reply)
            await sender.close(reply)
            assert b"hello" == await ask(sender, server.url)
            assert 3 == server.connections

    run(scenario)


def test_a_body_that_nobody_reads_is_not_taken_in() -> None:
    """The socket is left alone while much waits, and read again once it is asked for."""
    size = 20_000_000

    async def scenario(sender: Sender) -> None:
        async with running(Scripted(HEAD + b"content-length: %d\r\n\r\n" % size + b"x" * size)) as server:
            reply = await sender.send(effect(server.url))
            assert isinstance(reply, Reply)
            connection: Any = reply.native
            while not connection._paused:  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0)
            assert connection._held < 1_000_000
            count = 0
            while chunk := await sender.read(Read(reply, until=None)):
                assert isinstance(chunk, bytes)
                count += len(chunk)
            assert size == count

    run(scenario)


def test_connections_are_shared_one_after_the_other() -> None:
    """Ten at once need ten; ten more need no other."""

    async def scenario(sender: Sender) -> None:
        async with running(Scripted(*[WHOLE] * 20)) as server:
            for _ in range(2):
                answers = await asyncio.gather(*(ask(sender, server.url) for _ in range(10)))
                assert [b"hello"] * 10 == answers
            assert 10 == server.connections

    run(scenario)


def test_a_connection_that_rested_too_long_is_left() -> None:
    """The time is the clock's that was given."""
    now = [0.0]

    async def scenario(sender: Sender) -> None:
        sender._clock = lambda: now[0]
        async with running(Scripted(WHOLE, WHOLE)) as server:
            await ask(sender, server.url)
            now[0] = 16.0
            assert b"hello" == await ask(sender, server.url)
            assert 2 == server.connections

    run(scenario)


def test_nobody_listens() -> None:
    """Nothing was sent."""

    async def scenario(sender: Sender) -> None:
        async with running(Scripted()) as server:
            url = server.url
        failure = await ask(sender, url)
        assert isinstance(failure, Failure)
        assert FailureKind.CONNECT is failure.kind

    run(scenario)


def test_tls(tmp_path: Path) -> None:
    """A certificate that is known is taken; one that is not is told as no connection."""
    authority, certfile, keyfile = certificates(tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certfile, keyfile)
    known = ssl.create_default_context(cafile=str(authority))

    async def trusted(sender: Sender) -> None:
        async with running(Scripted(CHUNKED, WHOLE), serving) as server:
            assert [b"hello", b"hello"] == [await ask(sender, server.url), await ask(sender, server.url)]
            assert 1 == server.connections

    async def unknown(sender: Sender) -> None:
        async with running(Scripted(WHOLE), serving) as server:
            failure = await ask(sender, server.url)
            assert isinstance(failure, Failure)
            assert FailureKind.CONNECT is failure.kind
            assert "certificate" in failure.message

    run(trusted, context=known)
    run(unknown)


def test_what_goes_out() -> None:
    """Our line and host, the headers passed on, the key, the length, the body; no query that breaks a line."""

    async def scenario(sender: Sender) -> None:
        async with running(Scripted(WHOLE)) as server:
            headers = [(b"user-agent", b"x"), (b"cookie", b"secret"), (b"accept-encoding", b"gzip, br")]
            request = request_to(server.url, "key", "POST", "/v1/chat/completions", b"a=b c\r\nx: y", headers, b"{}")
            await sender.send(Send(request, attempt=2))
            (sent,) = server.requests
            host = server.url.removeprefix("http://")
            assert (
                sent
                == (
                    f"POST /chat/completions?a=b%20c%0D%0Ax:%20y HTTP/1.1\r\nhost: {host}\r\nuser-agent: x\r\n"
                    "accept-encoding: gzip, deflate\r\nauthorization: Bearer key\r\nx-resilient-attempt: 2\r\n"
                    "content-length: 2\r\n\r\n{}"
                ).encode()
            )

    run(scenario)


def test_a_server_that_answers_before_it_has_the_request_loses_the_connection() -> None:
    """The rest of that request would stand before the next one."""

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n")
        await gone.wait()
        writer.close()

    gone = asyncio.Event()

    async def scenario(sender: Sender) -> None:
        async with await asyncio.start_server(refuses, "127.0.0.1", 0, limit=1000) as listening:
            url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            reply = await sender.send(effect(url, b"x" * 30_000_000))
            assert isinstance(reply, Reply)
            connection: Any = reply.native
            assert b"" == await sender.read(Read(reply, until=None))
            assert not connection.reusable
            assert connection.transport.is_closing()
            gone.set()

    run(scenario)


def test_the_log_says_each_reason_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """A place that fails in another way than before is told at once; what is remembered is bounded."""
    now = [0.0]
    sender = Sender(lambda: now[0], proxies={})
    place = Place("upstream", 80, False)
    for seconds, how in ((0.0, ": refused"), (1.0, ": refused"), (2.0, ": no route"), (61.0, ": refused")):
        now[0] = seconds
        failure = sender._unconnected(place, how)
        assert (FailureKind.CONNECT, f"no connection to upstream{how}") == (failure.kind, failure.message)
    assert [": refused", ": no route", ": refused"] == [
        text.removeprefix("no connection to upstream") for text in caplog.messages
    ]
    for number in range(300):
        sender._unconnected(place, f": {number}")
    assert len(sender._told) <= 100
