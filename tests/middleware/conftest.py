"""A simulated DeepSeek for the session, and the same application under each framework."""

from __future__ import annotations

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
def lab(lab_process: LabProcess) -> LabProcess:
    lab_process.reset()
    return lab_process


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(("OPENAI_", "DEEPSEEK_", "ANTHROPIC_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


@pytest.fixture(params=["starlette", "fastapi", "flask", "django-wsgi", "django-asgi"])
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
