"""`Policy`: all parts together, the presets, and the way in from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import tenacity

from deepseek_resilient.backoff import wait_full_jitter
from deepseek_resilient.config.cache import CachePolicy
from deepseek_resilient.config.checks import label, number
from deepseek_resilient.config.guard import GuardPolicy
from deepseek_resilient.config.hedge import HedgePolicy
from deepseek_resilient.config.ledger import LedgerPolicy
from deepseek_resilient.config.local import LocalPolicy
from deepseek_resilient.config.quality import AdmissionPolicy, LadderPolicy, Priority
from deepseek_resilient.config.rate import RatePolicy
from deepseek_resilient.config.resilience import BreakerPolicy, BudgetPolicy, GatePolicy, RetryPolicy, StreamPolicy
from deepseek_resilient.config.routing import RoutingPolicy
from deepseek_resilient.config.traffic import ConcurrencyPolicy
from deepseek_resilient.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEN_ATTEMPTS = tenacity.stop_after_attempt(10)

PARTS: tuple[tuple[str, type, bool], ...] = (
    ("retry", RetryPolicy, False),
    ("budget", BudgetPolicy, False),
    ("gate", GatePolicy, False),
    ("breaker", BreakerPolicy, True),
    ("rate", RatePolicy, False),
    ("concurrency", ConcurrencyPolicy, True),
    ("routing", RoutingPolicy, False),
    ("admission", AdmissionPolicy, True),
    ("ladder", LadderPolicy, False),
    ("guard", GuardPolicy, True),
    ("stream", StreamPolicy, False),
    ("cache", CachePolicy, True),
    ("hedge", HedgePolicy, True),
    ("ledger", LedgerPolicy, True),
    ("local", LocalPolicy, True),
)
"""Name, type, and whether None turns it off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything the engine may be told.

    Attributes:
        deadline: the whole call, waits and retries included, seconds; for a stream until its first content. `timeout=`
            of a client or a call goes before it. None = no limit.
        connect_timeout: one connection, seconds, > 0.
        attempt_timeout: one attempt: a buffered answer until it is complete, a stream until its first content, seconds.
            None = only the deadline.
        priority: how much a call matters that does not say so itself: "critical", "interactive", "standard" or "batch".
    """

    deadline: float | None = 600.0
    connect_timeout: float = 5.0
    attempt_timeout: float | None = None
    priority: str = "standard"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)
    gate: GatePolicy = field(default_factory=GatePolicy)
    breaker: BreakerPolicy | None = field(default_factory=BreakerPolicy)
    rate: RatePolicy = field(default_factory=RatePolicy)
    concurrency: ConcurrencyPolicy | None = field(default_factory=ConcurrencyPolicy)
    routing: RoutingPolicy = field(default_factory=RoutingPolicy)
    admission: AdmissionPolicy | None = field(default_factory=AdmissionPolicy)
    ladder: LadderPolicy = field(default_factory=LadderPolicy)
    guard: GuardPolicy | None = field(default_factory=GuardPolicy)
    stream: StreamPolicy = field(default_factory=StreamPolicy)
    cache: CachePolicy | None = None
    hedge: HedgePolicy | None = None
    ledger: LedgerPolicy | None = field(default_factory=LedgerPolicy)
    local: LocalPolicy | None = None

    def __post_init__(self) -> None:
        number(self, "deadline", 0, above=True, optional=True)
        number(self, "connect_timeout", 0, above=True)
        number(self, "attempt_timeout", 0, above=True, optional=True)
        Priority.parse(self.priority, label(self, "priority"))
        for name, kind, optional in PARTS:
            value = getattr(self, name)
            if not isinstance(value, kind) and not (optional and value is None):
                article = "an" if kind.__name__[0] in "AEIOU" else "a"
                allowed = f"{article} {kind.__name__}" + (", or None to turn it off" if optional else "")
                raise ConfigError(label(self, name), value, allowed)

    @classmethod
    def interactive(cls) -> Policy:
        """Someone is waiting: a minute at most, 20 s until the first content, at most 20 s of silence."""
        return cls(deadline=60.0, priority="interactive", stream=StreamPolicy(first_content=20.0, silence=20.0))

    @classmethod
    def agent(cls) -> Policy:
        """Long turns of a program: ten minutes, but a stream that is silent for 30 s is given up early."""
        return cls(stream=StreamPolicy(first_content=60.0, silence=30.0))

    @classmethod
    def batch(cls) -> Policy:
        """Nobody is waiting: an hour, more attempts, longer waits; calls wait while a circuit is open, and are not
        shed."""
        return cls(
            deadline=3600.0,
            priority="batch",
            admission=None,
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
        from deepseek_resilient.config.environment import read

        return read(os.environ if environ is None else environ)
