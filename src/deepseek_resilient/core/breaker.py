"""The circuit breaker of a target: who fails too often is left alone, then tried again by a few.

Closed: every attempt passes; verdicts are counted in a sliding window of ten slices. It opens when
`failures / attempts >= failure_ratio` with at least `minimum_throughput` attempts in the window. Open: refuses for a
break drawn from `duration * (1 ± jitter)`, where the duration grows by `break_growth` with each opening in a row up to
`max_break_duration`. Half-open: lets through at most `probes` attempts at a time, one per `probe_interval`; the first
failure opens it again, `probe_successes` good answers close it. A break after a failed probe counts from the beginning
of that probe, but lasts for `break_duration` at least: the server was left alone by all others since then, and probes
that hang would else come half as often as those that fail at once.

Who comes while it is open waits for the next probes (`when_open="pause"`), for `max_break_duration`, 1 s and a quarter
of its own time at most; where they are not due by then it is refused at once. So the gap between the end of an outage
and the probe that finds it costs no calls, and nobody waits long for a server that stays down.

Probes are spaced, and one that is older than `max_break_duration` no longer takes a place, so that those that hang do
not hide a recovery from those after them. The first content of a stream makes its probe a good one, and so does a
refusal that is the server's own (a 400, a 429). A verdict of an attempt that began before the last change of state is
ignored: it tells of the past.

pybreaker holds the state, its storage and the users' listeners; it is driven by `open()`, `half_open()` and `close()`.
No request runs inside its lock (its `call()` would hold it during the request). A storage shared with other processes
works: a circuit that another one opened counts as opened here when it is first seen so.

Sources: M. Nygard, "Release It!"; names after Polly 8's circuit breaker strategy.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pybreaker

from deepseek_resilient.core.verdict import FAILURES, VerdictKind
from deepseek_resilient.core.window import Window
from deepseek_resilient.events import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from random import Random

    from deepseek_resilient.config import BreakerPolicy

CLOSED = pybreaker.STATE_CLOSED
_SHARE = 0.25
_LONGEST_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class BreakerStatistics:
    """A look at the circuit: its state, attempts and failures in the window, openings so far, seconds until a
    probe may pass, probes under way."""

    state: str
    attempts: int
    failures: int
    openings: int
    opens_in: float
    probing: int = 0


class Permit(NamedTuple):
    """The right to make one attempt. Give it back with `Breaker.record` or `Breaker.release`; `probe` 0 is no probe."""

    generation: int
    probe: int = 0


NO_PERMIT = Permit(-1)
"""What an attempt holds where no breaker had a say: of no generation, so worth nothing to any."""


class _Change(NamedTuple):
    """A change of state, decided and still to be told: to the listeners, and to pybreaker if it is ours."""

    at: float
    old: str
    new: str
    break_for: float
    ours: bool


class Breaker:
    """One circuit. Thread-safe. Listeners are told after its lock is released, one change at a time, in order."""

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
        self._window = Window(policy.sampling_duration)
        self._seen = circuit.current_state
        self._everyday = Permit(0)
        self._opens_at = 0.0
        self._next_break = policy.break_duration
        self._openings = 0
        self._probes: dict[int, float] = {}
        self._probe_number = 0
        self._next_probe = 0.0
        self._successes = 0
        self._untold: deque[_Change] = deque()
        self._telling = False

    def patience(self, time: float, *, elsewhere: bool) -> float:
        """For how long, in seconds, a call that has so much time may wait while it is open. `elsewhere`: somebody else
        would answer it."""
        policy = self._policy
        if policy.when_open == "wait":
            return math.inf
        if elsewhere or policy.when_open == "refuse":
            return 0.0
        return min(policy.max_break_duration, _LONGEST_PAUSE, time * _SHARE)

    def try_acquire(self, now: float) -> Permit | float:
        """A permit; or, refused, the seconds after which another try may succeed."""
        with self._lock:
            self._notice(now)
            answer = self._everyday if self._seen == pybreaker.STATE_CLOSED else self._try_probe(now)
        if self._untold:
            self._tell()
        return answer

    def record(self, permit: Permit, now: float, kind: VerdictKind, duration: float, *, answered: bool = False) -> None:
        """Give the permit back with what the attempt came to.

        `duration` is in seconds to the first content. `answered` says that the server gave an answer of its own, be it
        a refusal: to a probe that is a sign of life.
        """
        with self._lock:
            began = self._probes.pop(permit.probe, None)
            if permit.generation == self._everyday.generation and (not permit.probe or began is not None):
                slow = self._policy.slow_call_duration
                if kind in FAILURES or (kind is VerdictKind.OK and slow is not None and duration > slow):
                    self._failed(now, began)
                elif kind is VerdictKind.OK or (answered and permit.probe):
                    self._succeeded(now, permit)
        if self._untold:
            self._tell()

    def is_near(self, now: float, in_flight: int) -> bool:
        """Whether half of what opens the circuit has come together, or it is open.

        That is half of `failure_ratio`. While there are fewer than half as many attempts as it judges by, the calls in
        flight count too, as if they were good: one failure of a caller who is alone is many, of a busy one few.
        """
        seen = self.statistics(now)
        policy = self._policy
        few = 2 * seen.attempts < policy.minimum_throughput
        of = seen.attempts + in_flight * few
        return seen.state != CLOSED or 0 < policy.failure_ratio * of <= 2 * seen.failures

    def show_life(self, permit: Permit, now: float) -> None:
        """The first content of a stream came: enough to count a probe as good, long before its stream has ended."""
        if permit.probe:
            self.record(permit, now, VerdictKind.OK, 0.0)

    def release(self, permit: Permit) -> None:
        """Give the permit back untried or without a verdict (the caller went away)."""
        with self._lock:
            self._probes.pop(permit.probe, None)

    def statistics(self, now: float) -> BreakerStatistics:
        """How it stands at `now`."""
        with self._lock:
            attempts, failures = self._window.totals(now)
            opens_in = max(self._opens_at - now, 0.0) if self._seen == pybreaker.STATE_OPEN else 0.0
            probing = len(self._probes)
            return BreakerStatistics(self._seen, attempts, failures, self._openings, opens_in, probing)

    def _try_probe(self, now: float) -> Permit | float:
        policy = self._policy
        if self._seen == pybreaker.STATE_OPEN:
            if now < self._opens_at:
                return self._opens_at - now
            self._enter(now, pybreaker.STATE_HALF_OPEN, ours=True)
        patient = sum(now - started < policy.max_break_duration for started in self._probes.values())
        if patient >= policy.probes or now < self._next_probe:
            return max(self._next_probe - now, policy.probe_interval, 0.01)
        self._probe_number += 1
        self._probes[self._probe_number] = now
        self._next_probe = now + policy.probe_interval
        return Permit(self._everyday.generation, self._probe_number)

    def _failed(self, now: float, probe_began: float | None) -> None:
        if probe_began is not None:
            self._enter(now, pybreaker.STATE_OPEN, ours=True, since=probe_began)
            return
        self._window.add(now, failed=True)
        attempts, failures = self._window.totals(now)
        if attempts >= self._policy.minimum_throughput and failures >= self._policy.failure_ratio * attempts:
            self._enter(now, pybreaker.STATE_OPEN, ours=True)

    def _succeeded(self, now: float, permit: Permit) -> None:
        if not permit.probe:
            self._window.add(now, failed=False)
            self._next_break = self._policy.break_duration
            return
        self._successes += 1
        if self._successes >= self._policy.probe_successes:
            self._enter(now, pybreaker.STATE_CLOSED, ours=True)

    def _notice(self, now: float) -> None:
        """Follow a change of state that came through the circuit's shared storage, or by the user's own hand."""
        if self._untold or self._telling:
            return
        state = self._circuit.current_state
        if state != self._seen:
            self._enter(now, state, ours=False)

    def _enter(self, now: float, state: str, *, ours: bool, since: float | None = None) -> None:
        old, self._seen = self._seen, state
        self._everyday = Permit(self._everyday.generation + 1)
        self._probes.clear()
        self._successes = 0
        self._next_probe = 0.0
        break_for = 0.0
        if state == pybreaker.STATE_OPEN:
            policy = self._policy
            jitter = self._random.uniform(1 - policy.jitter, 1 + policy.jitter)
            rested = 0.0 if since is None else now - since
            break_for = max(self._next_break - rested, policy.break_duration) * jitter
            self._opens_at = now + break_for
            self._next_break = min(self._next_break * policy.break_growth, policy.max_break_duration)
            self._openings += 1
        elif state == pybreaker.STATE_CLOSED:
            self._window.clear()
        self._untold.append(_Change(now, old, state, break_for, ours))

    def _tell(self) -> None:
        """Tell what has changed, without the lock: a listener may be slow, or look at this breaker from elsewhere."""
        while True:
            with self._lock:
                if self._telling or not self._untold:
                    return
                self._telling = True
                change = self._untold.popleft()
            try:
                if not change.ours:
                    _ = self._circuit.state  # asking pybreaker makes it tell its listeners
                elif change.new == pybreaker.STATE_OPEN:
                    self._circuit.open()
                elif change.new == pybreaker.STATE_HALF_OPEN:
                    self._circuit.half_open()
                else:
                    self._circuit.close()
                self._on_change(change.at, change.old, change.new, change.break_for)
            finally:
                self._telling = False


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
