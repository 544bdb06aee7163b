"""What can go wrong, as data, and when: everything that DeepSeek's wire is known to do to a client.

A `Fault` is a kind with checked parameters. A `FaultScript` decides which fault a request meets: the one its
`x-lab-fault` header names, else the next of a list, else that of a window of time. `KINDS` is the catalogue.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from random import Random

Value = float | str | bool | None

HEADER: Final = "x-lab-fault"


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter's type, default and range; `required` ones have no default."""

    type: type[float] | type[int] | type[str] | type[bool]
    default: Value = None
    least: float = 0
    most: float = math.inf
    choices: tuple[str, ...] = ()
    required: bool = False

    def check(self, where: str, value: object) -> Value:
        """The value in its own type; text is converted, anything out of range is a ValueError."""
        if value is None and not self.required:
            return None
        if self.type is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in ("true", "1", "false", "0"):
                return value.lower() in ("true", "1")
            raise ValueError(f"{where} must be true or false, not {value!r}")
        if self.type is str:
            if not isinstance(value, str) or not value.isprintable() or (self.choices and value not in self.choices):
                raise ValueError(f"{where} must be {' or '.join(self.choices) or 'printable text'}, not {value!r}")
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(f"{where} must be a number, not {value!r}")
        try:
            number = int(value) if self.type is int else float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{where} must be a number, not {value!r}") from None
        if not self.least <= number <= self.most or math.isinf(number):
            raise ValueError(f"{where} must be from {self.least:g} to {self.most:g}, not {value!r}")
        return number


def _seconds(default: float | None = 0.0, *, required: bool = False) -> _Parameter:
    return _Parameter(float, default, required=required)


def _count(default: int | None, least: int = 0, most: float = math.inf, *, required: bool = False) -> _Parameter:
    return _Parameter(int, default, least, most, required=required)


def _text(default: str | None = None, *choices: str) -> _Parameter:
    return _Parameter(str, default, choices=choices)


_DELAY: Final = {"delay": _seconds()}
_HINTS: Final = {
    "retry_after": _text(),  # text, so that fractions, dates and nonsense can be sent as they are
    "retry_after_ms": _text(),
    "retry_after_date": _seconds(None),
    "should_retry": _Parameter(bool),
}
_AFTER: Final = {"after": _count(3)}
_INTERVAL: Final = _Parameter(float, 0.5, least=0.001)

_CATALOGUE: Final[dict[str, dict[str, _Parameter]]] = {
    "ok": {},
    # instead of an answer, before any work
    "status": {
        "status": _count(None, 200, 599, required=True),
        "message": _text(),
        "type": _text(),
        **_HINTS,
        **_DELAY,
    },
    "outage_503": {"message": _text(), **_HINTS, **_DELAY},
    "throttle_429": {"current": _count(26), "limit": _count(25), "message": _text(), **_HINTS, **_DELAY},
    "balance_402": {"message": _text(), **_DELAY},
    "html_500": _DELAY,
    "html_502": _DELAY,
    "html_504": _DELAY,
    "wrong_content_type": {"status": _count(400, 200, 599), "message": _text(), **_DELAY},
    "hang": {},
    "refuse": _DELAY,
    "reset": _DELAY,
    "blank_200": {"duration": _seconds(), "interval": _INTERVAL},
    "keep_alive_forever": {"interval": _INTERVAL},
    # around or inside an answer
    "keep_alive": {"duration": _seconds(1.0), "interval": _INTERVAL},
    "slow_first_token": {"delay": _seconds(1.0)},
    "stall": _AFTER,
    "cut": {**_AFTER, "how": _text("clean", "clean", "abort", "reset"), "utf8": _Parameter(bool, False)},
    "no_done": {},
    "insufficient_system_resource": {},
    "error_in_stream": {"after": _count(0), "message": _text("Internal server error"), "type": _text("server_error")},
    "empty_content": {},
    "length_no_content": {},
    "reasoning_only": {},
    "garbage": {**_AFTER, "size": _count(64, 1, 1 << 20)},
    "gzip": {},
    "slow_drip": {"interval": _Parameter(float, 0.001, least=0.0), "size": _count(1, 1)},
    "crlf": {"ending": _text("crlf", "crlf", "cr")},
    "other_model": {"model": _text("deepseek-flash-0731")},
    "brown_out": {"factor": _Parameter(float, 5.0, least=0.0)},
}

IMMEDIATE: Final = frozenset(
    ("status", "outage_503", "throttle_429", "balance_402", "html_500", "html_502", "html_504")
) | {"wrong_content_type", "hang", "refuse", "reset", "blank_200", "keep_alive_forever"}
"""Kinds that take no slot: the request never reaches a worker."""

HARMLESS: Final = frozenset(
    ("ok", "keep_alive", "slow_first_token", "gzip", "slow_drip", "crlf", "brown_out", "other_model")
)
"""Kinds after which the client has a whole, good answer all the same."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind and its parameters, all of them set. Make one with `Fault.of`, `Fault.parse` or `Fault.from_json`."""

    kind: str
    parameters: Mapping[str, Value]

    @classmethod
    def of(cls, kind: str, /, **parameters: object) -> Fault:
        """A checked fault: `Fault.of("stall", after=2)`. An unknown kind or a bad parameter is a ValueError."""
        known = _CATALOGUE.get(kind)
        if known is None:
            raise ValueError(f"unknown fault {kind!r}; known are: {', '.join(_CATALOGUE)}")
        unknown = parameters.keys() - known.keys()
        if unknown:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"fault {kind!r} has no parameter {sorted(unknown)[0]!r}; it has: {allowed}")
        values: dict[str, Value] = {}
        for name, parameter in known.items():
            if name in parameters:
                values[name] = parameter.check(f"{name} of fault {kind!r}", parameters[name])
            elif parameter.required:
                raise ValueError(f"fault {kind!r} needs {name!r}")
            else:
                values[name] = parameter.default
        return cls(kind, MappingProxyType(values))

    @classmethod
    def parse(cls, text: str) -> Fault:
        """From the header's form, `kind` or `kind;key=value;key=value`."""
        kind, *rest = (part.strip() for part in text.split(";"))
        parameters: dict[str, object] = {}
        for part in filter(None, rest):
            name, sign, value = part.partition("=")
            if not sign:
                raise ValueError(f"fault parameter {part!r} is not of the form key=value")
            parameters[name.strip()] = value.strip()
        return cls.of(kind, **parameters)

    @classmethod
    def from_json(cls, data: object) -> Fault:
        """From `"kind;key=value"`, or an object with a `kind` and the parameters beside it."""
        if isinstance(data, str):
            return cls.parse(data)
        if isinstance(data, dict) and isinstance(data.get("kind"), str):
            # retry-after is text on the wire, and a number in every script
            texts = {"retry_after", "retry_after_ms"}
            return cls.of(
                data["kind"],
                **{
                    str(name): str(value) if name in texts and isinstance(value, (int, float)) else value
                    for name, value in data.items()
                    if name != "kind"
                },
            )
        raise ValueError(f"a fault is text or an object with a 'kind', not {data!r}")

    def number(self, name: str) -> float:
        """A numeric parameter; 0 where it is unset."""
        value = self.parameters.get(name)
        return float(value) if isinstance(value, (int, float)) else 0.0

    def count(self, name: str) -> int:
        """A whole-number parameter; 0 where it is unset."""
        return int(self.number(name))

    def text(self, name: str) -> str:
        """A text parameter; empty where it is unset."""
        value = self.parameters.get(name)
        return value if isinstance(value, str) else ""


OK: Final = Fault.of("ok")
KINDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({kind: tuple(p) for kind, p in _CATALOGUE.items()})
"""Every kind with the names of its parameters."""


@dataclass(frozen=True, slots=True)
class Window:
    """A fault that each request meets with `probability` from `start` for `duration` seconds, counted from the time
    the script was installed."""

    fault: Fault
    start: float = 0.0
    duration: float = math.inf
    probability: float = 1.0

    def __post_init__(self) -> None:
        if not (self.start >= 0 and self.duration >= 0 and 0 <= self.probability <= 1):
            raise ValueError(
                f"a window needs start and duration from 0 up and a probability from 0 to 1, not {self.start!r}, "
                f"{self.duration!r}, {self.probability!r}"
            )

    @classmethod
    def from_json(cls, data: object) -> Window:
        """From text as `Fault.parse` takes it (open from now on), or from an object with `kind` (or `fault`), `start`,
        `duration`, `probability`, and the fault's parameters."""
        if isinstance(data, str):
            return cls(Fault.parse(data))
        if not isinstance(data, dict):
            raise ValueError(f"a window is text or an object, not {data!r}")
        rest: dict[str, Any] = dict(data)
        times: dict[str, float] = {}
        # a fault may have a duration of its own: then it comes as an object under "fault"
        for name in ("start", "duration", "probability"):
            if (value := rest.pop(name, None)) is not None:
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ValueError(f"{name} of a window must be a number, not {value!r}")
                times[name] = float(value)
        if "fault" in rest:
            fault = Fault.from_json(rest.pop("fault"))
            if rest:
                raise ValueError(f"a window has no {sorted(rest)[0]!r} beside 'fault'")
        else:
            fault = Fault.from_json(rest)
        return cls(fault, **times)

    def covers(self, since: float) -> bool:
        """Whether it is open `since` seconds after installation."""
        return self.start <= since < self.start + self.duration


class FaultScript:
    """Decides which fault each inference request meets. Times are seconds of the scheduler; not thread-safe.

    A brown-out in a window slows all work that starts while it is open and leaves the requests their other faults; its
    probability counts for nothing.
    """

    __slots__ = ("_brown_outs", "_installed", "_next", "_windows")

    def __init__(self, next: Iterable[Fault] = (), windows: Iterable[Window] = (), installed: float = 0.0) -> None:
        self._next = deque(next)
        self._installed = installed
        self._set_windows(windows)

    @property
    def pending(self) -> int:
        """How many faults of the list are still to be met."""
        return len(self._next)

    def replace(self, now: float, next: Iterable[Fault] | None, windows: Iterable[Window] | None) -> None:
        """Put another list, other windows (counted from `now`), or both in force; None leaves that part alone."""
        if next is not None:
            self._next = deque(next)
        if windows is not None:
            self._set_windows(windows)
            self._installed = now

    def take(self, now: float, header: str | None, rng: Random) -> Fault:
        """The fault of a request that arrives at `now`: its header's, else the list's next, else an open window's."""
        if header is not None:
            return Fault.parse(header)
        if self._next:
            return self._next.popleft()
        since = now - self._installed
        for window in self._windows:
            if window.covers(since) and (window.probability >= 1 or rng.random() < window.probability):
                return window.fault
        return OK

    def slowdown(self, now: float) -> float:
        """The factor on the service time of work that starts at `now`: the product of the open brown-outs."""
        factor = 1.0
        for window in self._brown_outs:
            if window.covers(now - self._installed):
                factor *= window.fault.number("factor")
        return factor

    def _set_windows(self, windows: Iterable[Window]) -> None:
        windows = tuple(windows)
        self._windows = tuple(window for window in windows if window.fault.kind != "brown_out")
        self._brown_outs = tuple(window for window in windows if window.fault.kind == "brown_out")
