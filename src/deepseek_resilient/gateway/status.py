"""How a gateway stands, as plain data: what a worker tells its supervisor, and the dashboard shows."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from deepseek_resilient.events import (
    CallRefused,
    CallSimplified,
    CircuitChanged,
    Event,
    GateClosed,
    LoadChanged,
    LocalModelChanged,
    RetriesAbove,
    RetryStopped,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deepseek_resilient.core.runtime import TargetStatistics
    from deepseek_resilient.gateway.app import Gateway

_TOLD = (
    CallRefused, CallSimplified, CircuitChanged, GateClosed, LoadChanged, LocalModelChanged, RetriesAbove, RetryStopped,
)  # fmt: skip
_KEPT = 50


class Decisions:
    """The last things that the engine decided, with reasons; a listener."""

    def __init__(self) -> None:
        self._last: deque[Event] = deque(maxlen=_KEPT)

    def __call__(self, event: Event) -> None:
        if isinstance(event, _TOLD):
            self._last.append(event)

    def last(self, now: float) -> list[dict[str, Any]]:
        """Newest first, with how many seconds ago."""
        return [
            {"ago": now - event.at, "kind": type(event).__name__, "text": str(event)} for event in reversed(self._last)
        ]


def snapshot(gateway: Gateway, decisions: Decisions) -> dict[str, Any]:
    """One worker."""
    statistics = gateway.engine.statistics()
    accounts = gateway.accounts
    everybody = [accounts.everybody] if accounts.everybody is not None else []
    ledger = statistics.ledger
    return {
        "in_flight": gateway.in_flight,
        "calls": statistics.calls,
        "attempts": statistics.attempts,
        "verdicts": dict(statistics.verdicts),
        "refused": dict(statistics.refused),
        "targets": {name: _target(target) for name, target in statistics.targets.items()},
        "tenants": {
            account.name: {
                **asdict(account.counts),
                "spent_today": account.spent_today(),
                "models": sorted(account.models),
            }
            for account in (*accounts.by_name.values(), *everybody)
        },
        "money": {} if ledger is None else {
            "spent": ledger.spent,
            "wasted": ledger.wasted_on_failures + ledger.wasted_on_hedges,
            "abandoned": ledger.abandoned,
            "saved": ledger.saved_by_cache + ledger.saved_by_sharing,
        },
        "decisions": decisions.last(gateway.clock()),
    }  # fmt: skip


def _target(target: TargetStatistics) -> dict[str, Any]:
    places, load = target.concurrency, target.load
    return {
        "gate": max(target.gate.closed_for, 0.0),
        "breaker": "off" if target.breaker is None else target.breaker.state,
        "in_flight": 0 if places is None else places.in_flight,
        "limit": 0 if places is None else places.limit,
        "waiting": 0 if places is None else places.queued,
        "level": 0 if load is None else load.level,
        "load": 0.0 if load is None else load.load,
    }


_GREATEST = frozenset(("gate", "level", "load"))


def merged(workers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All workers as one: what is counted is added up, of levels the highest counts, of breakers the worst."""
    total: dict[str, Any] = {}
    decisions: list[dict[str, Any]] = []
    for worker in workers:
        decisions += worker["decisions"]
        _add(total, {name: value for name, value in worker.items() if name != "decisions"})
    total["decisions"] = sorted(decisions, key=lambda decision: float(decision["ago"]))[:_KEPT]
    return total


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        elif isinstance(value, list):
            total[name] = value
        elif isinstance(value, str):
            total[name] = max((total.get(name, ""), value), key=_worse)
        elif name in _GREATEST:
            total[name] = max(total.get(name, 0.0), value)
        else:
            total[name] = total.get(name, 0) + value


def _worse(state: str) -> int:
    return ("", "off", "closed", "half-open", "open").index(state)
