"""What every policy part asks of its fields: the right type, in range, or a `ConfigError` that says what is allowed."""

from __future__ import annotations

import math
import sys

from deepseek_resilient.errors import ConfigError

_HUGE = sys.float_info.max


def number(
    owner: object, name: str, low: float, high: float = math.inf, *, optional: bool = False, above: bool = False,
    unit: str = "seconds",
) -> None:  # fmt: skip
    value = getattr(owner, name)
    if value is None and optional:
        return
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and -_HUGE <= value <= _HUGE
    if not (good and (low < value if above else low <= value) and value <= high):
        allowed = f"a number {'above' if above else 'of at least'} {low:g}"
        if high != math.inf:
            allowed += f" and at most {high:g}"
        raise ConfigError(label(owner, name), value, allowed + (f" ({unit}), or None" if optional else ""))


def time_limit(name: str, value: object) -> None:
    """Of a call: seconds, or None."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _HUGE
    if not good and value is not None:
        raise ConfigError(name, value, "a number of seconds above 0, or None for no limit")


def whole(owner: object, name: str, low: int, *, optional: bool = False) -> None:
    value = getattr(owner, name)
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(
            label(owner, name), value, f"a whole number of at least {low}" + (", or None" if optional else "")
        )


def file_path(owner: object, name: str) -> None:
    """A str, or None."""
    value = getattr(owner, name)
    if value is not None and not (isinstance(value, str) and value and "\0" not in value):
        raise ConfigError(label(owner, name), value, "the path of a file, or None")


def label(owner: object, name: str) -> str:
    return f"{type(owner).__name__}.{name}"
