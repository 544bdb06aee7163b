"""Who speaks Anthropic's dialect gets our errors in it, as Anthropic's SDK reads them; the upstream's as they are."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import pytest
from tests.e2e.servers import recorder

from .running import GatewayProcess, tenant
from .test_bounds import exchange
from .test_tenants import DIGEST, KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

ASKED: dict[str, Any] = {
    "model": "deepseek-flash", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}],
}  # fmt: skip
SETTINGS = (
    "[gateway.limits]\nkeep_alive = 0.05\nmax_body_bytes = 100000\nbody_timeout = 0.3\n"
    "[policy.retry]\nattempts = 1\n[policy.guard]\nmax_output_tokens = 1000\n"
)
EVENT = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta"}}\n\n'


def claude(process: GatewayProcess, key: str = KEY, **headers: str) -> anthropic.Anthropic:
    """Anthropic's client, which asks once."""
    base = process.url.removesuffix("/v1")
    return anthropic.Anthropic(
        base_url=f"{base}/anthropic", api_key=key, max_retries=0, timeout=20, default_headers=headers
    )


def refused(client: anthropic.Anthropic, kind: type[anthropic.APIStatusError], **fields: Any) -> tuple[str, str]:
    """Type and message of the error that the SDK raises."""
    with client, pytest.raises(kind) as caught:
        client.messages.create(**{**ASKED, **fields})
    return read(caught.value.body)


def read(body: Any) -> tuple[str, str]:
    """Type and message of an error in Anthropic's format."""
    assert ("error", {"type", "error"}, {"type", "message"}) == (body["type"], body.keys(), body["error"].keys())
    return body["error"]["type"], body["error"]["message"]


@pytest.fixture(scope="module")
def process(lab_process: LabProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with one tenant, before a healthy server."""
    more = tenant("a", DIGEST, models=["deepseek-flash"]) + SETTINGS
    with GatewayProcess(tmp_path_factory.mktemp("anthropic"), lab_process.base_url, more) as running:
        yield running


def test_what_the_caller_does_wrong(process: GatewayProcess, lab: LabProcess) -> None:
    """Key, model, limits of the guard and of the gateway: by class, type and a message that says what to do."""
    kind, told = refused(claude(process, "wrong"), anthropic.AuthenticationError)
    assert ("authentication_error", True) == (kind, "knows no such key" in told)
    kind, told = refused(claude(process), anthropic.PermissionDeniedError, model="deepseek-v4-pro")
    assert ("permission_error", "Your models at this gateway are deepseek-flash") == (kind, told)
    kind, told = refused(claude(process), anthropic.BadRequestError, max_tokens=1001)
    assert ("invalid_request_error", True) == (kind, "1000" in told)
    kind, told = refused(claude(process), anthropic.RequestTooLargeError, system="x" * 100_001)
    assert ("request_too_large", True) == (kind, "100000 bytes" in told)
    headers = {"x-resilient-priority": "highest"}
    kind, told = refused(claude(process, **headers), anthropic.BadRequestError)
    assert ("invalid_request_error", True) == (kind, "A header of the request" in told)
    assert 0 == lab.statistics()["attempts"]


def test_paths_that_are_not_there(process: GatewayProcess) -> None:
    """Beside the messages, and by another method."""
    with claude(process) as client, pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.count_tokens(model="deepseek-flash", messages=ASKED["messages"])
    assert "not_found_error" == read(caught.value.body)[0]
    base = process.url.removesuffix("/v1")
    answer = httpx.get(f"{base}/anthropic/v1/messages", headers={"x-api-key": KEY})
    assert (405, "Only POST is possible here") == (answer.status_code, read(answer.json())[1])


def test_a_body_that_does_not_come(process: GatewayProcess) -> None:
    """408."""
    head = b"POST /anthropic/v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: %b\r\ncontent-length: 9\r\n\r\n{"
    came = exchange(process, head % KEY.encode())
    assert came.startswith(b"HTTP/1.1 408 ")
    assert "timeout_error" == read(json.loads(came.partition(b"\r\n\r\n")[2]))[0]


def test_a_web_page(lab: LabProcess, folder: Path) -> None:
    """403, as long as anybody may call who is here."""
    with GatewayProcess(folder, lab.base_url) as open_one:
        kind, told = refused(claude(open_one, origin="https://evil.example"), anthropic.PermissionDeniedError)
    assert ("permission_error", True) == (kind, "not for web pages" in told)


def test_a_tenants_limits_and_their_memory(lab: LabProcess, folder: Path) -> None:
    """429 at once, from memory, and of the check that Envoy makes for the path of the call."""
    more = tenant("a", DIGEST, requests_per_minute=1, burst=60.0)
    with GatewayProcess(folder, lab.base_url, more) as process:
        with claude(process) as client:
            client.messages.create(**ASKED)
        first, again = (refused(claude(process), anthropic.RateLimitError) for _ in range(2))
        assert ("rate_limit_error", True) == (first[0], "more than 1 requests per minute" in first[1])
        assert first == again
        assert 1 == process.status()["tenants"]["a"]["remembered"]
        url = process.url.replace("/v1", "/check/anthropic/v1/messages")
        checked = httpx.post(url, headers={"x-api-key": KEY})
        assert (429, "rate_limit_error") == (checked.status_code, read(checked.json())[0])


def test_a_deadline(process: GatewayProcess, lab: LabProcess) -> None:
    """504."""
    lab.script(next=["hang"])
    headers = {"x-resilient-deadline": "0.2"}
    kind, told = refused(claude(process, **headers), anthropic.InternalServerError)
    assert ("timeout_error", True) == (kind, "the deadline of the call" in told)


def test_an_upstream_that_is_not_there(folder: Path) -> None:
    """502, and 503 once its circuit is open."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    breaker = '[policy.retry]\nattempts = 1\n[policy.breaker]\nminimum_throughput = 2\nwhen_open = "refuse"\n'
    with GatewayProcess(folder, f"http://127.0.0.1:{port}", breaker) as process:
        told = [refused(claude(process), anthropic.InternalServerError) for _ in range(3)]
    assert ["api_error", "api_error", "overloaded_error"] == [kind for kind, _ in told]
    assert "no connection" in told[0][1]
    assert "the circuit" in told[2][1]


def test_what_fails_after_comments(process: GatewayProcess, lab: LabProcess) -> None:
    """The status has gone out; the event has the name without which the SDK sees nothing. Whose error it is does not
    change what it says."""
    lab.script(next=["hang", "outage_503;delay=0.6"])
    with claude(process, **{"x-resilient-deadline": "0.6"}) as client, pytest.raises(anthropic.APIStatusError) as ours:
        list(client.messages.create(**ASKED, stream=True))
    assert ("timeout_error", 200) == (read(ours.value.body)[0], ours.value.status_code)
    with claude(process) as client, pytest.raises(anthropic.APIStatusError, match=r"busy|overloaded"):
        list(client.messages.create(**ASKED, stream=True))


@pytest.mark.parametrize("half", [b"", EVENT[:20], EVENT[:-2]])
def test_a_stream_that_is_cut(folder: Path, half: bytes) -> None:
    """What came, then an event of its own: also where it was cut within a line, or before an event's end."""
    with recorder() as upstream, GatewayProcess(folder, upstream.base_url, "[policy.retry]\nattempts = 1\n") as process:
        upstream.answer = lambda _: (200, {"content-type": "text/event-stream"}, EVENT + half)
        came: list[Any] = []
        with claude(process) as client, pytest.raises(anthropic.APIStatusError) as caught:
            came.extend(event.type for event in client.messages.create(**ASKED, stream=True))
    kind, told = read(caught.value.body)
    assert ("api_error", True) == (kind, "the stream was cut" in told)
    assert came
    assert {"content_block_delta"} == set(came)


def test_the_upstreams_errors_are_passed_on(process: GatewayProcess, lab: LabProcess) -> None:
    """Byte for byte."""
    with httpx.Client(headers={"x-api-key": KEY}) as client:
        bodies = []
        for base in (lab.base_url, process.url.removesuffix("/v1")):
            lab.script(next=["throttle_429"])
            answer = client.post(f"{base}/anthropic/v1/messages", json=ASKED)
            bodies.append((answer.status_code, answer.content))
    assert bodies[0] == bodies[1]
    assert 429 == bodies[0][0]
