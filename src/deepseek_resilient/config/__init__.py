"""`Policy`: every setting, with its default, its range and what it decides.

All parts are frozen, compared by value and shared freely between threads; vary one with `dataclasses.replace`. Times
are seconds as float, None means off. A wrong type or value raises `ConfigError`, which names the field, the value and
what is allowed. The measurements behind the defaults are in `docs/reference.md`.

Precedence: call, client, environment (`from_env`, the only place that reads it), preset.
"""

from __future__ import annotations

from deepseek_resilient.config.cache import CachePolicy
from deepseek_resilient.config.guard import GuardPolicy, TenantLimits
from deepseek_resilient.config.hedge import HedgePolicy
from deepseek_resilient.config.ledger import LedgerPolicy, Price
from deepseek_resilient.config.local import LocalPolicy
from deepseek_resilient.config.policy import Policy
from deepseek_resilient.config.quality import (
    AdmissionPolicy,
    CheaperModel,
    LadderPolicy,
    LowerEffort,
    Priority,
    Refuse,
    Rung,
    ShorterAnswer,
    StaleAnswer,
    ThinkingOff,
)
from deepseek_resilient.config.rate import RatePolicy
from deepseek_resilient.config.resilience import (
    BreakerPolicy,
    BudgetPolicy,
    GatePolicy,
    RetryPolicy,
    StopStrategy,
    StreamPolicy,
    WaitStrategy,
)
from deepseek_resilient.config.routing import RoutingPolicy, Upstream
from deepseek_resilient.config.traffic import ConcurrencyPolicy

__all__ = [
    "AdmissionPolicy",
    "BreakerPolicy",
    "BudgetPolicy",
    "CachePolicy",
    "CheaperModel",
    "ConcurrencyPolicy",
    "GatePolicy",
    "GuardPolicy",
    "HedgePolicy",
    "LadderPolicy",
    "LedgerPolicy",
    "LocalPolicy",
    "LowerEffort",
    "Policy",
    "Price",
    "Priority",
    "RatePolicy",
    "Refuse",
    "RetryPolicy",
    "RoutingPolicy",
    "Rung",
    "ShorterAnswer",
    "StaleAnswer",
    "StopStrategy",
    "StreamPolicy",
    "TenantLimits",
    "ThinkingOff",
    "Upstream",
    "WaitStrategy",
]  # fmt: skip
