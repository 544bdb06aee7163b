"""The part of the policy that decides when a late attempt gets a second one beside it."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_resilient.config.checks import number, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePolicy:
    """When a second attempt is sent beside one whose first content is late; the first good answer is handed over.

    Each hedge is also paid from the retry budget, and none is sent while the load level of the target is above 0.

    Attributes:
        quantile: late is what takes longer than this share of the calls of its kind (model, streamed or not, size of
            the prompt) did, 0.5 to 0.9999.
        ratio: hedges are at most this share of the calls (and ten at once), > 0 and <= 1.
        minimum_samples: calls of a kind that must have been seen before one of them is hedged, >= 10.
    """

    quantile: float = 0.98
    ratio: float = 0.03
    minimum_samples: int = 100

    def __post_init__(self) -> None:
        number(self, "quantile", 0.5, 0.9999)
        number(self, "ratio", 0, 1, above=True)
        whole(self, "minimum_samples", 10)
