"""The parts of the policy that decide about one call at a time: retries and their budget, gate, breaker, streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import tenacity

from deepseek_resilient.backoff import wait_full_jitter
from deepseek_resilient.config.checks import label, number, whole
from deepseek_resilient.errors import ConfigError

StopStrategy = Callable[[tenacity.RetryCallState], bool]
WaitStrategy = Callable[[tenacity.RetryCallState], float]

_SIX_ATTEMPTS = tenacity.stop_after_attempt(6)
_JITTER = wait_full_jitter(initial=0.5, maximum=8.0)


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
                raise ConfigError(label(self, name), getattr(self, name), f"a tenacity strategy such as {example}")
        number(self, "max_retry_after", 0, above=True)


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
        number(self, "ratio", 0, 1)
        number(self, "reserve", 0)
        number(self, "per_second", 0)


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
        number(self, "spread", 0, 10)
        number(self, "min_spread", 0)
        number(self, "rest", 0)


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
        when_open: "pause" lets a call wait for the next probes if they are due soon, for max_break_duration, 1 s and a
            quarter of its time at most, and else refuses it with 503 and Retry-After; "refuse" does so at once; "wait"
            lets it wait for as long as its deadline allows (batch jobs).
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
    when_open: Literal["pause", "refuse", "wait"] = "pause"

    def __post_init__(self) -> None:
        number(self, "failure_ratio", 0, 1, above=True)
        whole(self, "minimum_throughput", 1)
        number(self, "sampling_duration", 0, above=True)
        number(self, "slow_call_duration", 0, above=True, optional=True)
        number(self, "break_duration", 0, above=True)
        number(self, "break_growth", 1)
        number(self, "max_break_duration", self.break_duration)
        number(self, "jitter", 0, 0.99)
        whole(self, "probes", 1)
        number(self, "probe_interval", 0)
        whole(self, "probe_successes", 1)
        if self.when_open not in ("pause", "refuse", "wait"):
            raise ConfigError(label(self, "when_open"), self.when_open, '"pause", "refuse" or "wait"')


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
        continuations: how often a chat stream that broke off after content is gone on with, by DeepSeek's prefix
            completion, >= 0. Each is an attempt to `RetryPolicy.stop`. All upstreams must know prefix completion (a
            server that does not have the address answers 404).
        continue_within: seconds from the cut until the next content, > 0.
    """

    first_content: float | None = 60.0
    silence: float | None = 60.0
    require_done: bool = True
    partial_limit: int = 1_048_576
    continuations: int = 0
    continue_within: float = 30.0

    def __post_init__(self) -> None:
        number(self, "first_content", 0, above=True, optional=True)
        number(self, "silence", 0, above=True, optional=True)
        if not isinstance(self.require_done, bool):
            raise ConfigError(label(self, "require_done"), self.require_done, "True or False")
        whole(self, "partial_limit", 0)
        whole(self, "continuations", 0)
        number(self, "continue_within", 0, above=True)
