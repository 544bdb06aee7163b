"""A simulated DeepSeek for the session, and one gateway in front of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from deepseek_resilient.lab import LabProcess

from .running import GatewayProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def lab_process() -> Iterator[LabProcess]:
    with LabProcess(slots=1000, service_time=0.001) as process:
        yield process


@pytest.fixture
def lab(lab_process: LabProcess) -> LabProcess:
    lab_process.reset()
    return lab_process


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(("OPENAI_", "DEEPSEEK_", "ANTHROPIC_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def gateway_process(lab_process: LabProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), lab_process.base_url) as process:
        yield process


@pytest.fixture
def gateway(lab: LabProcess, gateway_process: GatewayProcess) -> GatewayProcess:
    """A gateway without tenants in front of a healthy server."""
    return gateway_process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
