"""The probe's method and its advice, on servers that are formulas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

import deepseek_resilient
from deepseek_resilient.gateway.configuration import load
from deepseek_resilient.probe import advice, method
from deepseek_resilient.probe.hosts import host_of, is_public
from deepseek_resilient.probe.run import Report
from deepseek_resilient.probe.samples import Answer, Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deepseek_resilient.probe.advice import Figures

MOST = 256


def slots(count: int, seconds: float = 0.1) -> Callable[[int], float]:
    """Latency of so many slots, by how many are at once."""
    return lambda at_once: seconds * max(at_once / count, 1.0)


def sharing(slowing: float, seconds: float = 0.1) -> Callable[[int], float]:
    """Latency of a server whose answers slow each other down."""
    return lambda at_once: seconds * (1 + slowing * (at_once - 1))


def answered(count: int, seconds: float, first: float | None = None) -> list[Answer]:
    """Good answers, all as late."""
    return [Answer(began=at, ended=at + seconds, first=None if first is None else at + first) for at in range(count)]


def refusal(**said: object) -> Answer:
    """A 429."""
    return Answer(began=0.0, ended=0.01, kind="overloaded", reason="429", status=429, **said)  # type: ignore[arg-type]


def probe(latency: Callable[[int], float], taken: int | None = None, most: int = MOST, **said: object) -> Report:
    """A whole run against a formula; above `taken` at once one is refused."""
    report = Report(end="found")
    while (at_once := method.next_concurrency(report.steps, most)) is not None:
        step = Step(at_once, answered(method.requests_for(at_once, report.steps), latency(at_once)))
        if taken is not None and at_once > taken:
            step.answers.append(refusal(**said))
        report.steps.append(step)
        assert 30 > len(report.steps)
    return report


def figures(report: Report) -> Figures:
    """They are there."""
    found = advice.figures(report)
    assert found is not None
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 12, 25, 40, 64, 100])
def test_slots_are_found_and_never_pushed_far_beyond(count: int) -> None:
    """Their number, exactly; the most at once is less than four times as many."""
    report = probe(slots(count))
    assert count == figures(report).places
    assert 4 * count >= max(step.concurrency for step in report.steps)
    assert figures(report).reached


@pytest.mark.parametrize("slowing", [0.2, 0.1, 0.05, 0.02])
def test_answers_that_slow_each_other_down(slowing: float) -> None:
    """The knee of the power, 1 / slowing, within the steps' factor of the square root of two; a higher tolerance."""
    found = figures(probe(sharing(slowing)))
    assert 1 / slowing / 1.42 <= found.places <= 1.42 / slowing
    assert "tolerance" in {one.name for one in advice.settings(found)}
    assert "slow each other down" in " ".join(advice.sentences(probe(sharing(slowing)), found))


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 16, 25, 100])
def test_a_limit_is_found_by_halving(limit: int) -> None:
    """Within an eighth, from below, and asked once more at the end."""
    report = probe(slots(1000), limit)
    found = figures(report)
    assert limit - max(1, limit // 8) <= found.accepted <= limit
    assert not report.steps[-1].refused
    assert {"initial": found.accepted, "maximum": found.accepted} == {
        one.name: one.value for one in advice.settings(found)
    }


@pytest.mark.parametrize("limit", [3, 10, 25, 100])
def test_a_limit_that_is_stated_is_tried_and_told(limit: int) -> None:
    """One refused step, then the limit itself."""
    report = probe(slots(1000), limit, limit=limit, retry_after=2.0)
    found = figures(report)
    assert (limit, limit, (2.0, 2.0)) == (found.accepted, found.stated_limit, found.retry_after)
    assert 1 == sum(step.refused for step in report.steps)
    told = " ".join(advice.sentences(report, found))
    assert f"states its limit: {limit}" in told
    assert "wait 2 s" in told


def test_a_server_that_refuses_what_it_took_limits_something_else() -> None:
    """No maximum is derived from it; the conclusion says what it may be."""
    report = probe(slots(1000), most=4)
    report.steps += [Step(8, [refusal()]), Step(6, [refusal()]), Step(4, [refusal()])]
    assert method.next_concurrency(report.steps, MOST) is None
    found = figures(report)
    assert found.unsteady
    assert [] == advice.settings(found)
    assert "RatePolicy" in " ".join(advice.sentences(report, found))


def test_a_hiccup_of_a_small_step_is_not_taken_for_saturation() -> None:
    """The step is repeated once, and the better one counts."""
    steps = [Step(1, answered(10, 0.1)), Step(2, answered(8, 0.4))]
    assert method.next_concurrency(steps, MOST) == 2
    steps.append(Step(2, answered(8, 0.1)))
    assert method.next_concurrency(steps, MOST) == 4


def test_a_capacity_that_was_not_reached_is_not_told_as_one() -> None:
    """At least so much; no initial of fewer than the default."""
    report = probe(slots(1000), most=16)
    found = figures(report)
    assert not found.reached
    assert [] == advice.settings(found)
    assert "at least 160 answers/s" in " ".join(advice.sentences(report, found))
    assert [("initial", 64)] == [(s.name, s.value) for s in advice.settings(figures(probe(slots(1000), most=64)))]


def test_a_queue_that_the_deadline_would_end_is_shortened() -> None:
    """A server of one answer in 4 s can answer 150 within 600 s."""
    assert ("queue", 150) in [(one.name, one.value) for one in advice.settings(figures(probe(slots(1, 4.0))))]


def test_a_busy_machine_is_told() -> None:
    """Its own delays look like the server's."""
    report = probe(slots(8))
    assert "" == advice.doubt(report)
    report.steps[2].lag = 0.02
    assert "at 4 at once the probe came to its turn 20 ms late" in advice.doubt(report)


def test_no_answer_no_figures() -> None:
    """Interrupted before the first step, or each refused."""
    assert advice.figures(Report()) is None
    refused = Report(steps=[Step(1, [refusal()])], end="found")
    assert advice.figures(refused) is None
    assert "single requests" in advice.nothing(refused)
    assert "log" in advice.nothing(Report(steps=[Step(1)], end="failing"))


@pytest.mark.parametrize(
    "report", [probe(slots(8)), probe(sharing(0.1)), probe(slots(99), 10), probe(slots(9), most=4)]
)
def test_python_and_toml_say_the_same(report: Report, tmp_path: Path) -> None:
    """What a person would paste; every setting has its measurement beside it."""
    wanted = advice.settings(figures(report))
    namespace = {name: getattr(deepseek_resilient, name) for name in deepseek_resilient.__all__}
    exec(advice.as_python(wanted), namespace)  # noqa: S102 -- our own text
    file = tmp_path / "gateway.toml"
    file.write_text(advice.as_toml(wanted))
    assert namespace["policy"].concurrency == load(file, {}).policy.concurrency
    assert len(wanted) == len(re.findall(r"# .*\d", advice.as_python(wanted)))


def test_late_answers_set_no_maximum() -> None:
    """A time limit of ours says nothing about how many the server takes."""
    report = probe(slots(1000), most=4)
    report.steps.append(Step(8, [*answered(8, 0.1), Answer(began=0.0, ended=60.0, kind="late")]))
    report.end = "late"
    found = figures(report)
    assert (4, None, False) == (found.accepted, found.refused_at, found.reached)
    assert "--timeout" in advice.sentences(report, found)[-1]


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://api.deepseek.com", True),
        ("https://API.DeepSeek.com./v1", True),
        ("https://user@api.openai.com:443/v1", True),
        ("https://my.openai.azure.com/openai", True),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com", True),
        ("http://127.0.0.1:8000", False),
        ("http://notdeepseek.com", False),
        ("http://deepseek.com.internal.example", False),
        ("http://ec2-1-2-3-4.amazonaws.com", False),
    ],
)
def test_public_hosts(url: str, public: bool) -> None:
    """By domain; what only looks like one is not."""
    assert public is is_public(host_of(url))
