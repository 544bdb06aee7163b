"""What is known of one contender in one scenario once it is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deepseek_resilient.lab.plan import CallRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .scenario import Scenario

VIRTUAL: Final = "virtual"
"""The world of the tables: virtual time, at the size that the scenario says."""

REAL: Final = "real"
"""Real HTTP between processes, at a size that the machine can carry."""

MODEL: Final = "model"
"""Virtual time at that same size: the simulator's prediction of real runs."""

WORLDS: Final = (VIRTUAL, REAL, MODEL)


@dataclass(frozen=True, slots=True)
class Call(CallRecord):
    """One call, with its group (the process that made it and its tenant) and its work as a multiple of the mean."""

    group: int = 0
    work: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How well a real run was measured: the 99th percentiles of how late callers were let in, and of how late timers
    fired in the clients' and the servers' processes, seconds; and the share of a core that the busiest process used in
    its busiest half second.
    """

    callers: float
    clients: float
    servers: float
    busy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run.

    `attempts` are the times at which requests came to a server; `servers` are the servers' statistics; `limits` are,
    at the end of each half second, the calls at once that all processes allow themselves together and the calls that
    wait in them, where the client has such a limit. `lag` is of a real run; `luck` is other dice for the same
    callers.
    """

    scenario: Scenario
    contender: str
    seed: int
    calls: tuple[Call, ...]
    attempts: tuple[float, ...]
    servers: tuple[dict[str, Any], ...]
    limits: tuple[tuple[float, int], ...] = ()
    world: str = VIRTUAL
    lag: Lag | None = None
    luck: int = 0


def looks(found: Iterable[tuple[float, int] | None]) -> tuple[float, int]:
    """Limits and queues of several processes, summed."""
    known = [look for look in found if look is not None]
    return sum(limit for limit, _ in known), sum(queued for _, queued in known)
