"""The simulated DeepSeek's settings: one frozen value, and how a flat JSON object changes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

from .asks import MODELS
from .capacity import CapacitySettings

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """How the simulated DeepSeek behaves when no fault is at work.

    Waiting requests get a keep-alive each `keep_alive_interval` seconds (None: the head is sent when service starts),
    and are cut off after `queue_timeout` seconds in the queue (None: never). An answer has at least `answer_tokens`
    tokens. Keys are those in `api_keys`, or any that does not contain "invalid" where it is None.
    """

    capacity: CapacitySettings = field(default_factory=CapacitySettings)
    keep_alive_interval: float | None = None
    queue_timeout: float | None = 600.0
    answer_tokens: int = 0
    models: tuple[str, ...] = MODELS
    api_keys: frozenset[str] | None = None

    def __post_init__(self) -> None:
        for name in ("keep_alive_interval", "queue_timeout"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be None or seconds above 0, not {value!r}")
        if self.answer_tokens < 0:
            raise ValueError(f"answer_tokens must be at least 0, not {self.answer_tokens!r}")
        if not self.models:
            raise ValueError("models must name at least one")

    def changed(self, changes: Mapping[str, Any]) -> LabSettings:
        """With the named fields changed, those of `capacity` among them by their own names; `rate` (requests per
        second) sets the slots. An unknown name or a bad value is a ValueError."""
        own: dict[str, Any] = {}
        size: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in _CHECKS:
                raise ValueError(f"unknown setting {name!r}; known are: {', '.join(sorted(_CHECKS))}")
            kinds = _CHECKS[name]
            if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
                raise ValueError(f"setting {name} has the wrong type: {value!r}")
            (size if name in _CAPACITY else own)[name] = value
        if (rate := size.pop("rate", None)) is not None:
            seconds = size.get("service_time", self.capacity.service_time)
            size["slots"], size["service_time"] = CapacitySettings.slots_for(rate, seconds)
        if "models" in own:
            own["models"] = tuple(str(name) for name in own["models"])
        if own.get("api_keys") is not None:
            own["api_keys"] = frozenset(str(key) for key in own["api_keys"])
        return replace(self, capacity=replace(self.capacity, **size), **own)


_NONE: Final = type(None)
_CAPACITY: Final = {*(item.name for item in fields(CapacitySettings)), "rate"}
_CHECKS: Final[dict[str, tuple[type, ...]]] = {
    "slots": (int,),
    "service_time": (int, float),
    "distribution": (str,),
    "queue_limit": (int, _NONE),
    "wasted": (bool,),
    "concurrency_limit": (int, _NONE),
    "rate": (int, float),
    "keep_alive_interval": (int, float, _NONE),
    "queue_timeout": (int, float, _NONE),
    "answer_tokens": (int,),
    "models": (list, tuple),
    "api_keys": (list, tuple, frozenset, _NONE),
}
