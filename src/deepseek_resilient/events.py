"""What happened, as frozen records, for listeners; and the log lines that everyone gets.

A listener is any callable that takes one event. It is called at once, on the thread or loop of the call, so it must be
quick and must not block; what it raises is logged and swallowed. No event ever holds a key, a prompt or an answer.
`at` is the engine's monotonic clock in seconds; `call` numbers the calls of one engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

logger = logging.getLogger("deepseek_resilient")
logger.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Event:
    """The root: when it happened."""

    at: float

    def __str__(self) -> str:
        told = [f.name for f in fields(self) if f.name != "at" and getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={_short(name, getattr(self, name))}' for name in told)})"


@dataclass(frozen=True, slots=True)
class CallStarted(Event):
    """A call entered the engine."""

    call: int
    dialect: str
    model: str
    stream: bool


@dataclass(frozen=True, slots=True)
class AttemptStarted(Event):
    """A request is about to be sent."""

    call: int
    attempt: int
    target: str


@dataclass(frozen=True, slots=True)
class AttemptEnded(Event):
    """An attempt got its verdict. `duration` runs to the first content for a stream, to the last byte otherwise.
    `model` is the one that the answer names, "" where there is none."""

    call: int
    attempt: int
    target: str
    verdict: str
    reason: str
    status: int | None
    duration: float
    model: str = ""


@dataclass(frozen=True, slots=True)
class AttemptCharged(Event):
    """What an attempt took: tokens of the prompt, those of them that were cached, and of the answer; US dollars (None:
    the model has no price); whether it was billed ("no", "maybe", "yes"), and whether this is an estimate;
    whose call it was."""

    call: int
    attempt: int
    target: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: float | None
    billed: str
    estimated: bool
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class AttemptAbandoned(Event):
    """The caller went away (cancelled, closed early) before the attempt had a verdict."""

    call: int
    attempt: int
    target: str


@dataclass(frozen=True, slots=True)
class StreamContinued(Event):
    """A stream that broke off has new content, by this attempt."""

    call: int
    attempt: int
    target: str


@dataclass(frozen=True, slots=True)
class RetryScheduled(Event):
    """Another attempt follows after `delay` seconds."""

    call: int
    attempt: int
    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class RetryStopped(Event):
    """No further attempt is made. `why`: futile, unsafe, stop, budget, money, deadline, retry_after; or the step that
    did not let it in: route, admission, gate, breaker, rate, concurrency."""

    call: int
    attempt: int
    why: str
    reason: str


@dataclass(frozen=True, slots=True)
class StreamCommitted(Event):
    """The first content of a stream came, `waited` seconds after its attempt began; from here on nothing is retried."""

    call: int
    attempt: int
    waited: float


@dataclass(frozen=True, slots=True)
class GateClosed(Event):
    """A target asked to be left alone for `seconds`."""

    target: str
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class StepWaited(Event):
    """A call waits `delay` seconds at a step ("route", "gate", "breaker", "rate") before it is sent, or has waited so
    long for a place ("concurrency")."""

    call: int
    step: str
    target: str
    delay: float


@dataclass(frozen=True, slots=True)
class CircuitChanged(Event):
    """The circuit of a target changed its state; `break_for` seconds when it opened."""

    target: str
    old: str
    new: str
    break_for: float


@dataclass(frozen=True, slots=True)
class ModelChanged(Event):
    """The answers of a target now name another model than before, although the same one was asked for."""

    target: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class LoadChanged(Event):
    """The load level of a target changed; `load` 1 is as much as it can serve."""

    target: str
    old: int
    new: int
    load: float


@dataclass(frozen=True, slots=True)
class CallSimplified(Event):
    """The ladder asks for something simpler than the call did. `changed`: model, reasoning_effort, thinking,
    max_tokens."""

    call: int
    target: str
    level: int
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnswerReused(Event):
    """A call gets an answer that was not made for it: kept ("hit", or "stale": past its lifetime), `age` seconds old;
    or that of an identical call in flight ("joined")."""

    call: int
    how: str
    age: float | None


@dataclass(frozen=True, slots=True)
class HedgeStarted(Event):
    """The attempt at `target` is late, `after` seconds: a second one is begun beside it."""

    call: int
    target: str
    after: float


@dataclass(frozen=True, slots=True)
class RetriesAbove(Event):
    """Whoever calls retries too; told once for each sign ("retry_count", "same_request"), with the remedy."""

    call: int
    sign: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CallRefused(Event):
    """A step refused the call before anything was sent."""

    call: int
    step: str
    target: str
    retry_after: float | None


@dataclass(frozen=True, slots=True)
class LocalDeclined(Event):
    """The model on this machine was not asked, for what it cannot do: "tools", "json", "answers", "content", "prefix",
    "messages", "max_tokens" or "too_long"."""

    call: int
    why: str


@dataclass(frozen=True, slots=True)
class LocalModelChanged(Event):
    """The model on this machine: its state now ("starting", "ready", "backoff", "failed", "draining", "stopped",
    "closed"), its name, and why, what goes on, or what to do."""

    state: str
    model: str
    detail: str


@dataclass(frozen=True, slots=True)
class CallEnded(Event):
    """A call is over: its last verdict (or how its answer was reused), attempts, seconds in all and seconds spent
    waiting between attempts."""

    call: int
    attempts: int
    verdict: str
    duration: float
    waited: float


Listener = Callable[[Event], None]


@runtime_checkable
class ForEachEngine(Protocol):
    """A listener that remembers calls: every engine gets one of its own, for two engines number their calls alike."""

    def for_engine(self) -> Listener:
        """The listener of one engine."""


@runtime_checkable
class Carrier(Protocol):
    """A listener that has something to send upstream: the context of a trace, say."""

    def headers(self, call: int, attempt: int, origin: str) -> Sequence[tuple[str, str]]:
        """What the request of that attempt, whose `AttemptStarted` was told, carries to `origin`. As quick as a
        listener; what it raises is logged, and nothing is added."""


@runtime_checkable
class Selective(Protocol):
    """A listener that has a use for these kinds of events, and is told of no others."""

    kinds: frozenset[type[Event]]


_LEVELS: dict[type[Event], int] = {
    CircuitChanged: logging.WARNING,
    GateClosed: logging.WARNING,
    ModelChanged: logging.WARNING,
    LoadChanged: logging.WARNING,
    LocalModelChanged: logging.INFO,
    RetriesAbove: logging.WARNING,
    CallSimplified: logging.INFO,
    StreamContinued: logging.INFO,
    LocalDeclined: logging.INFO,
    CallRefused: logging.INFO,
    RetryScheduled: logging.INFO,
    RetryStopped: logging.INFO,
}


class Listeners:
    """Sends each event to the log and to every listener. Thread-safe; costs nothing for events nobody listens to."""

    __slots__ = ("_by_kind", "_carriers", "_listeners")

    def __init__(self, listeners: tuple[Listener, ...] = ()) -> None:
        for listener in listeners:
            if not callable(listener):
                raise TypeError(f"a listener must be callable with one event, not {listener!r}")
        self._listeners = tuple(each.for_engine() if isinstance(each, ForEachEngine) else each for each in listeners)
        own: tuple[object, ...] = self._listeners
        self._carriers = [each for each in own if isinstance(each, Carrier)]
        self._by_kind: dict[type[Event], tuple[int, list[Listener]]] = {}

    @property
    def wanted(self) -> bool:
        """Whether everyday events (a call started, an attempt ended well) have any reader."""
        return bool(self._listeners) or logger.isEnabledFor(logging.DEBUG)

    def wants(self, kind: type[Event]) -> bool:
        """Whether events of that kind have any reader."""
        level, listeners = self._by_kind.get(kind) or self._readers(kind)
        return bool(listeners) or logger.isEnabledFor(level)

    def emit(self, event: Event) -> None:
        """Tell everybody."""
        kind = type(event)
        level, listeners = self._by_kind.get(kind) or self._readers(kind)
        if logger.isEnabledFor(level):
            logger.log(level, "%s", event)
        for listener in listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("a listener failed on %s", type(event).__name__)

    def _readers(self, kind: type[Event]) -> tuple[int, list[Listener]]:
        """The level of its line in the log, and the listeners that are told."""
        listeners = [each for each in self._listeners if _has_use_for(each, kind)]
        readers = self._by_kind[kind] = _LEVELS.get(kind, logging.DEBUG), listeners
        return readers

    def headers(self, call: int, attempt: int, origin: str) -> list[tuple[str, str]]:
        """What they want an attempt's request to carry."""
        found: list[tuple[str, str]] = []
        for carrier in self._carriers:
            try:
                found += carrier.headers(call, attempt, origin)
            except Exception:
                logger.exception("a listener failed to give the headers of an attempt")
        return found


def _has_use_for(listener: object, kind: type[Event]) -> bool:
    return not isinstance(listener, Selective) or kind in listener.kinds


def _short(name: str, value: object) -> object:
    """Seconds to a thousandth, US dollars to a millionth."""
    return f"{value:.{6 if name == 'cost' else 3}f}" if isinstance(value, float) else value
