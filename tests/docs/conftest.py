"""One simulated DeepSeek for all pages, and an environment that leads to it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_resilient.lab import LabProcess


@pytest.fixture
def lab(lab: LabProcess, plain_environment: None, monkeypatch: pytest.MonkeyPatch) -> LabProcess:
    """Where `DEEPSEEK_BASE_URL` leads."""
    monkeypatch.setenv("DEEPSEEK_BASE_URL", lab.base_url)
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-docs")
    return lab


@pytest.fixture(autouse=True)
def plain_logger() -> Iterator[None]:
    """A page's handlers end with it."""
    logger = logging.getLogger("deepseek_resilient")
    before = list(logger.handlers)
    yield
    logger.handlers[:] = before
