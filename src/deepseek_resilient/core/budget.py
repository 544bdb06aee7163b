"""The retry budget: what keeps retries a small share of the traffic, whatever fails.

A token bucket. Each call adds `ratio` tokens, each second `per_second`; a retry takes 1, or does not happen. The bucket
starts full at `reserve` and never holds more. So over any time, with n calls in t seconds:

    retries <= reserve + ratio * n + per_second * t

Sources: Finagle's RetryBudget (deposit per request, withdrawal per retry, a minimum rate for rare calls); "Handling
Overload" in Google's SRE book (a client-wide retry share of 10 %).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deepseek_resilient.config import BudgetPolicy


@dataclass(frozen=True, slots=True)
class BudgetStatistics:
    """A look at the bucket: tokens now, withdrawals granted and refused since the start."""

    tokens: float
    granted: int
    refused: int


class RetryBudget:
    """One bucket for all retries of one engine. Thread-safe."""

    __slots__ = ("_granted", "_lock", "_policy", "_refused", "_tokens", "_updated")

    def __init__(self, policy: BudgetPolicy, lock: AbstractContextManager[object], now: float) -> None:
        self._policy = policy
        self._lock = lock
        self._tokens = float(policy.reserve)
        self._updated = now
        self._granted = 0
        self._refused = 0

    def deposit(self) -> None:
        """A call begins."""
        policy = self._policy
        with self._lock:
            self._tokens = min(self._tokens + policy.ratio, policy.reserve)

    def try_withdraw(self, now: float) -> bool:
        """Pay for one retry; False when the budget does not allow it."""
        policy = self._policy
        with self._lock:
            gained = max(now - self._updated, 0.0) * policy.per_second
            self._tokens = min(self._tokens + gained, policy.reserve)
            self._updated = max(now, self._updated)
            if self._tokens < 1.0:
                self._refused += 1
                return False
            self._tokens -= 1.0
            self._granted += 1
            return True

    def refund(self) -> None:
        """A retry that was paid for was not sent after all."""
        with self._lock:
            self._tokens = min(self._tokens + 1.0, self._policy.reserve)
            self._granted -= 1

    def statistics(self) -> BudgetStatistics:
        """Tokens as of the last withdrawal, and the counts."""
        with self._lock:
            return BudgetStatistics(self._tokens, self._granted, self._refused)
