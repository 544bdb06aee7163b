"""docs/gateway.md tells the gateway's settings as they are, and its file is one that is taken."""

from __future__ import annotations

import re
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient.gateway.configuration import load
from deepseek_resilient.gateway.metrics import exposition
from deepseek_resilient.gateway.settings import GatewaySettings, Limits, Listen, Telemetry, Tenant
from deepseek_resilient.gateway.tenants import Counts

from .pages import blocks, code, read, rows

if TYPE_CHECKING:
    from pathlib import Path

PAGE = read("docs/gateway.md")
ELSEWHERE = {"base_url", "api_key", "tenants", "limits", "policy", "telemetry"}


def told(first: str) -> dict[str, str]:
    """The table of settings that begins with `first`: names and defaults."""
    found: dict[str, str] = {}
    for row in rows(PAGE, "## Settings"):
        if code(row[0]) == first or found:
            if row[0] == "setting":
                break
            found[code(row[0])] = row[1]
    return found


def as_told(value: object) -> str:
    """A default in the words of the page."""
    if value is None:
        return "none"
    if value is MISSING:
        return "must be said"
    if isinstance(value, Listen):
        return f'`"{value.host}:{value.port}"`'
    words = {True: "`true`", False: "`false`"}
    if isinstance(value, bool):
        return words[value]
    return f'`"{value}"`' if isinstance(value, str) else "`[]`" if value == () else f"`{value}`"


@pytest.mark.parametrize(
    ("kind", "first", "left_out"),
    [
        (GatewaySettings, "listen", ELSEWHERE),
        (Limits, "max_body_bytes", set()),
        (Tenant, "name", {"burst"}),
        (Telemetry, "endpoint", set()),
    ],
)
def test_every_setting_is_told_with_its_default(kind: Any, first: str, left_out: set[str]) -> None:
    """No more, no fewer, in their order."""
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(kind)}
    expected = {name: as_told(value) for name, value in defaults.items() if name not in left_out}
    assert expected == told(first)


def test_the_file_is_one_that_is_taken(tmp_path: Path) -> None:
    """As it stands on the page."""
    path = tmp_path / "gateway.toml"
    path.write_text(next(block.text for block in blocks(PAGE) if block.language == "toml"))
    settings = load(path, {"DEEPSEEK_API_KEY": "sk-x"})
    assert "search" == settings.tenants[0].name
    assert settings.policy.cache is not None


def test_what_can_be_off_is_false(tmp_path: Path) -> None:
    """In limits, tenants, the policy and its parts."""
    path = tmp_path / "gateway.toml"
    path.write_text(
        "[gateway.limits]\nkeep_alive = false\n[policy]\ndeadline = false\nbreaker = false\n"
        "[policy.stream]\nsilence = false\n"
    )
    settings = load(path, {})
    assert settings.limits.keep_alive is None
    assert settings.policy.deadline is None
    assert settings.policy.breaker is None
    assert settings.policy.stream.silence is None


def test_the_metrics_of_the_gateway_are_told_as_they_are() -> None:
    """Name, type and meaning, in their order."""
    status = {"workers": [{"ready": True}], "tenants": {"a": {**asdict(Counts()), "spent_today": 0.0}}}
    text = exposition([], status).decode()
    head = r"# HELP deepseek_resilient_gateway_(\w+) (.+)\n# TYPE \S+ (\w+)"
    known = [(name, kind, meaning) for name, meaning, kind in re.findall(head, text)]
    assert known
    assert known == [(code(name), kind, meaning) for name, kind, meaning in rows(PAGE, "### Metrics")[1:]]
