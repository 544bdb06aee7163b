"""The tables of docs/reference.md are those of the code."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from typing import Any

import pytest
import tenacity

from deepseek_resilient import ConfigError, Policy, ResilienceError, config, errors, events, wait_full_jitter
from deepseek_resilient.config import environment
from deepseek_resilient.config.policy import PARTS as POLICY_PARTS
from deepseek_resilient.description import describe
from deepseek_resilient.lab.faults import KINDS, Fault

from .pages import blocks, code, links, prose, read, rows

REFERENCE = read("docs/reference.md")
SWITCHED = {name for name, _, optional in POLICY_PARTS if optional}
PARTS = {name: kind for name, kind, _ in POLICY_PARTS}
SETTINGS = {code(row[0]): row for row in rows(REFERENCE, "## Settings") if code(row[0])}
PRESETS = {"default": Policy(), "interactive": Policy.interactive(), "agent": Policy.agent(), "batch": Policy.batch()}


def setting_fields() -> dict[str, Any]:
    """Every field that can be set, by the name it has in the reference."""
    found = {f.name: f for f in fields(Policy) if f.name not in PARTS or f.name in SWITCHED}
    for part, kind in PARTS.items():
        found |= {f"{part}.{f.name}": f for f in fields(kind)}
    return found


FIELDS = setting_fields()


def value_of(policy: Policy, name: str) -> Any:
    """The value of `retry.stop`, say."""
    part, _, inner = name.partition(".")
    return getattr(getattr(policy, part) or PARTS[part](), inner) if inner else getattr(policy, part)


def same(one: object, other: object) -> bool:
    """Equal; tenacity's strategies by their kind and their numbers."""
    if type(one).__module__.startswith("tenacity"):
        return type(one) is type(other) and vars(one) == vars(other)
    return one == other


def evaluated(text: str) -> Any:
    """The value that a cell writes down."""
    return eval(text, {"tenacity": tenacity, "wait_full_jitter": wait_full_jitter} | vars(config))  # noqa: S307


def test_the_table_has_every_setting_and_no_other() -> None:
    """A setting that is added, renamed or removed must be so in the reference."""
    assert sorted(FIELDS) == sorted(SETTINGS)


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_is_told_as_it_is(name: str) -> None:
    """Type, default, range (in the words of the error) and environment variable."""
    _, kind, default, allowed, variable, *_ = SETTINGS[name]
    assert str(FIELDS[name].type).replace(" | ", " or ") == code(kind)
    assert same(value_of(Policy(), name), evaluated(code(default)))
    part, _, inner = name.partition(".")
    owner, field = (getattr(Policy(), part) or PARTS[part](), inner) if inner else (Policy(), part)
    with pytest.raises(ConfigError) as refused:
        replace(owner, **{field: object()})
    assert refused.value.allowed == allowed.replace("`", "")
    assert code(variable) in ({*environment.known()} if code(variable) else {""})


def test_every_environment_variable_is_told() -> None:
    """The names that `from_env` knows are those of the reference, and the two of the clients."""
    told = {code(row[4]) for row in SETTINGS.values()} - {""} | {"DEEPSEEK_RESILIENT_PRESET"}
    assert sorted(environment.known()) == sorted(told)
    for name in (*told, "DEEPSEEK_API_KEY", "DEEPSEEK_BASE_URL"):
        assert f"`{name}`" in REFERENCE


@pytest.mark.parametrize("name", [name for name in FIELDS if code(SETTINGS[name][4])] if SETTINGS else [])
def test_a_default_can_be_given_by_its_variable(name: str) -> None:
    """The variable of a setting sets that setting."""
    default = value_of(Policy(), name)
    switch = "off" if default is None else "on"
    text = {"retry.stop": "6"}.get(name, switch if name in SWITCHED else str(default))
    part, _, inner = name.partition(".")
    on = {f"DEEPSEEK_RESILIENT_{part.upper()}": "on"} if inner and getattr(Policy(), part) is None else {}
    policy = Policy.from_env({**on, code(SETTINGS[name][4]): text})
    assert same(default, value_of(policy, name))


def differs(name: str, preset: Policy) -> bool:
    """Whether the setting is another one there; what is off has no settings."""
    part = name.partition(".")[0]
    off = part != name and getattr(preset, part) is None
    return not off and not same(value_of(PRESETS["default"], name), value_of(preset, name))


def test_the_presets_are_told_as_they_are() -> None:
    """Each setting in which a preset differs has a row, with each preset's value."""
    table = {code(row[0]): row[1:] for row in rows(REFERENCE, "## Presets") if code(row[0])}
    differing = [n for n in FIELDS if any(differs(n, preset) for preset in PRESETS.values())]
    assert sorted(n for n in differing if n != "breaker") == sorted(table)
    for name, cells in table.items():
        for policy, cell in zip(PRESETS.values(), cells, strict=True):
            assert same(value_of(policy, name), evaluated(code(cell)))


def test_describe_prints_what_the_reference_shows() -> None:
    """The block of `describe()` is its output for the default policy."""
    assert describe(Policy()) in [block.text.rstrip("\n") for block in blocks(REFERENCE)]


def test_every_event_is_told_with_its_fields() -> None:
    """The list of events is complete."""
    table = {code(row[0]): row[1] for row in rows(REFERENCE, "## Events") if code(row[0])}
    kinds = [
        k
        for _, k in inspect.getmembers(events, inspect.isclass)
        if issubclass(k, events.Event) and k is not events.Event
    ]
    assert sorted(kind.__name__ for kind in kinds) == sorted(table)
    for kind in kinds:
        assert [f"`{f.name}`" for f in fields(kind) if f.name != "at"] == table[kind.__name__].split(", ")


def test_every_error_is_told_with_its_status() -> None:
    """The tree of errors is complete."""
    table = {code(row[0]): row for row in rows(REFERENCE, "## Errors") if code(row[0])}
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ResilienceError)]
    assert sorted(kind.__name__ for kind in kinds) == sorted(table)
    for kind in kinds:
        row = table[kind.__name__]
        assert kind.__bases__[0].__name__ == code(row[1])
        assert str(kind.http_status) in row[2]


def test_every_fault_of_the_lab_is_told() -> None:
    """docs/deepseek.md names each fault, and none that does not exist."""
    text = read("docs/deepseek.md")
    assert [] == [kind for kind in KINDS if f"`{kind}" not in text]
    for row in rows(text, "## What happens, and what is done about it"):
        for fault in row[-1].split("`")[1::2]:
            Fault.parse(fault)


def test_the_pages_name_no_hosts_but_deepseeks() -> None:
    """Addresses in the pages are DeepSeek's, the project's sources, or loopback."""
    for link in links(prose(REFERENCE)):
        assert "://" not in link or link.startswith("https://")
