"""Rate limits of our own, for hosts that limit requests or tokens per minute."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_resilient.config.checks import number


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePolicy:
    """How many requests and tokens may leave per minute (`core/rate.py` has the formula). Off by default: DeepSeek
    limits concurrency, other hosts limit rates.

    With `rate` per second and `capacity = burst * rate` (of requests at least 1), at most `capacity + rate * W` pass in
    any window of W seconds. A request of more tokens than their capacity can never pass and is refused as such: for
    requests of up to n tokens, `burst` must be at least `60 * n / tokens_per_minute`. To stay within a host's limit of
    N per minute in each of its minutes, ask for `N * 60 / (60 + burst)`. What an answer took less than estimated comes
    back when it is known within `burst` seconds.

    Attributes:
        requests_per_minute: requests, > 0; None = no limit.
        tokens_per_minute: tokens, > 0; None = no limit.
        burst: seconds' worth of the rates that may pass at once, > 0.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst: float = 10.0

    def __post_init__(self) -> None:
        number(self, "requests_per_minute", 0, above=True, optional=True, unit="per minute")
        number(self, "tokens_per_minute", 0, above=True, optional=True, unit="per minute")
        number(self, "burst", 0, above=True)
