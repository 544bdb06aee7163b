"""The gateway does what its OpenAPI page says, whatever is asked, and serves while its log cannot be written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from deepseek_resilient.gateway.openapi import document
from deepseek_resilient.gateway.tenants import make_key

from .running import CHAT, COMMAND, GatewayProcess, eventually, tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_resilient.lab import LabProcess


def test_the_page(gateway: GatewayProcess) -> None:
    """It is there without a key, and names every kind of call."""
    answer = httpx.get(f"{gateway.url.removesuffix('/v1')}/openapi.json")
    assert document() == answer.content
    page = answer.json()
    assert "3.1.0" == page["openapi"]
    assert {"/v1/chat/completions", "/beta/completions", "/v1/responses", "/v1/models"} <= page["paths"].keys()


@pytest.fixture
def keyed(lab: LabProcess, folder: Path) -> Iterator[tuple[str, str]]:
    """The address of a gateway with a tenant, and the tenant's key."""
    key, digest = make_key()
    with GatewayProcess(folder, lab.base_url, tenant("a", digest)) as process:
        yield process.url.removesuffix("/v1"), key


def test_schemathesis_finds_nothing(keyed: tuple[str, str]) -> None:
    """Twenty-five requests for each path, always the same ones."""
    base, key = keyed
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    checks = pytest.importorskip("schemathesis.checks")
    upstreams = [checks.positive_data_acceptance]  # what is in a body is the upstream's business
    schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=HealthCheck)
        @given(case=operation.as_strategy())
        def holds(case: Any) -> None:
            nonlocal tried
            tried += 1
            case.call_and_validate(
                base_url=base, headers={"Authorization": f"Bearer {key}", "x-api-key": key}, excluded_checks=upstreams
            )

        holds()
    assert tried > 50


def test_a_full_disk_does_not_stop_it(folder: Path, lab_process: LabProcess) -> None:
    """Its standard error cannot be written to; calls go on, and it ends well."""
    path = folder / "gateway.toml"
    path.write_text(
        f'[gateway]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n[upstream]\nbase_url = "{lab_process.base_url}"\n'
    )
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(  # noqa: S603
            [*COMMAND, "--config", str(path)], stdout=subprocess.PIPE, stderr=full,
            env={**os.environ, "DEEPSEEK_API_KEY": "sk-x"},
        )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().decode().split()[2]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        first = children.read_text()
        path.write_text("wrong")
        process.send_signal(1)  # SIGHUP: it has something to say
        os.kill(int(first), 9)  # and more
        assert eventually(lambda: children.read_text() not in ("", first))
        assert 200 == httpx.post(f"{url}/chat/completions", json=CHAT, timeout=30).status_code
    finally:
        process.terminate()
        process.wait(15)
        assert process.stdout is not None
        process.stdout.close()
