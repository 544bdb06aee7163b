"""A simulated DeepSeek for the commands to talk to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deepseek_resilient.lab import LabProcess

from .command import environment

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def running_lab() -> Iterator[LabProcess]:
    """One for all tests."""
    with LabProcess(service_time=0.05) as lab:
        yield lab


@pytest.fixture
def lab(running_lab: LabProcess) -> LabProcess:
    """As new."""
    running_lab.reset()
    return running_lab


@pytest.fixture
def keyed(lab: LabProcess) -> dict[str, str]:
    """An environment with a good key for the simulated DeepSeek; failed attempts are not repeated."""
    return environment(
        DEEPSEEK_API_KEY="sk-0123456789abcdef", DEEPSEEK_BASE_URL=lab.base_url, DEEPSEEK_RESILIENT_RETRY_ATTEMPTS="1"
    )
