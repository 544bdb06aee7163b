"""Real HTTP to the simulated DeepSeek, from threads and from an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from e2e.faces import AsyncFace, SyncFace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_resilient.lab import LabProcess
    from e2e.faces import Face


@pytest.fixture(autouse=True)
def _surroundings(plain_environment: None) -> None:
    """For every test here."""


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest, lab: LabProcess) -> Iterator[Face]:
    """`DeepSeek` and `AsyncDeepSeek`, spoken to in the same words."""
    with (SyncFace if request.param == "sync" else AsyncFace)(lab.base_url) as made:
        yield made
