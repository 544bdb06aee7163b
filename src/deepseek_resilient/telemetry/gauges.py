"""What `Engine.statistics()` says, as a table of metrics: name, meaning, where it is found.

A row's `find` gives a number for each combination of labels, none where the policy has no such part. Labels beyond the
bound are put together as "other": numbers of things are added, of states the worst is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from deepseek_resilient.core.runtime import EngineStatistics

Found = Iterator[tuple[tuple[str, ...], float]]
PREFIX = "deepseek_resilient_"
CIRCUIT_STATES = ("closed", "open", "half-open")
UPSTREAM_STATES = ("healthy", "warming", "ejected", "resting", "draining")


class Row(NamedTuple):
    """One metric; every one has the label `engine` before its own. `worst`: of many, the greatest and not the sum."""

    name: str
    meaning: str
    labels: tuple[str, ...]
    find: Callable[[EngineStatistics], Found]
    counter: bool = False
    worst: bool = False


def _number(seen: object, names: Sequence[str]) -> float | None:
    """The value that these names lead to, one inside the other; None where a part is missing."""
    value: Any = seen
    for name in names:
        if value is None:
            return None
        value = getattr(value, name)
    return None if value is None else float(value)


def _of_engine(*names: str) -> Callable[[EngineStatistics], Found]:
    def find(seen: EngineStatistics) -> Found:
        value = _number(seen, names)
        if value is not None:
            yield (), value

    return find


def _of_target(*names: str) -> Callable[[EngineStatistics], Found]:
    def find(seen: EngineStatistics) -> Found:
        for name, target in seen.targets.items():
            value = _number(target, names)
            if value is not None:
                yield (name,), value

    return find


def _circuits(seen: EngineStatistics) -> Found:
    for name, target in seen.targets.items():
        if target.breaker is not None:
            for state in CIRCUIT_STATES:
                yield (name, state), float(target.breaker.state == state)


def _upstreams(seen: EngineStatistics) -> Found:
    for name, upstream in seen.upstreams.items():
        for state in UPSTREAM_STATES:
            yield (name, state), float(upstream.state == state)


def _wasted(seen: EngineStatistics) -> Found:
    if seen.ledger is not None:
        yield ("failures",), seen.ledger.wasted_on_failures
        yield ("hedges",), seen.ledger.wasted_on_hedges
        yield ("abandoned",), seen.ledger.abandoned


def _saved(seen: EngineStatistics) -> Found:
    if seen.ledger is not None:
        yield ("cache",), seen.ledger.saved_by_cache
        yield ("sharing",), seen.ledger.saved_by_sharing


def _extra(seen: EngineStatistics) -> Found:
    if seen.ledger is not None:
        yield ("minute",), seen.ledger.extra_last_minute
        yield ("day",), seen.ledger.extra_last_day


_TARGET = ("target",)

ROWS = (
    Row("calls_in_flight", "Calls that have begun and not ended.", (), _of_engine("in_flight")),
    Row("retry_budget_tokens", "Retries that the budget would pay for now.", (), _of_engine("budget", "tokens")),
    Row(
        "retry_budget_refused", "Extra attempts that the retry budget did not pay for.", (),
        _of_engine("budget", "refused"), counter=True,
    ),
    Row("circuit_state", "1 for the state that a target's circuit is in.", ("target", "state"), _circuits),
    Row(
        "circuit_openings", "How often a target's circuit opened.", _TARGET,
        _of_target("breaker", "openings"), counter=True,
    ),
    Row(
        "gate_closed_seconds", "Seconds until a target may be asked again; 0 when it may be now.", _TARGET,
        _of_target("gate", "closed_for"), worst=True,
    ),
    Row(
        "gate_closings", "How often a target asked to be left alone.", _TARGET,
        _of_target("gate", "closings"), counter=True,
    ),
    Row(
        "load_level", "Load level of a target: 0 is calm, each level sheds more.", _TARGET,
        _of_target("load", "level"), worst=True,
    ),
    Row(
        "load_ratio", "Load of a target: 1 is as much as it can serve.", _TARGET,
        _of_target("load", "load"), worst=True,
    ),
    Row(
        "concurrency_limit", "Requests that may be in flight to a target.", _TARGET,
        _of_target("concurrency", "limit"),
    ),
    Row(
        "concurrency_in_flight", "Requests in flight to a target.", _TARGET,
        _of_target("concurrency", "in_flight"),
    ),
    Row(
        "concurrency_queued", "Calls that wait for a place at a target.", _TARGET,
        _of_target("concurrency", "queued"),
    ),
    Row(
        "rate_waiting", "Calls that wait for their instant at a target's rate limit.", _TARGET,
        _of_target("rate", "waiting"),
    ),
    Row("upstream_state", "1 for the state that an upstream is in.", ("upstream", "state"), _upstreams),
    Row("cache_entries", "Answers in memory.", (), _of_engine("cache", "entries")),
    Row("cache_bytes", "Bytes of the answers in memory.", (), _of_engine("cache", "bytes")),
    Row(
        "cache_misses", "Calls whose answer was not known.", (),
        _of_engine("cache", "misses"), counter=True,
    ),
    Row(
        "hedges_won", "Second attempts that answered first.", (),
        _of_engine("hedges", "won"), counter=True,
    ),
    Row(
        "hedges_refused", "Late calls that got no second attempt, for load or budgets.", (),
        _of_engine("hedges", "refused"), counter=True,
    ),
    Row("saved_dollars", "What reused answers cost once.", ("by",), _saved, counter=True),
    Row("wasted_dollars", "Spent on attempts that gave no answer, or not the first one.", ("on",), _wasted),
    Row("extra_dollars", "Spent on extra attempts in the last minute and day.", ("window",), _extra),
    Row(
        "extra_refused", "Attempts that the money budget did not allow.", (),
        _of_engine("ledger", "extra_refused"), counter=True,
    ),
    Row(
        "unpriced_attempts", "Attempts for models without a price.", (),
        _of_engine("ledger", "unpriced"), counter=True,
    ),
)  # fmt: skip
