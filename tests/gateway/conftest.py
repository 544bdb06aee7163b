"""A simulated DeepSeek for the session, and one gateway in front of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .running import GatewayProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess


@pytest.fixture(autouse=True)
def _surroundings(plain_environment: None) -> None:
    """For every test here."""


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
