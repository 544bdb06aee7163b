"""Bodies and a tenant's limits: what is refused is not read, what is read is within them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

from deepseek_resilient.gateway.tenants import make_key

from .running import CHAT, GatewayProcess, eventually, tenant
from .test_bounds import all_of, exchange, most_memory, one_of, statuses
from .test_relay import connect

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess


BODY = json.dumps(CHAT).encode()
FRAMED = {
    "sized": b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY),
    "chunked": b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
}
UPGRADES = [
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",  # as Java's HttpClient
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\n",
]


BEHIND = {
    "a request": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + FRAMED["sized"],
    "another upgrade": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + UPGRADES[0] + FRAMED["sized"],
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a frame": b"\x81\x05hello",
}


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("framed", FRAMED)
@pytest.mark.parametrize("upgrade", UPGRADES)
def test_who_asks_for_another_protocol_is_answered_in_this_one(
    gateway: GatewayProcess, lab: LabProcess, upgrade: bytes, framed: str, behind: str, *, in_pieces: bool
) -> None:
    """Its body is framed as any, and what comes behind it is no second call; the connection ends with the answer."""
    head, _, body = FRAMED[framed].partition(b"\r\n\r\n")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%b%b\r\n" % (upgrade, head)
    with connect(gateway) as caller:
        if in_pieces:
            caller.sendall(head + b"expect: 100-continue\r\n\r\n")
            assert b"HTTP/1.1 100 Continue\r\n\r\n" == caller.recv(4096)  # so the head was read alone
            caller.sendall(body + BEHIND[behind])
        else:
            caller.sendall(head + b"\r\n" + body + BEHIND[behind])
        came = all_of(caller)
    assert [200] == statuses(came)
    assert b"connection: close" in came
    assert 1 == lab.statistics()["attempts"]


def test_another_protocol_without_a_body(gateway: GatewayProcess) -> None:
    """What is nowhere is nowhere."""
    for upgrade in UPGRADES:
        assert [404] == statuses(exchange(gateway, b"GET / HTTP/1.1\r\nhost: x\r\n%b\r\n" % upgrade))


def test_a_stream_for_who_knows_no_chunks(gateway: GatewayProcess) -> None:
    """HTTP/1.0: the end of the connection is the end."""
    body = json.dumps({**CHAT, "stream": True}).encode()
    came = exchange(gateway, b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    head, _, events = came.partition(b"\r\n\r\n")
    assert b"200" in head.split(b"\r\n")[0]
    assert b"transfer-encoding" not in head
    assert events.startswith((b"data: ", b": "))
    assert events.endswith(b"data: [DONE]\n\n")


def test_whole_answers_for_who_knows_no_chunks(gateway: GatewayProcess) -> None:
    """They have a length: one that breaks off cannot be taken for whole."""
    for name in (b"models", b"models/deepseek-flash"):
        head = exchange(gateway, b"GET /v1/%b HTTP/1.0\r\n\r\n" % name).partition(b"\r\n\r\n")[0]
        assert b"content-length" in head


def test_long_bodies_of_who_is_over_its_limits_are_not_read(lab: LabProcess, tmp_path: Path) -> None:
    """The refusal comes at once and memory stays; the connection is good for the next request. Short ones are read."""
    key, digest = make_key()
    more = "[gateway.limits]\nmax_body_bytes = 50000000\n" + tenant("a", digest, requests_per_minute=1, burst=60.0)
    said = {"authorization": f"Bearer {key}"}
    long = json.dumps({**CHAT, "messages": [{"role": "user", "content": "x" * 40_000_000}]}).encode()
    with GatewayProcess(tmp_path, lab.base_url, more) as process, httpx.Client(headers=said, timeout=20) as client:
        url = f"{process.url}/chat/completions"
        assert 200 == client.post(url, json=CHAT).status_code
        before = most_memory(process)
        for content in (long, iter([long[:9_000_000]] * 4), long, CHAT):
            answer = client.post(url, **{"json" if content is CHAT else "content": content})
            assert (429, "tenant") == (answer.status_code, answer.headers["x-resilient-refused-by"])
            assert 0 < float(answer.headers["retry-after"])
        assert most_memory(process) < before + 5_000
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\n".encode()
        with connect(process) as caller:
            caller.sendall(head + b"content-length: 40000000\r\n\r\n")
            assert [429] == statuses(one_of(caller))  # before a byte of the body
        with connect(process) as caller:
            caller.sendall(head + b"content-length: 40000000\r\nexpect: 100-continue\r\n\r\n")
            assert [429] == statuses(all_of(caller))
        counts = process.status()["tenants"]["a"]
        assert (7, 6, 6, 0) == tuple(counts[name] for name in ("requests", "refused", "limited", "in_flight"))
    assert 1 == lab.statistics()["attempts"]


def test_long_bodies_count_as_calls_while_they_come(lab: LabProcess, tmp_path: Path) -> None:
    """As many as the tenant may have, not as many as it likes, are buffered; a place is given back."""
    key, digest = make_key()
    with GatewayProcess(tmp_path, lab.base_url, tenant("a", digest, max_concurrency=1)) as process:
        body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "x" * 200_000}]}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: %b\r\ncontent-length: %d\r\n\r\n"
        with connect(process) as first, connect(process) as second:
            first.sendall(head % (key.encode(), len(body)) + body[:-1])
            assert eventually(lambda: process.status()["tenants"]["a"]["in_flight"] == 1)
            second.sendall(head % (key.encode(), len(body)) + body)
            assert [429] == statuses(one_of(second))
            first.sendall(body[-1:])
            assert [200] == statuses(one_of(first))
            second.sendall(head % (key.encode(), len(body)) + body)
            assert [200] == statuses(one_of(second))
            second.sendall(head % (key.encode(), len(body)) + body[:-1])
        assert eventually(lambda: process.status()["tenants"]["a"]["in_flight"] == 0)
