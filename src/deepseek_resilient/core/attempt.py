"""One attempt: counted, judged once, and learnt from by everything that watches its target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_resilient.core.breaker import NO_PERMIT
from deepseek_resilient.core.verdict import OK, Verdict, VerdictKind
from deepseek_resilient.events import AttemptAbandoned, AttemptEnded, AttemptStarted, GateClosed, ModelChanged

if TYPE_CHECKING:
    from deepseek_resilient.core.breaker import Permit
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.core.target import Target


IMPATIENT = 1.0
"""A call that gives up sooner than this, in seconds, by its own deadline says nothing of the target's health."""


class Attempt:
    """From the permit to the verdict. `settle` or `abandon` gives the permit back; the first of them counts."""

    __slots__ = ("_breaker", "_permit", "_target", "call", "first_content", "runtime", "started", "verdict")

    def __init__(self, runtime: Runtime, call: Call, target: Target | None, permit: Permit | None) -> None:
        self.runtime = runtime
        self.call = call
        self._target = target
        self._permit = permit or NO_PERMIT
        self._breaker = None if target is None else target.breaker
        self.started = runtime.clock()
        self.first_content: float | None = None
        self.verdict: Verdict | None = None
        call.attempts += 1
        runtime.count_attempt()

    def announce(self) -> None:
        """Tell the listeners that it begins."""
        call = self.call
        if call.told:
            self.runtime.listeners.emit(AttemptStarted(self.started, call.number, call.attempts, call.target))

    def commit(self) -> None:
        """The first content of a stream came."""
        self.first_content = now = self.runtime.clock()
        if self._breaker is not None:
            self._breaker.show_life(self._permit, now)

    def note_model(self, model: str) -> None:
        """The answer names its model: a change behind the name that was asked for is told."""
        target = self._target
        if target is None or not model:
            return
        before = target.served.change(model)
        if before:
            self.runtime.listeners.emit(ModelChanged(self.runtime.clock(), target.name, before, model))

    def settle(self, verdict: Verdict) -> None:
        """The attempt came to `verdict`: the gate and the breaker of the target learn from it."""
        if self.verdict is not None:
            return
        self.verdict = verdict
        runtime, call = self.runtime, self.call
        now = runtime.clock()
        duration = (now if self.first_content is None else self.first_content) - self.started
        runtime.count_verdict(verdict.kind)
        call.verdicts.append(verdict.kind)
        if self._breaker is not None:
            if verdict.kind is VerdictKind.TIMEOUT and duration < IMPATIENT and not call.outlives(now):
                self._breaker.release(self._permit)
            else:
                answered = verdict.status is not None
                self._breaker.record(self._permit, now, verdict.kind, duration, answered=answered)
        if call.told:
            runtime.listeners.emit(
                AttemptEnded(
                    now, call.number, call.attempts, call.target, verdict.kind, verdict.reason, verdict.status, duration
                )
            )
        if verdict is not OK and self._target is not None:
            self._teach_gate(self._target, verdict, now)

    def abandon(self) -> None:
        """The caller went away; that says nothing of the target. Does nothing after `settle`."""
        if self.verdict is None:
            self.verdict = Verdict(VerdictKind.CALLER_FAULT, "abandoned")
            if self._breaker is not None:
                self._breaker.release(self._permit)
            call = self.call
            if call.told:
                now = self.runtime.clock()
                self.runtime.listeners.emit(AttemptAbandoned(now, call.number, call.attempts, call.target))

    def _teach_gate(self, target: Target, verdict: Verdict, now: float) -> None:
        policy = self.runtime.policy
        seconds, patient = verdict.retry_after, True
        if verdict.rest:
            seconds, patient = policy.gate.rest, False
        if seconds is None or verdict.kind is VerdictKind.CALLER_FAULT:
            return
        seconds = min(seconds, policy.gate.rest if verdict.rest else policy.retry.max_retry_after)
        status = verdict.status or 0
        if status < 400:  # it was said inside a 200
            status = 429 if verdict.kind is VerdictKind.THROTTLED else 503
        if target.gate.close(now, seconds, status=status, reason=verdict.reason, patient=patient):
            self.runtime.listeners.emit(GateClosed(now, target.name, seconds, verdict.reason))
