"""One call between a caller and the engine, over real HTTP: hang-ups, waits, breaks, slow readers."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from deepseek_resilient.core.effects import Do
from deepseek_resilient.core.messages import Response
from deepseek_resilient.gateway.relay import JSON, Relay

from .running import CHAT, MESSAGES, GatewayProcess, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

QUICK = "[gateway.limits]\nkeep_alive = 0.05\nwrite_timeout = 0.5\n[policy.retry]\nattempts = 1\n"


@pytest.fixture
def quick(lab: LabProcess, folder: Path) -> Any:
    """A gateway that soon speaks, and soon loses patience."""
    with GatewayProcess(folder, lab.base_url, QUICK) as process:
        yield process


def connect(process: GatewayProcess) -> socket.socket:
    """A plain connection."""
    address = urlsplit(process.url)
    return socket.create_connection((address.hostname or "", address.port or 0), 10)


def raw(**fields: Any) -> bytes:
    """A call as bytes."""
    body = json.dumps({**CHAT, **fields}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def pour(into: socket.socket, event: bytes) -> None:
    """Send it until the other end has had enough, 10 s at most."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        into.sendall(event)


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_hangs_up_cancels_upstream(gateway: GatewayProcess, lab: LabProcess, stream: bool) -> None:
    """Before any answer: the server sees the connection go, and the engine has no call left."""
    lab.script(next=["hang"])
    hung_up = gateway.status()["tenants"][""]["hung_up"]
    with connect(gateway) as caller:
        caller.sendall(raw(stream=stream))
        assert eventually(lambda: lab.statistics()["in_flight"] == 1)
    assert eventually(lambda: lab.statistics()["in_flight"] == 0)
    assert eventually(lambda: gateway.status()["in_flight"] == 0)
    assert hung_up + 1 == gateway.status()["tenants"][""]["hung_up"]


def test_a_caller_that_hangs_up_takes_nothing_from_who_asked_the_same(gateway: GatewayProcess, lab: LabProcess) -> None:
    """Who began the call they share may go: the other one gets the answer, of one request."""
    lab.script(next=["slow_first_token;delay=2"])
    before, hung_up = lab.statistics()["attempts"], gateway.status()["tenants"][""]["hung_up"]
    with connect(gateway) as first:
        first.sendall(raw())
        assert eventually(lambda: lab.statistics()["in_flight"] == 1)
        second = connect(gateway)
        second.sendall(raw())
        assert eventually(lambda: gateway.status()["in_flight"] == 2)
    with second:
        assert second.recv(4096).startswith(b"HTTP/1.1 200")
    assert eventually(lambda: gateway.status()["in_flight"] == 0)
    assert before + 1 == lab.statistics()["attempts"]
    assert hung_up + 1 == gateway.status()["tenants"][""]["hung_up"]


def test_a_caller_that_hangs_up_in_mid_stream_cancels_upstream(gateway: GatewayProcess, lab: LabProcess) -> None:
    """As soon as it is noticed."""
    lab.script(next=["slow_drip;interval=0.01;size=20"])
    with connect(gateway) as caller:
        caller.sendall(raw(stream=True))
        received = b""
        while b'"content":"' not in received:
            received += caller.recv(4096)
    assert eventually(lambda: lab.statistics()["in_flight"] == 0)
    assert eventually(lambda: gateway.status()["in_flight"] == 0)


def test_a_stream_that_waits_gets_comments(quick: GatewayProcess, lab: LabProcess) -> None:
    """Before the first content; then the answer comes whole, and the SDK never sees them."""
    lab.script(next=["slow_first_token;delay=0.5", "slow_first_token;delay=0.5"])
    answer = httpx.post(f"{quick.url}/chat/completions", json={**CHAT, "stream": True}, timeout=20)
    assert answer.text.startswith(": keep-alive\n\n: keep-alive\n\n")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "text/event-stream" == answer.headers["content-type"]
    with (
        openai.OpenAI(base_url=quick.url, api_key="any") as client,
        client.chat.completions.create(model="deepseek-flash", messages=MESSAGES, stream=True) as stream,
    ):
        said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert "Simulated answer to: hi" == said


def test_what_fails_after_comments_is_told_in_the_stream(quick: GatewayProcess, lab: LabProcess) -> None:
    """The status has gone out; the SDK raises for the error event."""
    lab.script(next=["outage_503;delay=0.5"])
    with openai.OpenAI(base_url=quick.url, api_key="any", max_retries=0) as client:
        stream = client.chat.completions.create(model="deepseek-flash", messages=MESSAGES, stream=True)
        with stream, pytest.raises(openai.APIError, match=r"busy|overloaded"):
            list(stream)


def test_what_fails_at_once_has_its_status(quick: GatewayProcess, lab: LabProcess) -> None:
    """Streamed or not."""
    lab.script(next=["outage_503", "outage_503"])
    with openai.OpenAI(base_url=quick.url, api_key="any", max_retries=0) as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="deepseek-flash", messages=MESSAGES, stream=stream)
            assert 503 == caught.value.status_code


@pytest.mark.parametrize("how", ["clean", "abort", "reset"])
def test_a_stream_that_is_cut_is_no_whole_one(quick: GatewayProcess, lab: LabProcess, how: str) -> None:
    """What came is passed on; then an error event, and no [DONE]."""
    lab.script(next=[f"cut;after=3;how={how}"])
    answer = httpx.post(f"{quick.url}/chat/completions", json={**CHAT, "stream": True}, timeout=20)
    assert 200 == answer.status_code
    assert "data: [DONE]" not in answer.text
    last = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert "the stream was cut" in last["error"]["message"]
    assert "upstream_error" == last["error"]["type"]


def test_a_deadline_is_504(quick: GatewayProcess, lab: LabProcess) -> None:
    """Of the caller's header, and in OpenAI's format."""
    lab.script(next=["hang"])
    answer = httpx.post(f"{quick.url}/chat/completions", json=CHAT, timeout=20, headers={"x-resilient-deadline": "0.2"})
    assert 504 == answer.status_code
    assert "timeout" == answer.json()["error"]["type"]
    assert answer.json()["error"]["message"].startswith("the upstream did not answer in time: the deadline of the call")
    assert not any(
        word in answer.text + str(answer.headers) for word in lab.base_url.removeprefix("http://").split(":")
    )


def test_an_upstream_that_is_not_there_is_502(folder: Path) -> None:
    """Or 503 once the circuit is open; never a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with GatewayProcess(folder, f"http://127.0.0.1:{port}", "[policy.retry]\nattempts = 1\n") as process:
        answer = httpx.post(f"{process.url}/chat/completions", json=CHAT, timeout=20)
        assert 502 == answer.status_code
        assert "no connection to the upstream" in answer.json()["error"]["message"]
        assert not any(word in answer.text + str(answer.headers) for word in ("127.0.0.1", str(port)))
        assert eventually(lambda: "no connection to 127.0.0.1: " in process.log)
        httpx.post(f"{process.url}/chat/completions", json={**CHAT, "n": 1}, timeout=20)
        assert 1 == process.log.count("no connection")
        assert f"127.0.0.1:{port}/deepseek-flash" in str(process.status())
        assert "Traceback" not in process.log


@pytest.mark.parametrize("came", [b"", b"{"])
def test_a_whole_answer_that_breaks_off_has_its_head(folder: Path, came: bytes) -> None:
    """With the bytes that came, and without the end by which it would be taken for whole."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with GatewayProcess(folder, url) as process, connect(process) as caller:
            caller.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            upstream, _ = server.accept()
            with upstream:
                upstream.recv(65536)
                head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-its: own\r\ncontent-length: 9\r\n\r\n"
                upstream.sendall(head + came)
            caller.settimeout(10)
            received = b"".join(iter(lambda: caller.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nx-its: own\r\n" in head
    assert (b"1\r\n{\r\n" if came else b"") == body


def test_a_caller_that_does_not_read_is_let_go(folder: Path) -> None:
    """Its connection ends, the upstream's too; memory holds no more than the buffers of one stream."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % (b"x" * 60_000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with GatewayProcess(folder, url, QUICK) as process, connect(process) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.sendall(raw(stream=True))
            upstream, _ = server.accept()
            with upstream:
                upstream.settimeout(10)
                assert upstream.recv(65536).startswith(b"POST ")  # whoever speaks first is hung up on
                upstream.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
                with pytest.raises((BrokenPipeError, ConnectionResetError)):
                    pour(upstream, event)
            assert eventually(lambda: process.status()["in_flight"] == 0)
            assert 1 == process.status()["tenants"][""]["hung_up"]


def test_a_stream_cut_within_a_line_ends_in_a_readable_error(folder: Path) -> None:
    """Nobody can read an event that is glued to half of another one."""
    half = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\ndata: {"choices":[{"ind'
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with GatewayProcess(folder, url, QUICK) as process, connect(process) as caller:
            caller.sendall(raw(stream=True))
            upstream, _ = server.accept()
            with upstream:
                asked = upstream.recv(65536)
                upstream.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + half
                )
            caller.settimeout(10)
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += caller.recv(65536)
    assert b'"ind\r\n' in received
    assert b'\n\ndata: {"error"' in received
    assert b"accept-encoding" not in asked.lower()


def test_a_comment_that_could_not_be_sent_costs_no_answer() -> None:
    """The caller reads nothing yet, so the head of comments waits; the answer comes, and begins with its own."""
    comes = threading.Event()
    sent: list[dict[str, Any]] = []

    class Caller:
        sent = True

        def watch(self, gone: Any) -> None: ...

    async def send(message: dict[str, Any]) -> None:
        if not comes.is_set():
            comes.set()
            await asyncio.Event().wait()
        sent.append(message)

    async def call() -> Response:
        await Do(partial(comes.wait, 30))
        return Response(200, [JSON], b"{}")

    relay = Relay(Caller(), send, "/v1/chat/completions", clock=time.monotonic, keep_alive=0.001)
    asyncio.run(relay.run(call(), None, stream=True))  # type: ignore[arg-type]
    assert ["http.response.start", "http.response.body"] == [message["type"] for message in sent]
    assert b"{}" == sent[1]["body"]
