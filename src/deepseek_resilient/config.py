"""`Policy`: every setting, with its default, its range and what it decides.

All parts are frozen, compared by value and shared freely between threads; vary one with `dataclasses.replace`. Times
are seconds as float, None means off. A wrong type or value raises `ConfigError`, which names the field, the value and
what is allowed. The measurements behind the defaults are in `docs/reference.md`.

Precedence: call, client, environment (`from_env`, the only place that reads it), preset.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import tenacity

from deepseek_resilient.backoff import wait_full_jitter
from deepseek_resilient.errors import ConfigError

StopStrategy = Callable[[tenacity.RetryCallState], bool]
WaitStrategy = Callable[[tenacity.RetryCallState], float]

ENV_PREFIX = "DEEPSEEK_RESILIENT_"

_SIX_ATTEMPTS = tenacity.stop_after_attempt(6)
_JITTER = wait_full_jitter(initial=0.5, maximum=8.0)
_TEN_ATTEMPTS = tenacity.stop_after_attempt(10)
_HUGE = sys.float_info.max


def _number(
    owner: object, name: str, low: float, high: float = math.inf, *, optional: bool = False, above: bool = False
) -> None:
    value = getattr(owner, name)
    if value is None and optional:
        return
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and -_HUGE <= value <= _HUGE
    if not (good and (low < value if above else low <= value) and value <= high):
        allowed = f"a number {'above' if above else 'of at least'} {low:g}"
        if high != math.inf:
            allowed += f" and at most {high:g}"
        raise ConfigError(_label(owner, name), value, allowed + (" (seconds), or None" if optional else ""))


def _whole(owner: object, name: str, low: int) -> None:
    value = getattr(owner, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(_label(owner, name), value, f"a whole number of at least {low}")


def _label(owner: object, name: str) -> str:
    return f"{type(owner).__name__}.{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed attempt is repeated, and after what wait.

    Attributes:
        stop: a tenacity `stop_*` object, or a function of the same shape; combine with `|` and `&`. Asked after a
            failure, with the coming wait in `upcoming_sleep`.
        wait: a tenacity `wait_*` object; combine with `+`. A Retry-After of the server goes before it.
        max_retry_after: the longest Retry-After in seconds that a call sits out, > 0. A longer one ends the call with
            the server's own error; the gate of the target stays closed for this long.
    """

    stop: StopStrategy = _SIX_ATTEMPTS
    wait: WaitStrategy = _JITTER
    max_retry_after: float = 120.0

    def __post_init__(self) -> None:
        for name, example in (("stop", "tenacity.stop_after_attempt(4)"), ("wait", "wait_full_jitter()")):
            if not callable(getattr(self, name)):
                raise ConfigError(_label(self, name), getattr(self, name), f"a tenacity strategy such as {example}")
        _number(self, "max_retry_after", 0, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPolicy:
    """How much of the traffic may be retries: one token bucket per engine (`core/budget.py` has the formula).

    Attributes:
        ratio: tokens that each call adds, 0 to 1. Each retry takes 1, so in the long run this is the most
            that retries can be of the traffic.
        reserve: tokens at the start and the most that is ever saved up, >= 0.
        per_second: tokens added per second whatever the traffic, >= 0, so that rare calls may be retried for ever.
    """

    ratio: float = 0.1
    reserve: float = 10.0
    per_second: float = 0.1

    def __post_init__(self) -> None:
        _number(self, "ratio", 0, 1)
        _number(self, "reserve", 0)
        _number(self, "per_second", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """What a Retry-After, or an exhausted balance, does to all other calls to that target.

    Attributes:
        spread: waiting calls are released over this share of the time the gate was closed, 0 to 10 ...
        min_spread: ... and over at least this many seconds, >= 0.
        rest: how long a target rests after a 402 (balance exhausted), seconds, >= 0.
    """

    spread: float = 0.5
    min_spread: float = 0.1
    rest: float = 120.0

    def __post_init__(self) -> None:
        _number(self, "spread", 0, 10)
        _number(self, "min_spread", 0)
        _number(self, "rest", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a target is left alone because it fails. Names after Polly 8; off with `Policy(breaker=None)`.

    Attributes:
        failure_ratio: opens when at least this share of the window's attempts failed, above 0, to 1.
        minimum_throughput: ... and the window holds at least this many attempts, >= 1.
        sampling_duration: length of the sliding window, seconds, > 0.
        slow_call_duration: an attempt whose first content is later than this counts as failed too, seconds; None = off.
        break_duration: how long the circuit stays open the first time, seconds, > 0.
        break_growth: each opening without a recovery in between lasts this much longer, >= 1 ...
        max_break_duration: ... up to this, seconds, >= break_duration.
        jitter: each break is drawn from `duration * (1 ± jitter)`, 0 to below 1, so that clients do not probe in step.
        probes: attempts let through at once while half-open, >= 1 ...
        probe_interval: ... one per this many seconds, >= 0.
        probe_successes: good answers that close the circuit, >= 1.
        when_open: "refuse" answers at once with 503 and Retry-After; "wait" lets calls wait for the next probe as long
            as their deadline allows (batch jobs).
    """

    failure_ratio: float = 0.5
    minimum_throughput: int = 20
    sampling_duration: float = 5.0
    slow_call_duration: float | None = None
    break_duration: float = 0.25
    break_growth: float = 2.0
    max_break_duration: float = 1.0
    jitter: float = 0.1
    probes: int = 3
    probe_interval: float = 0.1
    probe_successes: int = 2
    when_open: Literal["refuse", "wait"] = "refuse"

    def __post_init__(self) -> None:
        _number(self, "failure_ratio", 0, 1, above=True)
        _whole(self, "minimum_throughput", 1)
        _number(self, "sampling_duration", 0, above=True)
        _number(self, "slow_call_duration", 0, above=True, optional=True)
        _number(self, "break_duration", 0, above=True)
        _number(self, "break_growth", 1)
        _number(self, "max_break_duration", self.break_duration)
        _number(self, "jitter", 0, 0.99)
        _whole(self, "probes", 1)
        _number(self, "probe_interval", 0)
        _whole(self, "probe_successes", 1)
        if self.when_open not in ("refuse", "wait"):
            raise ConfigError(_label(self, "when_open"), self.when_open, '"refuse" or "wait"')


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPolicy:
    """What a streamed answer must show.

    Attributes:
        first_content: seconds from the start of an attempt until the first content; keep-alives are no content.
            None = only the call's deadline.
        silence: the longest pause between two pieces of content, seconds; keep-alives do not end it. None = off.
        require_done: an end without `finish_reason` and `[DONE]` is a cut (False: `finish_reason` is enough).
        partial_limit: bytes of a stream kept unparsed for the partial text of a cut, >= 0; beyond it they are parsed as
            they come.
    """

    first_content: float | None = 60.0
    silence: float | None = 60.0
    require_done: bool = True
    partial_limit: int = 1_048_576

    def __post_init__(self) -> None:
        _number(self, "first_content", 0, above=True, optional=True)
        _number(self, "silence", 0, above=True, optional=True)
        if not isinstance(self.require_done, bool):
            raise ConfigError(_label(self, "require_done"), self.require_done, "True or False")
        _whole(self, "partial_limit", 0)


_PARTS: tuple[tuple[str, type, bool], ...] = (
    ("retry", RetryPolicy, False),
    ("budget", BudgetPolicy, False),
    ("gate", GatePolicy, False),
    ("breaker", BreakerPolicy, True),
    ("stream", StreamPolicy, False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything the engine may be told.

    Attributes:
        deadline: the whole call, waits and retries included, seconds; for a stream until its first content. `timeout=`
            of a client or a call goes before it. None = no limit.
        connect_timeout: one connection, seconds, > 0.
        attempt_timeout: one attempt: a buffered answer until it is complete, a stream until its first content, seconds.
            None = only the deadline.
    """

    deadline: float | None = 600.0
    connect_timeout: float = 5.0
    attempt_timeout: float | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)
    gate: GatePolicy = field(default_factory=GatePolicy)
    breaker: BreakerPolicy | None = field(default_factory=BreakerPolicy)
    stream: StreamPolicy = field(default_factory=StreamPolicy)

    def __post_init__(self) -> None:
        _number(self, "deadline", 0, above=True, optional=True)
        _number(self, "connect_timeout", 0, above=True)
        _number(self, "attempt_timeout", 0, above=True, optional=True)
        for name, kind, optional in _PARTS:
            value = getattr(self, name)
            if not isinstance(value, kind) and not (optional and value is None):
                allowed = f"a {kind.__name__}" + (", or None to turn it off" if optional else "")
                raise ConfigError(_label(self, name), value, allowed)

    @classmethod
    def interactive(cls) -> Policy:
        """Someone is waiting: a minute at most, 20 s until the first content, at most 20 s of silence."""
        return cls(deadline=60.0, stream=StreamPolicy(first_content=20.0, silence=20.0))

    @classmethod
    def agent(cls) -> Policy:
        """Long turns of a program: ten minutes, but a stream that is silent for 30 s is given up early."""
        return cls(stream=StreamPolicy(first_content=60.0, silence=30.0))

    @classmethod
    def batch(cls) -> Policy:
        """Nobody is waiting: an hour, more attempts, longer waits, and calls wait while a circuit is open."""
        return cls(
            deadline=3600.0,
            retry=RetryPolicy(stop=_TEN_ATTEMPTS, wait=wait_full_jitter(initial=1.0, maximum=60.0)),
            breaker=BreakerPolicy(when_open="wait"),
            stream=StreamPolicy(first_content=600.0, silence=120.0),
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Policy:
        """A policy from the environment: `DEEPSEEK_RESILIENT_PRESET` and one variable per setting on top of it.

        A variable is the prefix and the field in capitals, a part's field with the part before it:
        `DEEPSEEK_RESILIENT_DEADLINE=30`, `DEEPSEEK_RESILIENT_STREAM_SILENCE=15`, `DEEPSEEK_RESILIENT_BREAKER=off`,
        `DEEPSEEK_RESILIENT_RETRY_ATTEMPTS=3`. "none" or "off" turns an optional setting off.

        Raises:
            ConfigError: an unknown name under the prefix, or a value that is not allowed.
        """
        found = {k: v for k, v in (os.environ if environ is None else environ).items() if k.startswith(ENV_PREFIX)}
        preset = found.pop(f"{ENV_PREFIX}PRESET", "default").strip().lower()
        presets: dict[str, Callable[[], Policy]] = {
            "default": cls, "interactive": cls.interactive, "agent": cls.agent, "batch": cls.batch,
        }  # fmt: skip
        if preset not in presets:
            raise ConfigError(f"{ENV_PREFIX}PRESET", preset, " or ".join(presets))
        policy = presets[preset]()
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
    if name == "breaker":
        if text.lower() not in ("on", "off"):
            raise ConfigError(variable, text, '"on" or "off"')
        return replace(policy, breaker=(policy.breaker or BreakerPolicy()) if text.lower() == "on" else None)
    part_name, _, part_field = name.partition("_")
    part = getattr(policy, part_name, None) if part_name in {p[0] for p in _PARTS} else None
    owner: Any = policy if part is None else part
    key = name if part is None else part_field
    types = {f.name: str(f.type) for f in fields(owner) if f.name not in ("stop", "wait", *(p[0] for p in _PARTS))}
    if part_name == "breaker" and part is None:
        raise ConfigError(variable, text, "left unset while the breaker is off")
    if key not in types:
        raise ConfigError(variable, text, f"one of the known names ({', '.join(_known())})")
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
        if kind == "int":
            return int(text)
        if "float" in kind:
            return float(text)
    except ValueError:
        pass
    return text


def _known() -> list[str]:
    names = [f.name for f in fields(Policy) if f.name not in {p[0] for p in _PARTS}]
    for part, kind, _ in _PARTS:
        names += [f"{part}_{f.name}" for f in fields(kind) if f.name not in ("stop", "wait")]
    return [ENV_PREFIX + n.upper() for n in ["preset", "breaker", "retry_attempts", *names]]
