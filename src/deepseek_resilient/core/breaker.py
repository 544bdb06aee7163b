"""The circuit breaker of a target: who fails too often is left alone, then tried again by a few.

Closed: every attempt passes; verdicts are counted in a sliding window of ten slices. It opens when
`failures / attempts >= failure_ratio` with at least `minimum_throughput` attempts in the window. Open: refuses for a
break drawn from `duration * (1 ± jitter)`, where the duration grows by `break_growth` with each opening in a row up to
`max_break_duration`. Half-open: lets through at most `probes` attempts at a time, one per `probe_interval`; the first
failure opens it again, `probe_successes` good answers close it.

Probes are spaced so that one that hangs does not hide a recovery from those after it. A verdict of an attempt that
began before the last change of state is ignored: it tells of the past.

pybreaker holds the state, its storage and the users' listeners; it is driven by `open()`, `half_open()` and `close()`.
No request runs inside its lock (its `call()` would hold it during the request). A storage shared with other processes
works: a circuit that another one opened counts as opened here when it is first seen so.

Sources: M. Nygard, "Release It!"; names after Polly 8's circuit breaker strategy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pybreaker

from deepseek_resilient.core.verdict import FAILURES, VerdictKind
from deepseek_resilient.events import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from random import Random

    from deepseek_resilient.config import BreakerPolicy

_SLICES = 10


@dataclass(frozen=True, slots=True)
class BreakerStatistics:
    """A look at the circuit: its state, attempts and failures in the window, openings so far, seconds until a probe."""

    state: str
    attempts: int
    failures: int
    openings: int
    opens_in: float


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to make one attempt. Give it back with `Breaker.record` or `Breaker.release`, once."""

    generation: int
    probe: bool


class Breaker:
    """One circuit. Thread-safe; listeners run under its lock and must be quick, but may look at the breaker."""

    def __init__(
        self,
        policy: BreakerPolicy,
        lock: AbstractContextManager[object],
        random: Random,
        circuit: pybreaker.CircuitBreaker,
        on_change: Callable[[float, str, str, float], None],
    ) -> None:
        self._policy = policy
        self._lock = lock
        self._random = random
        self._circuit = circuit
        self._on_change = on_change
        self._generation = 0
        self._everyday = Permit(0, False)
        self._window = _Window(policy.sampling_duration)
        self._seen = circuit.current_state
        self._opens_at = 0.0
        self._next_break = policy.break_duration
        self._openings = 0
        self._probing = 0
        self._next_probe = 0.0
        self._successes = 0

    @property
    def refuses(self) -> bool:
        """Whether calls are refused while it is open; otherwise they may wait."""
        return self._policy.when_open == "refuse"

    def try_acquire(self, now: float) -> Permit | float:
        """A permit; or, refused, the seconds after which another try may succeed."""
        with self._lock:
            self._notice(now)
            if self._seen == pybreaker.STATE_CLOSED:
                return self._everyday
            if self._seen == pybreaker.STATE_OPEN:
                if now < self._opens_at:
                    return self._opens_at - now
                self._change(now, pybreaker.STATE_HALF_OPEN)
            policy = self._policy
            if self._probing >= policy.probes or now < self._next_probe:
                return max(self._next_probe - now, policy.probe_interval, 0.01)
            self._probing += 1
            self._next_probe = now + policy.probe_interval
            return Permit(self._generation, True)

    def record(self, permit: Permit, now: float, kind: VerdictKind, duration: float) -> None:
        """Give the permit back with what the attempt came to; `duration` in seconds to the first content."""
        with self._lock:
            if permit.generation != self._generation:
                return
            slow = self._policy.slow_call_duration
            if kind in FAILURES or (kind is VerdictKind.OK and slow is not None and duration > slow):
                self._failed(now, permit)
            elif kind is VerdictKind.OK:
                self._succeeded(now, permit)
            elif permit.probe:
                self._probing -= 1

    def release(self, permit: Permit) -> None:
        """Give the permit back untried or without a verdict (the caller went away)."""
        with self._lock:
            if permit.probe and permit.generation == self._generation:
                self._probing -= 1

    def statistics(self, now: float) -> BreakerStatistics:
        """How it stands at `now`."""
        with self._lock:
            attempts, failures = self._window.totals(now)
            opens_in = max(self._opens_at - now, 0.0) if self._seen == pybreaker.STATE_OPEN else 0.0
            return BreakerStatistics(self._seen, attempts, failures, self._openings, opens_in)

    def _failed(self, now: float, permit: Permit) -> None:
        if permit.probe:
            self._change(now, pybreaker.STATE_OPEN)
            return
        self._window.add(now, failed=True)
        attempts, failures = self._window.totals(now)
        if attempts >= self._policy.minimum_throughput and failures >= self._policy.failure_ratio * attempts:
            self._change(now, pybreaker.STATE_OPEN)

    def _succeeded(self, now: float, permit: Permit) -> None:
        if not permit.probe:
            self._window.add(now, failed=False)
            self._next_break = self._policy.break_duration
            return
        self._probing -= 1
        self._successes += 1
        if self._successes >= self._policy.probe_successes:
            self._change(now, pybreaker.STATE_CLOSED)

    def _notice(self, now: float) -> None:
        """Follow a change of state that came through the circuit's shared storage, or by the user's own hand."""
        state = self._circuit.current_state
        if state != self._seen:
            self._enter(now, state)
            _ = self._circuit.state  # asking pybreaker makes it tell its listeners

    def _change(self, now: float, state: str) -> None:
        self._enter(now, state)
        if state == pybreaker.STATE_OPEN:
            self._circuit.open()
        elif state == pybreaker.STATE_HALF_OPEN:
            self._circuit.half_open()
        else:
            self._circuit.close()

    def _enter(self, now: float, state: str) -> None:
        old, self._seen = self._seen, state
        self._generation += 1
        self._everyday = Permit(self._generation, False)
        self._probing = self._successes = 0
        self._next_probe = 0.0
        break_for = 0.0
        if state == pybreaker.STATE_OPEN:
            policy = self._policy
            break_for = self._next_break * self._random.uniform(1 - policy.jitter, 1 + policy.jitter)
            self._opens_at = now + break_for
            self._next_break = min(self._next_break * policy.break_growth, policy.max_break_duration)
            self._openings += 1
        elif state == pybreaker.STATE_CLOSED:
            self._window.clear()
        self._on_change(now, old, state, break_for)


def make_circuit(
    name: str, listeners: tuple[Any, ...], storage: pybreaker.CircuitBreakerStorage | None
) -> pybreaker.CircuitBreaker:
    """The pybreaker object behind a breaker; its own counting and clock are not used."""
    guarded = [_GuardedListener(listener) for listener in listeners]
    return pybreaker.CircuitBreaker(name=name, listeners=guarded, state_storage=storage)


class _GuardedListener(pybreaker.CircuitBreakerListener):
    """A user's listener, whose exception is logged: in pybreaker it would leave the storage in the old state."""

    def __init__(self, listener: pybreaker.CircuitBreakerListener) -> None:
        self._listener = listener

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        try:
            self._listener.state_change(cb, old_state, new_state)
        except Exception:
            logger.exception("a circuit breaker listener failed on the change to %s", new_state.name)


class _Window:
    """Attempts and failures of the last `duration` seconds, in slices that are forgotten whole."""

    __slots__ = ("_attempts", "_failures", "_head", "_slices", "_width")

    def __init__(self, duration: float) -> None:
        self._width = duration / _SLICES
        self._head = 0
        self.clear()

    def clear(self) -> None:
        self._slices = [[0, 0] for _ in range(_SLICES)]
        self._attempts = self._failures = 0

    def add(self, now: float, *, failed: bool) -> None:
        self._advance(now)
        current = self._slices[self._head % _SLICES]
        current[0] += 1
        self._attempts += 1
        if failed:
            current[1] += 1
            self._failures += 1

    def totals(self, now: float) -> tuple[int, int]:
        self._advance(now)
        return self._attempts, self._failures

    def _advance(self, now: float) -> None:
        head = int(now / self._width)
        for step in range(self._head + 1, min(head, self._head + _SLICES) + 1):
            stale = self._slices[step % _SLICES]
            self._attempts -= stale[0]
            self._failures -= stale[1]
            stale[0] = stale[1] = 0
        self._head = max(head, self._head)
