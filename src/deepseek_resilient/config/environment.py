"""A policy from environment variables: the only place that reads them, and the names they have."""

from __future__ import annotations

from dataclasses import Field, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import tenacity

from deepseek_resilient.config.policy import PARTS, Policy
from deepseek_resilient.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENV_PREFIX = "DEEPSEEK_RESILIENT_"

_ELSEWHERE = ("DEEPSEEK_RESILIENT_MODELS",)
"""Variables with our prefix that are no part of a policy: where the files of local models lie (`local/files.py`)."""

_SWITCHED: dict[str, type[Any]] = {name: kind for name, kind, optional in PARTS if optional}

PRESETS: dict[str, Callable[[], Policy]] = {
    "default": Policy,
    "interactive": Policy.interactive,
    "agent": Policy.agent,
    "batch": Policy.batch,
}


def read(environ: Mapping[str, str]) -> Policy:
    """The preset that is named there, and every setting on top of it. Raises ConfigError."""
    found = {k: v for k, v in environ.items() if k.startswith(ENV_PREFIX) and k not in _ELSEWHERE}
    preset = found.pop(f"{ENV_PREFIX}PRESET", "default").strip().lower()
    if preset not in PRESETS:
        raise ConfigError(f"{ENV_PREFIX}PRESET", preset, " or ".join(PRESETS))
    policy = PRESETS[preset]()
    for name, text in sorted(found.items()):
        policy = _set_from_env(policy, name, text.strip())
    return policy


def _set_from_env(policy: Policy, variable: str, text: str) -> Policy:
    name = variable.removeprefix(ENV_PREFIX).lower()
    if name == "retry_attempts":
        try:
            attempts = int(text)
        except ValueError:
            raise ConfigError(variable, text, "a whole number of at least 1") from None
        if attempts < 1:
            raise ConfigError(variable, text, "a whole number of at least 1")
        return replace(policy, retry=replace(policy.retry, stop=tenacity.stop_after_attempt(attempts)))
    if name in _SWITCHED:
        if text.lower() not in ("on", "off"):
            raise ConfigError(variable, text, '"on" or "off"')
        switched: Any = (getattr(policy, name) or _SWITCHED[name]()) if text.lower() == "on" else None
        return replace(policy, **{name: switched})
    part_name, _, part_field = name.partition("_")
    part = getattr(policy, part_name, None) if part_name in {p[0] for p in PARTS} else None
    owner: Any = policy if part is None else part
    key = name if part is None else part_field
    types = {f.name: str(f.type) for f in fields(owner) if _is_plain(f)}
    if part_name in _SWITCHED and part is None:
        raise ConfigError(variable, text, f"left unset while the {part_name} is off")
    if key not in types:
        closest = get_close_matches(variable, known(), n=1)
        meant = f"; {closest[0]} is meant, perhaps" if closest else ""
        raise ConfigError(variable, text, f"left out: no setting has that name{meant} (docs/reference.md has them all)")
    try:
        changed = replace(owner, **{key: _parse(types[key], text)})
    except ConfigError as error:
        raise ConfigError(variable, text, error.allowed) from None
    return changed if part is None else replace(policy, **{part_name: changed})


def _parse(kind: str, text: str) -> object:
    if "None" in kind and text.lower() in ("none", "off"):
        return None
    try:
        if "bool" in kind:
            return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
        if kind in ("int", "int | None"):
            return int(text)
        if "float" in kind:
            return float(text)
    except ValueError:
        pass
    return text


def _is_plain(setting: Field[Any]) -> bool:
    """Whether one word can say it."""
    kind = str(setting.type).removesuffix(" | None")
    return kind in ("float", "int", "bool", "str") or kind.startswith("Literal")


def known() -> list[str]:
    """Every variable that is read."""
    names = [f.name for f in fields(Policy) if _is_plain(f)]
    for part, kind, _ in PARTS:
        names += [f"{part}_{f.name}" for f in fields(kind) if _is_plain(f)]
    return [ENV_PREFIX + n.upper() for n in ["preset", *_SWITCHED, "retry_attempts", *names]]
