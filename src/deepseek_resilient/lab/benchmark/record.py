"""What is known of one contender in one scenario once it is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepseek_resilient.lab.plan import CallRecord

if TYPE_CHECKING:
    from .scenario import Scenario


@dataclass(frozen=True, slots=True)
class Call(CallRecord):
    """One call, with its group (the process that made it and its tenant) and its work as a multiple of the mean."""

    group: int = 0
    work: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run. `attempts` are the times at which requests came to a server; `servers` are the servers' statistics."""

    scenario: Scenario
    contender: str
    seed: int
    calls: tuple[Call, ...]
    attempts: tuple[float, ...]
    servers: tuple[dict[str, Any], ...]
