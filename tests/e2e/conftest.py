"""Real HTTP to the simulated DeepSeek: one child process for the session, reset before each test."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest
import uvloop

from deepseek_resilient import transport

from .candidates import CANDIDATES
from .faces import AsyncFace, SyncFace
from .leaks import sockets
from .plain import Plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_resilient.lab import LabProcess

    from .faces import Face


@pytest.fixture(autouse=True)
def _surroundings(plain_environment: None) -> None:
    """For every test here."""


@pytest.fixture(autouse=True)
def candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default inner transport of the asynchronous side, or the candidate that `E2E_INNER` names."""
    if name := os.environ.get("E2E_INNER"):
        monkeypatch.setattr(transport, "_asynchronous", CANDIDATES[name])


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest, lab: LabProcess) -> Iterator[Face]:
    """`DeepSeek` and `AsyncDeepSeek`, spoken to in the same words."""
    with (SyncFace if request.param == "sync" else AsyncFace)(lab.base_url) as made:
        yield made


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["sync", "async"])
def plain(request: pytest.FixtureRequest, library: Any) -> Iterator[Plain]:
    made = Plain(library, request.param == "async")
    yield made
    made.runner.run(made.stack.aclose())
    made.runner.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """An event loop of either kind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as made:
        yield made


@pytest.fixture
def before() -> int:
    """Sockets at the start, without those of earlier tests' garbage."""
    gc.collect()
    return sockets()
