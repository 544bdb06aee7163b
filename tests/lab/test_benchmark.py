"""The storm lab: its measures by hand, the same seed twice, every scenario and contender at a small scale."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from deepseek_resilient.lab.benchmark import measures, tables
from deepseek_resilient.lab.benchmark.contenders import CONTENDERS
from deepseek_resilient.lab.benchmark.measures import measure
from deepseek_resilient.lab.benchmark.record import Call, Record
from deepseek_resilient.lab.benchmark.results import Job, line_of, open_to_append, read, result_of
from deepseek_resilient.lab.benchmark.scenario import Scenario
from deepseek_resilient.lab.benchmark.scenarios import SCENARIOS
from deepseek_resilient.lab.benchmark.world import run
from deepseek_resilient.lab.plan import Phase

PLAIN = Scenario(name="plain", about="", phases=(Phase("all", 2.0, 1.0),), capacity=10.0, patience=1.0)
SERVER = {"attempts": 0, "served": 0, "wasted": 0, "statuses": {}}


def record(*calls: Call, scenario: Scenario = PLAIN, attempts: int = 0, **server: Any) -> Record:
    """A run with these calls."""
    return Record(
        scenario=scenario, contender="ours", seed=1, calls=calls, attempts=(0.0,) * attempts, servers=(SERVER | server,)
    )


def test_what_can_be_attained_is_what_fits() -> None:
    """30 calls at once, 10 of them a second, for as long as they wait; half of it in a brown-out; weighed by work."""
    calls = [Call(0.0, 1.0, True)] * 30
    assert measures.attainable(PLAIN, calls) == pytest.approx(10.0, abs=1.01)
    assert measures.attainable(replace(PLAIN, patience=2.0), calls) == pytest.approx(20.0, abs=1.01)
    assert measures.attainable(replace(PLAIN, available={"all": 0.5}), calls) == pytest.approx(5.0, abs=1.01)
    assert measures.attainable(PLAIN, calls[:4]) == pytest.approx(4.0)
    assert measures.attainable(PLAIN, [Call(0.0, 1.0, True, work=3.0)] * 2) == pytest.approx(6.0)
    assert measures.attainable(PLAIN, []) == 0.0


def test_goodput_is_the_share_of_it_that_became_answers() -> None:
    """By the work of the calls."""
    calls = [Call(0.0, 0.5, number < 2, work=2.0) for number in range(4)]
    assert measures.goodput(record(*calls)) == pytest.approx(0.5)


def test_wasted_is_what_the_server_did_for_nobody() -> None:
    """Requests worked on, less the calls that were answered; and what that costs for 1,000 answers."""
    found = record(Call(0.0, 0.5, True), Call(0.0, 0.5, False), served=2, wasted=2, attempts=5)
    assert 0.75 == measures.wasted(found)
    assert measures.money(found) == pytest.approx(3000 * (0.15 * 1000 + 0.60 * 500) / 1e6)
    assert 0.0 == measures.wasted(record(Call(0.0, 0.5, False)))
    assert measures.money(record(Call(0.0, 0.5, False))) is None
    assert 2.5 == measure(found).attempts


def test_recovery_is_watched_from_the_end_of_the_trouble() -> None:
    """The first half second from which on all are good; never; and None where nothing is watched."""
    phases = (Phase("trouble", 1.0, 1.0), Phase("after", 2.0, 1.0))
    scenario = replace(PLAIN, phases=phases, trouble="trouble")

    def calls(*good: bool) -> list[Call]:
        return [Call(1.1 + 0.5 * number, 9.0, answered) for number, answered in enumerate(good)]

    assert 0.5 == measures.recovery(record(*calls(False, True, True, True), scenario=scenario))
    assert 0.0 == measures.recovery(record(*calls(True, True, True, True), scenario=scenario))
    assert math.inf == measures.recovery(record(*calls(True, True, True, False), scenario=scenario))
    assert measures.recovery(record(*calls(True))) is None


def test_fairness_is_jains_index() -> None:
    """Of the shares of the groups: 1 for all alike, 1/n for one that has everything."""
    one, other = Call(0.0, 1.0, True, group=0), Call(0.0, 1.0, False, group=1)
    assert 0.5 == measures.fairness([one, other])
    assert 1.0 == measures.fairness([one, replace(other, answered=True)])
    assert measures.fairness([one, replace(one, answered=False), replace(other, answered=True)]) == pytest.approx(0.9)
    assert measures.fairness([one]) is None
    assert measures.fairness([other, replace(other, group=2)]) is None


def test_times_are_those_of_the_answered_and_of_the_others() -> None:
    """Median and 99th percentile of answers; the median until the others knew."""
    found = measure(record(*[Call(0.0, number / 100, True) for number in range(100)], Call(1.0, 1.25, False)))
    assert (0.5, 0.99, 0.25) == (found.p50, found.p99, found.refusal)
    assert (101, 100 / 101) == (found.calls, found.answered)


def small(name: str) -> Scenario:
    """The scenario in a twentieth of its time."""
    return SCENARIOS[name].shrunk(0.05)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs(name: str) -> None:
    """Every caller learns how it ended, within its patience; the servers saw all attempts; a line can be read again."""
    scenario = small(name)
    found = run(scenario, CONTENDERS["ours"], 1)
    assert found.calls
    assert all(call.ended is not None and call.ended - call.began <= scenario.patience + 1e-9 for call in found.calls)
    assert len(found.attempts) == sum(server["attempts"] for server in found.servers)
    assert len({call.group for call in found.calls}) <= scenario.clients * len(scenario.tenants)
    assert measure(found) == result_of(line_of(found)).measures


@pytest.mark.parametrize("contender", CONTENDERS)
def test_the_same_seed_gives_the_same_bytes(contender: str) -> None:
    """Of each contender, and another seed gives others; the callers come at the same times for all of them."""
    scenario = small("overload_3")
    first, second, other = (run(scenario, CONTENDERS[contender], seed) for seed in (1, 1, 2))
    assert line_of(first) == line_of(second)
    assert first == second
    assert line_of(first) != line_of(other)
    assert [call.began for call in first.calls] == [call.began for call in run(scenario, CONTENDERS["naive"], 1).calls]


def test_layers_multiply_the_attempts() -> None:
    """Three attempts under three under three are 27, in an outage that lasts."""
    outage = Scenario(
        name="outage",
        about="",
        phases=(Phase("calls", 1.0, 0.1, "outage_503"), Phase("more", 1000.0, 1e-9, "outage_503")),
        patience=1000.0,
        layers=("openai_2", "openai_2"),
    )
    found = run(outage, CONTENDERS["openai_2"], 1)
    assert 27 * len(found.calls) == len(found.attempts)


def test_a_crowd_is_always_as_many_until_all_have_called() -> None:
    """The next comes as soon as one is told."""
    found = run(replace(SCENARIOS["stress"], crowd=5, calls=20), CONTENDERS["naive"], 1)
    assert 20 == len(found.calls)
    assert 5 == sum(call.began == 0.0 for call in found.calls)


def line(scenario: str = "tide", contender: str = "ours", seed: int = 1) -> str:
    """A result, as in a file."""
    found = record(Call(0.0, 0.5, True), scenario=SCENARIOS[scenario], attempts=1, served=1)
    return line_of(replace(found, contender=contender, seed=seed))


def test_a_file_keeps_what_is_whole_and_of_today(tmp_path: Any) -> None:
    """A last line that was cut short goes; results of another scenario of that name are not taken."""
    path = tmp_path / "results.json"
    old = line(seed=2).replace('"version":"', '"version":"0')
    path.write_text(f"{line()}\n{old}\n{line(seed=3)[:50]}")
    assert {Job("tide", "ours", 1): line()} == read(path)
    with open_to_append(path) as file:
        file.write(line(seed=4) + "\n")
    assert [1, 4] == [job.seed for job in read(path)]
    assert {} == read(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["no JSON\n", "[]\n", '{"scenario": "tide"}\n'])
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Any) -> None:
    """It might be somebody's."""
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="line 1 is no result"):
        read(path)
    with pytest.raises(ValueError):  # noqa: PT011 -- whatever is wrong with it
        result_of(text)


def test_a_table_has_a_row_for_each_and_fits() -> None:
    """Median and spread; never is said; what nobody has is left out."""
    calls = [Call(0.0, 0.5, True), Call(43.9, 44.0, False)]
    found = [
        result_of(line_of(record(*calls[:count], scenario=SCENARIOS["tide"], attempts=30 + count, served=2)))
        for count in (1, 2, 2)
    ]
    text = tables.text(found)
    assert "ours" in text
    assert "fair" not in text
    assert "never (0.0-never)" in text
    assert "16.0 (16.0-31.0)" in text
    assert all(len(row) <= 100 for row in text.splitlines())
    assert "| ours | " in tables.markdown(found)
