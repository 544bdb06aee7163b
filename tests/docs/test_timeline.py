"""The timeline in docs/how-it-decides.md is what happens."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from .pages import ROOT, blocks, read

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The scenarios' worlds, which live beside their tests."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "scenarios"))
    import worlds

    monkeypatch.delitem(sys.modules, "worlds", raising=False)
    return worlds


def timeline(worlds: Any) -> str:
    """The events of the page's three calls."""
    callers = (
        worlds.Caller(stream=True),
        worlds.Caller(at=0.6),
        worlds.Caller(at=0.9, timeout=0.5),
    )
    scenario = worlds.Scenario(
        callers=callers, next=("blank_200", "outage_503;retry_after=1.5"), settings={"service_time": 0.4}
    )
    trace: list[str] = worlds.run_simulated(scenario).trace
    return "".join(re.sub(r"target=[^,)]*, |, target=[^,)]*(?=\))", "", line) + "\n" for line in trace)


def test_the_timeline_of_the_docs_is_a_real_run(worlds: ModuleType) -> None:
    """Event for event, second for second."""
    assert timeline(worlds) in [block.text for block in blocks(read("docs/how-it-decides.md"))]
