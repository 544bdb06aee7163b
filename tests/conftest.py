"""What several folders of tests share: a simulated DeepSeek for the session, and an environment with nothing in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from deepseek_resilient.lab import LabProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = ("OPENAI_", "DEEPSEEK_", "ANTHROPIC_", "OTEL_")


@pytest.fixture(scope="session")
def lab_process() -> Iterator[LabProcess]:
    """One child process, begun where it is first wanted."""
    with LabProcess(slots=1000, service_time=0.001) as process:
        yield process


@pytest.fixture
def lab(lab_process: LabProcess) -> LabProcess:
    """As new."""
    lab_process.reset()
    return lab_process


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own."""
    for name in list(os.environ):
        if name.upper().startswith(OURS) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
