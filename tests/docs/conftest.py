"""One simulated DeepSeek for all pages, and an environment that leads to it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

from deepseek_resilient.lab import LabProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def lab_process() -> Iterator[LabProcess]:
    with LabProcess(slots=1000, service_time=0.001) as process:
        yield process


@pytest.fixture
def lab(lab_process: LabProcess, plain_environment: None, monkeypatch: pytest.MonkeyPatch) -> LabProcess:
    """A clean lab, where `DEEPSEEK_BASE_URL` leads."""
    lab_process.reset()
    monkeypatch.setenv("DEEPSEEK_BASE_URL", lab_process.base_url)
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-docs")
    return lab_process


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own."""
    for name in list(os.environ):
        if name.upper().startswith(("OPENAI_", "DEEPSEEK_", "ANTHROPIC_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def plain_logger() -> Iterator[None]:
    """A page's handlers end with it."""
    logger = logging.getLogger("deepseek_resilient")
    before = list(logger.handlers)
    yield
    logger.handlers[:] = before
