"""Real HTTP to the simulated DeepSeek, from threads and from an event loop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from deepseek_resilient.lab import LabProcess
from e2e.faces import AsyncFace, SyncFace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.faces import Face


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
        if name.upper().startswith(("OPENAI_", "DEEPSEEK_", "OTEL_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest, lab: LabProcess) -> Iterator[Face]:
    """`DeepSeek` and `AsyncDeepSeek`, spoken to in the same words."""
    with (SyncFace if request.param == "sync" else AsyncFace)(lab.base_url) as made:
        yield made
