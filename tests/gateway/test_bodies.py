"""Bodies and a tenant's limits: what is refused is not read, what is read is within them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx

from deepseek_resilient.gateway.tenants import make_key

from .running import CHAT, GatewayProcess, eventually, tenant
from .test_bounds import all_of, most_memory, one_of, statuses
from .test_relay import connect

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess


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
