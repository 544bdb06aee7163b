"""Calls to DeepSeek that survive overload, stalls and outages, and never make them worse.

    from deepseek_resilient import DeepSeek

    client = DeepSeek()  # an openai.OpenAI with our engine inside

Names are imported when they are first used, so that importing the package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_resilient.backoff import wait_full_jitter
    from deepseek_resilient.client import AsyncDeepSeek, DeepSeek
    from deepseek_resilient.config import (
        AdmissionPolicy,
        BreakerPolicy,
        BudgetPolicy,
        CachePolicy,
        CheaperModel,
        ConcurrencyPolicy,
        GatePolicy,
        GuardPolicy,
        HedgePolicy,
        LadderPolicy,
        LedgerPolicy,
        LocalPolicy,
        LowerEffort,
        Policy,
        Price,
        Priority,
        RatePolicy,
        Refuse,
        RetryPolicy,
        RoutingPolicy,
        Rung,
        ShorterAnswer,
        StaleAnswer,
        StreamPolicy,
        TenantLimits,
        ThinkingOff,
        Upstream,
    )
    from deepseek_resilient.engine import Engine
    from deepseek_resilient.errors import (
        CircuitOpenError,
        ConfigError,
        DeadlineExceededError,
        InvalidRequestError,
        LocalModelError,
        OverloadedError,
        RateLimitedError,
        RejectedError,
        ResilienceError,
        ShedError,
        StreamInterruptedError,
        TooManyTokensError,
        partial_of,
        resume_of,
    )
    from deepseek_resilient.local.target import LocalModel
    from deepseek_resilient.transport import AsyncResilientTransport, ResilientTransport

__version__ = "0.1.0"

_HOMES = {
    "backoff": ("wait_full_jitter",),
    "client": ("AsyncDeepSeek", "DeepSeek"),
    "config": (
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
        "StreamPolicy",
        "TenantLimits",
        "ThinkingOff",
        "Upstream",
    ),
    "engine": ("Engine",),
    "errors": (
        "CircuitOpenError",
        "ConfigError",
        "DeadlineExceededError",
        "InvalidRequestError",
        "LocalModelError",
        "OverloadedError",
        "RateLimitedError",
        "RejectedError",
        "ResilienceError",
        "ShedError",
        "StreamInterruptedError",
        "TooManyTokensError",
        "partial_of",
        "resume_of",
    ),
    "local.target": ("LocalModel",),
    "transport": ("AsyncResilientTransport", "ResilientTransport"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AdmissionPolicy",
    "AsyncDeepSeek",
    "AsyncResilientTransport",
    "BreakerPolicy",
    "BudgetPolicy",
    "CachePolicy",
    "CheaperModel",
    "CircuitOpenError",
    "ConcurrencyPolicy",
    "ConfigError",
    "DeadlineExceededError",
    "DeepSeek",
    "Engine",
    "GatePolicy",
    "GuardPolicy",
    "HedgePolicy",
    "InvalidRequestError",
    "LadderPolicy",
    "LedgerPolicy",
    "LocalModel",
    "LocalModelError",
    "LocalPolicy",
    "LowerEffort",
    "OverloadedError",
    "Policy",
    "Price",
    "Priority",
    "RateLimitedError",
    "RatePolicy",
    "Refuse",
    "RejectedError",
    "ResilienceError",
    "ResilientTransport",
    "RetryPolicy",
    "RoutingPolicy",
    "Rung",
    "ShedError",
    "ShorterAnswer",
    "StaleAnswer",
    "StreamInterruptedError",
    "StreamPolicy",
    "TenantLimits",
    "ThinkingOff",
    "TooManyTokensError",
    "Upstream",
    "partial_of",
    "resume_of",
    "wait_full_jitter",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
