"""Prices at an instant, and the budget for what is extra.

    cost = (hit * cached + miss * (prompt - cached) + output * answer) / 10^6 * (peak, at peak hours)

The budget bounds any minute and any day, not calendar ones: spending is kept in sixty slots of the span and leaves when
its whole slot is older than the span. So no span ever sees more than its limit, save for what was estimated too low.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_resilient.config import LedgerPolicy, Price
    from deepseek_resilient.usage import Usage

_DAY = 86_400.0
_SLOTS = 60
DUST = 1e-12
"""What sums of floats may be off by, US dollars."""


class Prices:
    """The price table of one policy, by model and time."""

    def __init__(self, policy: LedgerPolicy, known: tuple[Price, ...]) -> None:
        self._prices = {price.model: price for price in (*known, *policy.prices)}
        self._peaks = tuple((first * 3600.0, last * 3600.0) for first, last in policy.peak_hours)
        epoch = date(1970, 1, 1)
        self._holidays = frozenset((date.fromisoformat(day) - epoch).days for day in policy.holidays)
        self._known = (0.0, 0.0, False)

    def cost(self, model: str, usage: Usage, wall: float) -> float | None:
        """US dollars for these tokens at that time (Unix seconds); None for a model without a price."""
        price = self._prices.get(model)
        if price is None:
            return None
        prompt, cached, output = usage
        cost = (price.hit * cached + price.miss * (prompt - cached) + price.output * output) / 1e6
        if price.peak != 1.0:
            since, until, peak = self._known
            if peak if since <= wall < until else self.is_peak(wall):
                cost *= price.peak
        return cost

    def is_peak(self, wall: float) -> bool:
        """Whether that is in peak hours."""
        day, second = divmod(wall, _DAY)
        edges = [0.0, _DAY, *(edge for peak in self._peaks for edge in peak)]
        since, until = max(edge for edge in edges if edge <= second), min(edge for edge in edges if edge > second)
        free = (day + 3) % 7 >= 5 or day in self._holidays  # day 0 was a Thursday
        peak = not free and any(first <= second < last for first, last in self._peaks)
        self._known = (day * _DAY + since, day * _DAY + until, peak)  # it is so until then
        return peak


class _Span:
    """What was spent in the last `seconds`."""

    __slots__ = ("_slots", "_width", "limit")

    def __init__(self, limit: float | None, seconds: float) -> None:
        self.limit = limit
        self._width = seconds / _SLOTS
        self._slots: dict[int, float] = {}

    def add(self, at: float, amount: float) -> None:
        slot = int(at / self._width)
        if slot not in self._slots:
            self._forget(at)
        self._slots[slot] = self._slots.get(slot, 0.0) + amount

    def take_back(self, at: float, amount: float) -> None:
        slot = int(at / self._width)
        if slot in self._slots:
            self._slots[slot] -= amount

    def total(self, now: float) -> float:
        self._forget(now)
        return sum(self._slots.values())

    def _forget(self, now: float) -> None:
        oldest = int(now / self._width) - _SLOTS
        for slot in [slot for slot in self._slots if slot < oldest]:
            del self._slots[slot]


class MoneyBudget:
    """What extra attempts may spend. Not thread-safe: its owner holds the lock."""

    def __init__(self, per_minute: float | None, per_day: float | None) -> None:
        self._minute = _Span(per_minute, 60.0)
        self._day = _Span(per_day, _DAY)

    def has(self, now: float, amount: float) -> bool:
        """Whether so many US dollars are left."""
        return amount <= 0 or all(
            span.limit is None or span.total(now) + amount <= span.limit + DUST for span in (self._minute, self._day)
        )

    def spend(self, at: float, amount: float) -> None:
        """Spend them."""
        self._minute.add(at, amount)
        self._day.add(at, amount)

    def take_back(self, at: float, amount: float) -> None:
        """What was spent at that instant was not."""
        self._minute.take_back(at, amount)
        self._day.take_back(at, amount)

    def spent(self, now: float) -> tuple[float, float]:
        """In the last minute, and in the last 24 hours."""
        return self._minute.total(now), self._day.total(now)
