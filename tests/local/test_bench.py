"""commands/measuring.py: what is compared, its arithmetic, and a run with real engines. Never how long it takes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.commands import measuring
from deepseek_resilient.commands.local_bench import as_data, table
from deepseek_resilient.commands.measuring import AS_IS, NARROW, QUESTIONS, WIDE, Measured, agreement, measure, sides
from deepseek_resilient.config import LocalPolicy
from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.engines import ENGINES

from .conftest import policy
from .tiny import SENTENCE, Tiny, text
from .watching import children

if TYPE_CHECKING:
    from pathlib import Path

WITH_TORCH = not ENGINES["transformers"].missing()


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([], [], (1.0, 1.0)),
        (["a b c"], ["a b c"], (1.0, 1.0)),
        (["a b c d"], ["a b x d"], (0.0, 0.5)),
        (["a b"], ["a b c d"], (0.0, 0.5)),
        (["", "a"], ["", "b"], (0.5, 0.5)),
        (["a  b"], ["a b"], (0.0, 1.0)),
    ],
)
def test_agreement(one: list[str], other: list[str], expected: tuple[float, float]) -> None:
    """The share of equal answers, and the mean share of words before the first difference."""
    assert expected == agreement(one, other)


@given(st.lists(st.tuples(st.text("ab ", max_size=8), st.text("ab ", max_size=8)), min_size=1))
def test_agreement_is_a_share_and_knows_no_sides(pairs: list[tuple[str, str]]) -> None:
    """Between 0 and 1; equal answers agree in all words; the same the other way round."""
    one, other = map(list, zip(*pairs, strict=True))
    equal, common = agreement(one, other)
    assert 0 <= equal <= common + 1e-9 <= 1 + 2e-9
    assert (equal, common) == agreement(other, one)


def measured(**more: object) -> Measured:
    return Measured(
        "x", "m", "llamacpp", 1.25, [0.1, 0.4, 0.2], [0.3, 0.2, 0.6], [10.0, 30.0], 5_000_000, **more  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_figures_are_medians() -> None:
    """Of each way; the ratio is that of the medians."""
    told = as_data([measured()])
    (side,) = told["sides"]
    assert (0.2, 0.3, 20.0) == (
        side["first_content_alone"], side["first_content_client"], side["tokens_per_second"],
    )  # fmt: skip
    assert pytest.approx(1.5) == side["ratio"]
    assert None is told["agreement"]


def test_the_table_has_a_column_for_each_side() -> None:
    """Names, times in the fitting unit, memory; the agreement below it; the GPU's memory where there is a GPU."""
    one, other = measured(answers=["a b", "c"]), measured(answers=["a x", "c"], gpu=2_000_000_000)
    lines = table([one, other])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {3} == {len(row) for row in cells}
    rows = {row[0]: row[1:] for row in cells}
    assert ["1.25 s", "1.25 s"] == rows["start to first token"]
    assert ["200.0 ms", "200.0 ms"] == rows["first content, engine alone"]
    assert ["1.50", "1.50"] == rows["... times as long"]
    assert ["20.0", "20.0"] == rows["tokens/s"]
    assert ["5 MB", "5 MB"] == rows["resident memory"]
    assert ["", "2,000 MB"] == rows["memory of the GPU"]
    assert (
        "Greedy answers to 2 questions: 50% are equal, 75% of the words stand before the first difference." == lines[-1]
    )
    assert not any("GPU" in line or "Greedy" in line for line in table([measured()]))


def test_of_one_file_there_is_one_side(models: Path) -> None:
    """It is measured as it is; where 8 bits are asked for, what is missing is said."""
    asked = LocalPolicy(model=str(models / "tiny.gguf"))
    (side,) = sides(asked, None)
    assert (AS_IS, str(models / "tiny.gguf"), False, None) == (
        side.label, side.policy.model, side.policy.int8, side.policy.idle,
    )  # fmt: skip
    with pytest.raises(LocalModelError, match=r"two files, F16 .* and Q8_0: put both into"):
        sides(asked, True)


def test_two_files_are_compared(tmp_path: Path) -> None:
    """One of 16 or 32 bits and one of 8, whichever of them is named, or their folder."""
    wide, narrow = Tiny().write_gguf(tmp_path / "a.gguf", 0), Tiny().write_gguf(tmp_path / "b.gguf", 7)
    (tmp_path / "c.gguf").write_bytes(b"no model")
    for named in (wide, narrow, tmp_path):
        found = sides(LocalPolicy(model=str(named)), None)
        assert [(WIDE, str(wide), False), (NARROW, str(narrow), True)] == [
            (side.label, side.policy.model, side.policy.int8) for side in found
        ]
    assert [AS_IS] == [side.label for side in sides(LocalPolicy(model=str(narrow)), False)]


def test_a_folder_of_weights_is_compared_with_itself(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the engine's own 8 bits; not where the weights have them already, nor where the engine lacks something."""
    there = replace(ENGINES["transformers"], modules=())  # as if both were installed
    monkeypatch.setattr(measuring, "ENGINES", {"transformers": there, "vllm": there})
    asked = LocalPolicy(model=str(models / "folder"), engine="transformers")
    assert [(WIDE, False), (NARROW, True)] == [(side.label, side.policy.int8) for side in sides(asked, None)]
    quantised = shutil.copytree(models / "folder", tmp_path / "quantised")
    (quantised / "config.json").write_text('{"quantization_config": {}}')
    with pytest.raises(LocalModelError, match="quantised already"):
        sides(LocalPolicy(model=str(quantised), engine="transformers"), True)
    if not measuring.detect().gpus:
        with pytest.raises(LocalModelError, match="on a GPU only"):
            sides(LocalPolicy(model=str(models / "folder"), engine="vllm"), True)


def test_a_server_that_runs_already_has_one_side() -> None:
    """It is asked for its model; it has no other in 8 bits."""
    asked = LocalPolicy(address="http://127.0.0.1:1")
    assert [AS_IS] == [side.label for side in sides(asked, None)]
    with pytest.raises(LocalModelError, match="has one model"):
        sides(asked, True)


def test_llamacpp_is_measured(llamacpp: None, tmp_path: Path) -> None:
    """Both sides in turns: as many figures as rounds, answers that agree; nothing is left running."""
    there = children()
    Tiny().write_gguf(tmp_path / "a.gguf", 0)
    Tiny().write_gguf(tmp_path / "b.gguf", 7)
    notes: list[str] = []
    found = measure(sides(policy(tmp_path), None), tokens=20, rounds=2, note=notes.append)
    assert [(WIDE, "a", "llamacpp"), (NARROW, "b", "llamacpp")] == [(one.label, one.model, one.engine) for one in found]
    for one in found:
        assert (2, 2, 2) == (len(one.alone), len(one.client), len(one.rates))
        assert min(*one.alone, *one.client, *one.rates) > 0
        assert one.resident > 10_000_000
        assert [text(SENTENCE)] * len(QUESTIONS) == one.answers
    assert {"equal": 1.0, "common_prefix": 1.0, "questions": len(QUESTIONS)} == as_data(found)["agreement"]
    assert "round 2 of 2" in notes
    assert there == children()


@pytest.mark.skipif(not WITH_TORCH, reason="no transformers: pip install torch 'transformers[serving]>=5'")
def test_transformers_is_measured(models: Path) -> None:
    """The same folder in 32 and in 8 bits; the tiny model says its sentence in both."""
    found = measure(
        sides(policy(models / "folder", engine="transformers"), True), tokens=20, rounds=1, note=lambda _: None
    )  # fmt: skip
    assert [(WIDE, "transformers"), (NARROW, "transformers")] == [(one.label, one.engine) for one in found]
    assert [[text(SENTENCE)] * len(QUESTIONS)] * 2 == [one.answers for one in found]


def test_a_model_that_says_nothing_is_told(llamacpp: None, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without content there is nothing to measure; the engine is ended. Only its silence is made up here."""
    there = children()
    monkeypatch.setattr(measuring, "_content", lambda _: "")
    with pytest.raises(LocalModelError, match="gave no text"):
        measure(sides(policy(models / "tiny.gguf"), None), tokens=5, rounds=1, note=lambda _: None)
    assert there == children()
