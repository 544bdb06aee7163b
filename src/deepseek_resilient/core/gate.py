"""The gate of a target: when it asks to be left alone, *all* calls leave it alone.

A Retry-After answered to one call is news for every other call. The gate closes until then; calls that can wait are
released with a spread, `uniform(0, max(min_spread, spread * seconds closed))` after the opening, so that the opening
is no new storm; calls that cannot wait are refused with the status that closed the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from random import Random

    from deepseek_resilient.config import GatePolicy


@dataclass(frozen=True, slots=True)
class GateStatistics:
    """A look at the gate: seconds until it opens (0 when open), why it is closed, and how often it closed."""

    closed_for: float
    reason: str
    closings: int


@dataclass(frozen=True, slots=True)
class Closed:
    """Why and for how long a gate is closed. `patient` is False where waiting is pointless (an exhausted balance)."""

    remaining: float
    delay: float
    status: int
    reason: str
    patient: bool


class Gate:
    """One per target. Thread-safe."""

    __slots__ = (
        "_closed_at",
        "_closings",
        "_lock",
        "_opens_at",
        "_patient",
        "_policy",
        "_random",
        "_reason",
        "_status",
    )

    def __init__(self, policy: GatePolicy, lock: AbstractContextManager[object], random: Random) -> None:
        self._policy = policy
        self._lock = lock
        self._random = random
        self._opens_at = 0.0
        self._closed_at = 0.0
        self._status = 0
        self._reason = ""
        self._patient = True
        self._closings = 0

    def close(self, now: float, seconds: float, *, status: int, reason: str, patient: bool = True) -> bool:
        """Keep the gate closed for `seconds` from `now`; never opens it earlier. True when that changed something."""
        with self._lock:
            if seconds <= 0 or now + seconds <= self._opens_at:
                return False
            if now >= self._opens_at:
                self._closings += 1
                self._closed_at = now
            self._opens_at = now + seconds
            self._status, self._reason, self._patient = status, reason, patient
            return True

    def check(self, now: float) -> Closed | None:
        """None when calls may pass; otherwise for how long not, with this call's own release delay."""
        if now >= self._opens_at:
            return None
        with self._lock:
            remaining = self._opens_at - now
            policy = self._policy
            spread = max(policy.min_spread, policy.spread * (self._opens_at - self._closed_at))
            delay = remaining + self._random.uniform(0, spread)
            return Closed(remaining, delay, self._status, self._reason, self._patient)

    def statistics(self, now: float) -> GateStatistics:
        """How it stands at `now`."""
        with self._lock:
            closed_for = max(self._opens_at - now, 0.0)
            return GateStatistics(closed_for, self._reason if closed_for else "", self._closings)
