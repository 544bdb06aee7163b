"""docs/benchmark.md tells the storms, the clients and the measures that there are, and has a result for each."""

from __future__ import annotations

import re

import pytest

from deepseek_resilient.lab.benchmark import comparison
from deepseek_resilient.lab.benchmark.contenders import CONTENDERS, PREDICTED
from deepseek_resilient.lab.benchmark.real.contenders import REAL_CONTENDERS, described
from deepseek_resilient.lab.benchmark.record import REAL, VIRTUAL
from deepseek_resilient.lab.benchmark.scale import about
from deepseek_resilient.lab.benchmark.scenarios import SCENARIOS
from deepseek_resilient.lab.benchmark.tables import COLUMNS
from deepseek_resilient.lab.benchmark.work import PUBLISHED

from .pages import code, read, rows

PAGE = read("docs/benchmark.md")


def test_every_scenario_is_told_as_it_is() -> None:
    """In the words of the command."""
    told = {code(row[0]): row[1] for row in rows(PAGE, "## Scenarios")[1:]}
    assert {name: scenario.about for name, scenario in SCENARIOS.items()} == told


def test_every_contender_is_told_as_it_is() -> None:
    """With its defaults and where they are documented."""
    told = {code(row[0]): tuple(row[1:]) for row in rows(PAGE, "## Contenders") if code(row[0])}
    assert described() == told


def test_every_measure_is_defined() -> None:
    """By the heading that it has in the tables."""
    told = ", ".join(row[0] for row in rows(PAGE, "## Measures")[1:]).split(", ")
    assert [column.heading for column in COLUMNS] == told


def test_there_is_a_result_for_each() -> None:
    """A table for each measure by which they are compared, and one for each scenario, with all contenders."""
    for column in COLUMNS:
        if column.best is not None:
            head, *table = rows(PAGE, f"### {column.heading}")
            assert [*CONTENDERS] == head[-len(CONTENDERS) :]
            watched = [name for name, scenario in SCENARIOS.items() if scenario.watched or column.heading != "back s"]
            assert watched == [row[0] for row in table]
    for name, scenario in SCENARIOS.items():
        assert [*CONTENDERS] == [row[0] for row in rows(PAGE, f"### {name}")[1:]]
        assert f"### {name}\n\n{scenario.about}\n" in PAGE


def test_real_runs_have_results_too() -> None:
    """Every client in every storm that is run over real HTTP by itself, and the prediction of each that has one."""
    for name in PUBLISHED:
        table = rows(PAGE, f"### {name} over real HTTP")[1:]
        assert [*REAL_CONTENDERS] == [row[0].removesuffix(" *") for row in table]
    compared = rows(PAGE, "### Model against reality")
    assert [*comparison.HEADING] == compared[0]
    starred = {(name, row[0]) for name in PUBLISHED for row in rows(PAGE, f"### {name} over real HTTP")}
    for name in PUBLISHED:
        for contender in PREDICTED:
            wanted = 0 if (name, f"{contender} *") in starred else len(comparison.MEASURES)
            assert wanted == sum(row[:2] == [name, contender] for row in compared)


@pytest.mark.parametrize("name", ["overload_1_5", "outage_503", "moving_limit", "overload_1_5_real"])
def test_the_pictures_are_of_these_storms(name: str) -> None:
    """Each is on the page, and has every client."""
    assert f"](storms/{name}.svg)" in PAGE
    picture = read(f"docs/storms/{name}.svg")
    storm = name.removesuffix("_real")
    assert about(REAL if storm != name else VIRTUAL, storm) in picture
    assert all(f">{who}</text>" in picture for who in (REAL_CONTENDERS if storm != name else CONTENDERS))


def test_the_page_does_not_hide_where_ours_is_behind() -> None:
    """Each scenario of the printed list has a reason."""
    printed = PAGE.split("### Where ours is not first\n\n")[1].split("\n\n")[0]
    behind = set(re.findall(r"^- (\w+),", printed, re.MULTILINE))
    reasons = PAGE.split("## Where ours does not lead, and why\n")[1].split("## Results\n")[0]
    assert behind <= set(re.findall(r"\w+", reasons))
