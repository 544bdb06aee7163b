"""Waiting between attempts, as tenacity strategies that can be combined with tenacity's own.

Full jitter: `delay = uniform(0, min(maximum, initial * base ** (n - 1)))` before attempt n + 1 (n = 1, 2, ...).
Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: of the jittered schemes it leaves
the fewest collisions for the work done. A fixed fraction of jitter (the OpenAI SDK's 25 %) keeps clients in step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tenacity

if TYPE_CHECKING:
    from random import Random


class AttemptState(tenacity.RetryCallState):
    """What a `stop` or `wait` strategy may look at; built only after an attempt failed.

    On top of tenacity's `attempt_number`, `seconds_since_start` and `idle_for` it has `random` (the engine's own, so
    that a seeded run repeats exactly), `reason` (the verdict's) and `retry_after` (seconds, None when not stated).
    """

    def __init__(
        self, *, attempt: int, started: float, now: float, idle: float, random: Random, reason: str,
        retry_after: float | None,
    ) -> None:  # fmt: skip
        super().__init__(_NO_CONTROLLER, None, (), {})
        self.attempt_number = attempt
        self.start_time = started
        self.outcome_timestamp = now
        self.idle_for = idle
        self.random = random
        self.reason = reason
        self.retry_after = retry_after


class wait_full_jitter(tenacity.wait_random_exponential):  # noqa: N801 -- tenacity names its strategies like functions
    """Wait between 0 and `min(maximum, initial * base ** (n - 1))` seconds after the n-th attempt, uniformly.

    Args:
        initial: the first ceiling, seconds, > 0.
        maximum: the highest ceiling, seconds, >= initial.
        base: growth per attempt, >= 1.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, initial: float = 0.5, maximum: float = 8.0, base: float = 2.0) -> None:
        if not (0 < initial <= maximum and base >= 1):
            raise ValueError(
                f"wait_full_jitter needs 0 < initial <= maximum and base >= 1, not {initial}, {maximum}, {base}"
            )
        super().__init__(multiplier=float(initial), max=float(maximum), exp_base=float(base))

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        if not isinstance(retry_state, AttemptState):
            return super().__call__(retry_state)
        ceiling = tenacity.wait_exponential.__call__(self, retry_state)
        return retry_state.random.uniform(0, ceiling)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, wait_full_jitter) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"wait_full_jitter(initial={self.multiplier}, maximum={self.max}, base={self.exp_base})"


_NO_CONTROLLER = tenacity.Retrying(reraise=True)
"""RetryCallState asks for a controller; ours is never run: only the strategy objects of tenacity are used."""
