"""The parts of the policy that decide about many calls together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deepseek_resilient.config.checks import label, number, whole
from deepseek_resilient.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyPolicy:
    """How many calls are in flight to one target, and who waits (`core/limit.py`, `core/concurrency.py`).

    Off with `Policy(concurrency=None)`.

    Attributes:
        initial: calls in flight allowed at the start, >= minimum, <= maximum.
        minimum: never fewer, >= 1.
        maximum: never more, >= minimum.
        tolerance: latency may rise to this many times what it is without a queue, > 1, before the limit shrinks.
        backoff: the limit after an overload (429, 503, a timeout) is this share of the one before, above 0, below 1.
        probe_interval: seconds after which a limit that the server stated is tried one higher at the latest, > 0.
        queue: calls that may wait for a place, >= 0; one more is refused at once.
    """

    initial: int = 20
    minimum: int = 1
    maximum: int = 2000
    tolerance: float = 1.5
    backoff: float = 0.7
    probe_interval: float = 30.0
    queue: int = 1000

    def __post_init__(self) -> None:
        whole(self, "minimum", 1)
        whole(self, "maximum", self.minimum)
        whole(self, "initial", self.minimum)
        if self.initial > self.maximum:
            raise ConfigError(label(self, "initial"), self.initial, f"at most the maximum, {self.maximum}")
        number(self, "tolerance", 1, above=True)
        number(self, "backoff", 0, 0.99, above=True)
        number(self, "probe_interval", 0, above=True)
        whole(self, "queue", 0)

    def capped(self, most: int) -> ConcurrencyPolicy:
        """The same with a limit that never exceeds `most`."""
        return replace(
            self,
            minimum=min(self.minimum, most),
            initial=min(self.initial, most),
            maximum=min(self.maximum, most),
        )
