"""The pictures of the storm lab: a panel and a row for each client, nothing outside, words for who cannot see them."""

from __future__ import annotations

import xml.etree.ElementTree as Tree
from functools import lru_cache

import pytest

from deepseek_resilient.lab.benchmark import pictures
from deepseek_resilient.lab.benchmark.contenders import CONTENDERS
from deepseek_resilient.lab.benchmark.record import MODEL, VIRTUAL
from deepseek_resilient.lab.benchmark.results import Result, line_of, result_of
from deepseek_resilient.lab.benchmark.scale import SCALED
from deepseek_resilient.lab.benchmark.world import run

SVG = "{http://www.w3.org/2000/svg}"


@lru_cache
def found(name: str = "outage_503", *contenders: str) -> list[Result]:
    """What a short storm came to, for two seeds."""
    scenario = SCALED[name].shrunk(0.2)
    return [
        result_of(line_of(run(scenario, CONTENDERS[who], seed, MODEL)))
        for who in contenders or CONTENDERS
        for seed in (1, 2)
    ]


def drawn(name: str = "outage_503", *contenders: str) -> Tree.Element:
    """The picture as a tree."""
    return Tree.fromstring(pictures.draw(MODEL, name, found(name, *contenders)))  # noqa: S314 -- we wrote it


@pytest.mark.parametrize("name", ["outage_503", "stress", "poisoned_tenant", "moving_limit"])
def test_every_client_has_a_panel_and_two_rows(name: str) -> None:
    """Whatever happens in the storm; ours has another panel for its limit."""
    picture = drawn(name)
    words = [text.text for text in picture.iter(f"{SVG}text")]
    assert [3] * len(CONTENDERS) == [words.count(contender) for contender in CONTENDERS]
    assert 1 == words.count("ours: limit, queue")


@pytest.mark.parametrize("contenders", [("ours",), ("naive", "finagle"), tuple(CONTENDERS)])
def test_nothing_is_outside(contenders: tuple[str, ...]) -> None:
    """Lines are inside the frame, or cut off by their panel; texts, at 6.6 a letter, end before it does."""
    picture = drawn("outage_503", *contenders)
    width, height = (float(size) for size in picture.get("viewBox", "").split()[2:])
    clipped = {line for group in picture.iter(f"{SVG}g") for line in group}
    for line in picture.iter(f"{SVG}polyline"):
        for point in line.get("points", "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height or line in clipped
    for text in picture.iter(f"{SVG}text"):
        if text.get("x"):
            length = 6.6 * len(text.text or "")
            begin = float(text.get("x", "0")) - length * {"end": 1, "middle": 0.5}.get(text.get("text-anchor", ""), 0)
            assert begin >= 0
            assert begin + length <= width + 2


def test_who_cannot_see_it_is_told() -> None:
    """A title with what happens, and a description with the numbers."""
    picture = drawn()
    assert "title told" == picture.get("aria-labelledby")
    title, told = (picture.findtext(f"{SVG}{name}") or "" for name in ("title", "desc"))
    assert title.startswith("outage_503. For 8 s every request is answered with 503 after 0.1 s.")
    assert len(CONTENDERS) == told.count("requests per call")


def test_without_ours_there_is_no_limit() -> None:
    """And without any result there is no picture."""
    assert "limit, queue" not in pictures.draw(MODEL, "outage_503", found("outage_503", "naive"))
    with pytest.raises(ValueError, match="no result of outage_503"):
        pictures.draw(VIRTUAL, "outage_503", found())
