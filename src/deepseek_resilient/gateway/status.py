"""How a gateway stands, as plain data: what a worker tells its supervisor, and the dashboard shows."""

from __future__ import annotations

from collections import OrderedDict
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
    ModelChanged,
    RetriesAbove,
    RetryStopped,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deepseek_resilient.core.runtime import TargetStatistics
    from deepseek_resilient.gateway.app import Gateway

_KEPT = 50


class Decisions:
    """The last things that the engine decided, with reasons; a listener. What happens again is kept once, with its
    count: an hour of refusals does not push out the circuit that opened."""

    kinds: frozenset[type[Event]] = frozenset(
        (
            CallRefused, CallSimplified, CircuitChanged, GateClosed, LoadChanged, LocalModelChanged, ModelChanged,
            RetriesAbove, RetryStopped,
        )
    )  # fmt: skip

    def __init__(self) -> None:
        self._last: OrderedDict[tuple[str, str], tuple[float, int, str]] = OrderedDict()

    def __call__(self, event: Event) -> None:
        told = _told(event)
        if told is None:
            return
        text, detail = told
        key = type(event).__name__, text
        known = self._last.pop(key, None)
        self._last[key] = event.at, 1 if known is None else known[1] + 1, detail
        if len(self._last) > _KEPT:
            self._last.popitem(last=False)

    def last(self, now: float) -> list[dict[str, Any]]:
        """Newest first: how many seconds ago, how often since the start, and in words; `detail`: of the last time."""
        return [
            {"ago": now - at, "kind": kind, "count": count, "text": text, "detail": detail}
            for (kind, text), (at, count, detail) in reversed(self._last.items())
        ]


def _told(event: Event) -> tuple[str, str] | None:
    """A decision in words, and the details that differ each time; None for what is none."""
    match event:
        case CallRefused():
            again = "" if event.retry_after is None else f"retry after {event.retry_after:.1f} s"
            return f"call refused by {event.step}{_at(event.target)}", again
        case CallSimplified():
            return f"call simplified{_at(event.target)}: {', '.join(event.changed)}", f"level {event.level}"
        case CircuitChanged():
            broken = f"for {event.break_for:.1f} s" if event.break_for else ""
            return f"circuit went from {event.old} to {event.new}{_at(event.target)}", broken
        case GateClosed():
            return f"gate closed{_at(event.target)}: {event.reason}", f"for {event.seconds:.1f} s"
        case LoadChanged():
            return f"load level went from {event.old} to {event.new}{_at(event.target)}", f"load {event.load:.0%}"
        case LocalModelChanged():
            return f"local model {event.model} is {event.state}", event.detail
        case ModelChanged():
            return f"answers name another model{_at(event.target)}: {event.new}", f"before: {event.old}"
        case RetriesAbove():
            return f"callers retry too ({event.sign})", event.remedy
        case RetryStopped() if event.why != "futile":  # that is for an error of the caller: nothing was decided
            return f"no further attempt ({event.why}): {event.reason}", f"after attempt {event.attempt}"
        case _:
            return None


def _at(target: str) -> str:
    return f" at {target}" if target else ""


def snapshot(gateway: Gateway, decisions: Decisions) -> dict[str, Any]:
    """One worker."""
    statistics = gateway.engine.statistics()
    ledger = statistics.ledger
    return {
        "in_flight": gateway.in_flight,
        "calls": statistics.calls,
        "attempts": statistics.attempts,
        "verdicts": dict(statistics.verdicts),
        "refused": dict(statistics.refused),
        "targets": {name: _target(target) for name, target in statistics.targets.items()},
        "tenants": {
            account.name: {**asdict(account.counts), "models": sorted(account.models)}
            for account in gateway.accounts.all()
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
        "model": target.served_model,
    }


_GREATEST = frozenset(("gate", "level", "load"))
"""Of a target."""


def merged(workers: Iterable[dict[str, Any]], spent: Mapping[str, float]) -> dict[str, Any]:
    """All workers as one: what is counted is added up, of levels the highest counts, of breakers the worst; `spent` is
    what tenants have spent today, US dollars."""
    total: dict[str, Any] = {}
    decisions: list[dict[str, Any]] = []
    for worker in workers:
        decisions += worker["decisions"]
        _add(total, {name: value for name, value in worker.items() if name != "decisions"})
    for name, tenant in total.get("tenants", {}).items():
        tenant["spent_today"] = spent.get(name, 0.0)
    total["decisions"] = sorted(decisions, key=lambda decision: float(decision["ago"]))[:_KEPT]
    return total


def _add(total: dict[str, Any], more: dict[str, Any], *, targets: bool = False) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value, targets=targets or name == "targets")
        elif isinstance(value, list):
            total[name] = value
        elif isinstance(value, str):
            total[name] = (
                max((total.get(name, ""), value), key=_worse) if name == "breaker" else value or total.get(name, "")
            )
        elif targets and name in _GREATEST:
            total[name] = max(total.get(name, 0.0), value)
        else:
            total[name] = total.get(name, 0) + value


def _worse(state: str) -> int:
    return ("", "off", "closed", "half-open", "open").index(state)
