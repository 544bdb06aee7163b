"""The part of the policy that knows prices, and what more than the first attempts of calls may cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

from deepseek_resilient.config.checks import label, number, whole
from deepseek_resilient.errors import ConfigError

HOLIDAYS = (
    "2026-01-01", "2026-01-02", "2026-01-03", "2026-02-15", "2026-02-16", "2026-02-17", "2026-02-18", "2026-02-19",
    "2026-02-20", "2026-02-21", "2026-02-22", "2026-02-23", "2026-04-04", "2026-04-05", "2026-04-06", "2026-05-01",
    "2026-05-02", "2026-05-03", "2026-05-04", "2026-05-05", "2026-06-19", "2026-06-20", "2026-06-21", "2026-09-25",
    "2026-09-26", "2026-09-27", "2026-10-01", "2026-10-02", "2026-10-03", "2026-10-04", "2026-10-05", "2026-10-06",
    "2026-10-07",
)  # fmt: skip
"""China's public holidays of 2026, as the State Council's office announced them in November 2025."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs, US dollars per million tokens, each >= 0.

    Attributes:
        model: its name in requests. May be given by position.
        hit: of the prompt, what the server has in its cache.
        miss: the rest of the prompt.
        output: the answer, reasoning included.
        peak: at peak hours all of them are this many times as high, >= 0.
    """

    model: str = field(kw_only=False)
    hit: float
    miss: float
    output: float
    peak: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError(label(self, "model"), self.model, "the name of a model")
        for name in ("hit", "miss", "output", "peak"):
            number(self, name, 0)


PRICES = (
    Price("deepseek-flash", hit=0.003, miss=0.15, output=0.60, peak=2.0),
    Price("deepseek-v4-flash", hit=0.003, miss=0.15, output=0.60, peak=2.0),
    Price("deepseek-v4-pro", hit=0.022, miss=0.66, output=1.98, peak=2.0),
)
"""DeepSeek's own, off-peak, as its page "Models & Pricing" had them in November 2026."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPolicy:
    """What is written down of each call, at what prices, and what retries, hedges and fallbacks may cost.

    Extra is what the attempts of a call cost together beyond the price of its first one: a retry after a 503 is no
    extra, for refused attempts are not billed; one after a timeout is, for the first may be. Models without a price
    cost nothing here (`LedgerTotals.unpriced` counts them).

    Attributes:
        extra_per_minute: the most that may be spent in any minute on what is extra, US dollars, >= 0. None = no limit.
        extra_per_day: the same for any 24 hours.
        prices: a tuple of `Price`; goes before DeepSeek's own, which are known.
        peak_hours: pairs of hours in UTC, 0 to 24, Monday to Friday, at which the price is `Price.peak` times as high.
        holidays: days without peak hours, as "2027-01-01".
        keep: so many last calls are kept with all their attempts, >= 0.
    """

    extra_per_minute: float | None = None
    extra_per_day: float | None = None
    prices: tuple[Price, ...] = ()
    peak_hours: tuple[tuple[float, float], ...] = ((1, 4), (6, 10))
    holidays: tuple[str, ...] = HOLIDAYS
    keep: int = 1000

    def __post_init__(self) -> None:
        number(self, "extra_per_minute", 0, optional=True, unit="US dollars")
        number(self, "extra_per_day", 0, optional=True, unit="US dollars")
        whole(self, "keep", 0)
        if not isinstance(self.prices, tuple) or not all(isinstance(price, Price) for price in self.prices):
            raise ConfigError(label(self, "prices"), self.prices, "a tuple of Price")
        if not isinstance(self.peak_hours, tuple) or not all(map(_is_span, self.peak_hours)):
            raise ConfigError(label(self, "peak_hours"), self.peak_hours, "a tuple of pairs of hours, as ((1, 4),)")
        if not isinstance(self.holidays, tuple) or not all(map(_is_date, self.holidays)):
            raise ConfigError(label(self, "holidays"), self.holidays, 'a tuple of dates, as ("2027-01-01",)')


def _is_span(pair: object) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(type(hour) in (int, float) for hour in pair):
        return False
    return bool(0 <= pair[0] < pair[1] <= 24)


def _is_date(text: object) -> bool:
    try:
        return isinstance(text, str) and date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
