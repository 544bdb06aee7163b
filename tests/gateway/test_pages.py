"""The pages over HTTP, as a probe, an operator and a stranger meet them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

from deepseek_resilient.gateway.tenants import make_key

from .running import CHAT, GatewayProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_resilient.lab import LabProcess

CLOSED = ("/", "/status", "/events", "/metrics", "/unknown")


@pytest.fixture(scope="module")
def key_and_process(
    lab_process: LabProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, GatewayProcess]]:
    key, digest = make_key()
    folder = tmp_path_factory.mktemp("pages")
    with GatewayProcess(folder, lab_process.base_url, gateway=f'admin_key = "{digest}"') as process:
        yield key, process


def test_health_and_readiness_ask_for_no_key(key_and_process: tuple[str, GatewayProcess]) -> None:
    process = key_and_process[1]
    for path, said in (("/healthz", "ok\n"), ("/readyz", "ready\n")):
        answer = httpx.get(process.pages + path)
        assert (answer.status_code, answer.text) == (200, said)


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic d3Jvbmc6d3Jvbmc="},
        {"authorization": "Basic !!!"},
        {"authorization": "Basic"},
        {"authorization": "Digest nothing"},
    ],
    ids=lambda headers: headers.get("authorization", "none"),
)
def test_everything_else_asks_for_the_key(
    key_and_process: tuple[str, GatewayProcess], path: str, headers: dict[str, str]
) -> None:
    key, process = key_and_process
    answer = httpx.get(process.pages + path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    assert key not in answer.text


def test_the_key_comes_as_bearer_token_or_as_password(key_and_process: tuple[str, GatewayProcess]) -> None:
    key, process = key_and_process
    assert httpx.get(f"{process.pages}/status", headers={"authorization": f"bearer {key}"}).status_code == 200
    assert httpx.get(f"{process.pages}/status", auth=("anybody", key)).status_code == 200
    assert httpx.get(f"{process.pages}/status", auth=(key, "")).status_code == 401


def test_the_status_says_how_it_stands_and_no_secret(gateway: GatewayProcess) -> None:
    asked = httpx.post(
        f"{gateway.url}/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-of-a-caller"}, timeout=30
    )
    assert asked.status_code == 200
    answer = httpx.get(f"{gateway.pages}/status")
    assert answer.headers["content-type"] == "application/json"
    status = answer.json()
    assert status["ready"]
    assert status["address"] + "/v1" == gateway.url
    assert status["workers"] == [{"number": 0, "ready": True}]
    assert status["tenants"][""]["answered"] >= 1
    [target] = [target for name, target in status["targets"].items() if CHAT["model"] in name]
    assert (target["breaker"], target["model"]) == ("closed", CHAT["model"])
    for secret in ("sk-of-the-company", "sk-of-a-caller", CHAT["messages"][0]["content"] + '"'):
        assert secret not in answer.text


def test_the_events_are_the_status_again_and_again(gateway: GatewayProcess) -> None:
    with httpx.stream("GET", f"{gateway.pages}/events", timeout=10) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        told = []
        for line in answer.iter_lines():
            if line:
                told.append(json.loads(line.removeprefix("data: ")))
            if len(told) == 2:
                break
    assert [set(httpx.get(f"{gateway.pages}/status").json())] * 2 == [set(status) for status in told]


def test_the_dashboard_loads_nothing_from_elsewhere(gateway: GatewayProcess) -> None:
    answer = httpx.get(gateway.pages + "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    for written in ("innerHTML", "http://", "https://", "insertAdjacentHTML", "document.write"):
        assert written not in answer.text


@pytest.mark.parametrize("path", ["/unknown", "/status/", "/metricsx", "/%2e%2e/status"])
def test_an_unknown_page_is_told_which_there_are(gateway: GatewayProcess, path: str) -> None:
    answer = httpx.get(gateway.pages + path)
    assert answer.status_code == 404
    assert "/readyz" in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_is_changed_here(gateway: GatewayProcess, method: str) -> None:
    answer = httpx.request(method, gateway.pages + "/status")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/status", "/metrics", "/events", "/healthz"])
def test_head_is_get_without_a_body(gateway: GatewayProcess, path: str) -> None:
    """The events too have an end then: the connection is good for the next request."""
    with httpx.Client(base_url=gateway.pages, timeout=5) as client:
        for _ in range(2):
            answer = client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
        with client.stream("GET", path) as got:
            assert got.headers["content-type"] == answer.headers["content-type"]


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1:80", 200), ("localhost", 200), ("[::1]:1", 200), ("evil.example", 403), ("", 403)]
)
def test_a_name_that_only_points_here_is_not_this_machine(gateway: GatewayProcess, host: str, status: int) -> None:
    """A web page may have its own name resolve to loopback: its browser then sends that name."""
    assert status == httpx.get(f"{gateway.pages}/status", headers={"host": host}).status_code
    assert 200 == httpx.get(f"{gateway.pages}/healthz", headers={"host": host}).status_code


@pytest.mark.parametrize(
    ("origin", "status"), [("http://localhost:3000", 200), ("https://evil.example", 403), ("null", 403)]
)
def test_a_web_page_cannot_spend_without_a_key(gateway: GatewayProcess, origin: str, status: int) -> None:
    """Its browser says where it comes from."""
    answer = httpx.post(f"{gateway.url}/chat/completions", json=CHAT, headers={"origin": origin})
    assert status == answer.status_code
