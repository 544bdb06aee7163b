"""docs/defaults.md was printed by benchmarks/defaults.py for the defaults of today."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from deepseek_resilient import Policy

from .pages import ROOT, read, rows

if TYPE_CHECKING:
    from types import ModuleType

PAGE = read("docs/defaults.md")


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module; the scenarios' modules go as they came."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    before = set(sys.modules)
    import defaults

    for name in {"defaults", "storm"} - before:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return defaults


def test_the_page_has_every_study_with_todays_default(defaults: ModuleType) -> None:
    """One table per study, its rows the study's variants, the bold one the default of the code."""
    studies = defaults.studies()
    assert list(studies) == re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    for name, study in studies.items():
        labels = [row[0].strip("| ") for row in rows(PAGE, f"### {name}")[1:]]
        assert [f"**{label}**" if label == study.default else label for label in study.variants] == labels
        assert Policy() == study.variants[study.default], name


def test_a_small_run_prints_a_table(defaults: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """The script still runs: one world, one seed, one policy."""
    figures = defaults.WORLDS["blip"](Policy(), 0)
    assert {"answered", "attempts", "p99"} == set(figures)
    assert 0.0 < figures["answered"] <= 1.0
    runs = defaults.Runs(1, "per_second")
    runs.figures = {key: dict.fromkeys(defaults.HEADINGS, 0.5) for key in runs.jobs()}
    runs.print()
    assert "| **0.1** | **50.0 %** |" in capsys.readouterr().out
