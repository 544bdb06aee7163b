"""One attempt: counted, judged once, and learnt from by everything that watches its target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_resilient.core.limit import Sample, size_class
from deepseek_resilient.core.verdict import FAILURES, NEVER_SENT, OK, Verdict, VerdictKind
from deepseek_resilient.events import (
    AttemptAbandoned,
    AttemptCharged,
    AttemptEnded,
    AttemptStarted,
    GateClosed,
    ModelChanged,
)

if TYPE_CHECKING:
    from deepseek_resilient.core.concurrency import Places
    from deepseek_resilient.core.entrance import Entry
    from deepseek_resilient.core.rate import RateLimiter, Reservation
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.core.stream import StreamWatch
    from deepseek_resilient.usage import Usage


_BYTES_PER_TOKEN = 4
IMPATIENT = 1.0
"""A call that gives up sooner than this, in seconds, by its own deadline says nothing of the target's health."""


class Attempt:
    """From the permit to the verdict. `settle` or `abandon` gives the permit back; the first of them counts."""

    __slots__ = (
        "_breaker", "_places", "_target", "answer_size", "call", "entry", "first_content", "model", "runtime",
        "started", "until", "usage", "verdict", "watch",
    )  # fmt: skip

    def __init__(self, runtime: Runtime, call: Call, entry: Entry) -> None:
        self.runtime = runtime
        self.call = call
        self.entry = entry
        self._target = target = entry.target
        self._breaker = None if target is None else target.breaker
        self._places = None if target is None else target.places
        self.until: float | None = None
        self.answer_size = 0
        self.model = ""
        self.usage: Usage | None = None
        self.watch: StreamWatch | None = None
        self.started = runtime.clock()
        self.first_content: float | None = None
        self.verdict: Verdict | None = None
        call.attempts += 1
        call.attempt = self
        if entry.pick is not None:
            call.tried = call.tried | {entry.pick.upstream.name}
        runtime.count_attempt()

    def announce(self) -> None:
        """Tell the listeners that it begins."""
        call = self.call
        listeners = self.runtime.listeners
        if call.told and listeners.wants(AttemptStarted):
            listeners.emit(AttemptStarted(self.started, call.number, call.attempts, call.target))

    def commit(self) -> None:
        """The first content of a stream came."""
        self.first_content = now = self.runtime.clock()
        if self.call.handover is not None:
            self.call.handover.cancel()
        self._learn(now)
        if self._breaker is not None:
            self._breaker.show_life(self.entry.permit, now)
        if self._places is not None:
            self._places.answered(now, self._sample(now))
        if self.entry.pick is not None and self.runtime.router is not None:
            self.runtime.router.commit(self.entry.pick, now)

    def note_model(self, model: str) -> None:
        """The answer names its model: a change behind the name that was asked for is told."""
        self.model = model
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
        call.attempt = None
        now = runtime.clock()
        self._account(verdict)
        if verdict.kind is VerdictKind.OK and self.first_content is None:
            self._learn(now)
        duration = (now if self.first_content is None else self.first_content) - self.started
        shut = 0.0 if verdict is OK else self._shut_gate(verdict, now)
        self._teach(verdict, now)
        if shut and self._places is not None:
            self._places.pause()
        runtime.count_verdict(verdict.kind)
        call.verdicts.append(verdict.kind)
        if self._breaker is not None:
            if self.first_content is None and self._was_impatient(verdict, now):
                self._breaker.release(self.entry.permit)
            else:
                answered = verdict.status is not None
                self._breaker.record(self.entry.permit, now, verdict.kind, duration, answered=answered)
        if call.told:
            runtime.listeners.emit(
                AttemptEnded(
                    now, call.number, call.attempts, call.target, verdict.kind, verdict.reason, verdict.status,
                    duration, self.model,
                )
            )  # fmt: skip
            self._tell_charge()
        if shut:
            runtime.listeners.emit(GateClosed(now, call.target, shut, verdict.reason))
        if runtime.local is not None and verdict.kind in FAILURES and not call.local and self._fails_often(now):
            runtime.local.on_risk()

    def abandon(self) -> None:
        """The caller went away; that says nothing of the target. Does nothing after `settle`."""
        if self.verdict is None:
            self.verdict = Verdict(VerdictKind.CALLER_FAULT, "abandoned")
            self.call.attempt = None
            self._account(None)
            if self._places is not None:
                now = self.runtime.clock()
                if self.first_content is None:
                    self._places.abandon(now, self._sample(now))
                else:
                    self._places.exit(now, self.started)
            if self._breaker is not None:
                self._breaker.release(self.entry.permit)
            self._leave_upstream(None, self.runtime.clock())
            call = self.call
            if call.told:
                now = self.runtime.clock()
                self.runtime.listeners.emit(AttemptAbandoned(now, call.number, call.attempts, call.target))
                self._tell_charge()

    def _account(self, verdict: Verdict | None) -> None:
        """What it used, and what that costs."""
        watch, charge, call, runtime = self.watch, self.entry.charge, self.call, self.runtime
        if watch is not None and self.usage is None:
            self.usage = watch.usage
        ledger = runtime.ledger
        if charge is None or ledger is None:
            return
        pieces = self.answer_size // _BYTES_PER_TOKEN if watch is None else watch.pieces
        ledger.close(charge, call, verdict, self.usage, pieces)

    def _tell_charge(self) -> None:
        charge, call = self.entry.charge, self.call
        if charge is not None:
            tokens = charge.usage or (0, 0, 0)
            self.runtime.listeners.emit(
                AttemptCharged(
                    self.runtime.clock(), call.number, charge.attempt, charge.target, *tokens, charge.cost,
                    charge.billed, charge.estimated, call.tenant,
                )
            )  # fmt: skip

    def _fails_often(self, now: float) -> bool:
        return self._breaker is None or self._breaker.is_near(now, self.runtime.in_flight)

    def _learn(self, now: float) -> None:
        if self.runtime.hedges is not None and self.call.info.dialect.is_inference:
            self.runtime.hedges.learn(self.call, now - self.started)

    def _teach(self, verdict: Verdict, now: float) -> None:
        """What the places, the rate limit, the load meter and routing learn from it."""
        entry, target = self.entry, self._target
        if self._places is not None:
            self._give_place_back(self._places, verdict, now)
        if target is not None:
            if entry.reservation is not None and target.rate is not None:
                self._correct(entry.reservation, target.rate, verdict, now)
            if target.admission is not None:
                target.admission.meter.report_verdict(now, verdict)
        self._leave_upstream(verdict, now)

    def _leave_upstream(self, verdict: Verdict | None, now: float) -> None:
        pick, router = self.entry.pick, self.runtime.router
        if pick is None or router is None:
            return
        router.finish(pick, now, None if verdict is None else verdict.kind)
        if verdict is None:
            return
        own_key_is_wrong = verdict.status in (401, 403) and pick.upstream.api_key is not None
        if verdict.rest or own_key_is_wrong:
            router.rest(pick.upstream.name, now, self.runtime.policy.gate.rest)

    def _correct(self, reservation: Reservation, rate: RateLimiter, verdict: Verdict, now: float) -> None:
        """The tokens that were used; none where the server refused, and no request where it was not reached."""
        if self.usage is not None:
            rate.correct(reservation, now, self.usage.total)
        elif verdict.reason in NEVER_SENT:
            rate.cancel(reservation, now)
        elif verdict.status is not None and verdict.status >= 400:
            rate.correct(reservation, now, 0)

    def _give_place_back(self, places: Places, verdict: Verdict, now: float) -> None:
        kind = verdict.kind
        if self.first_content is not None:
            pass
        elif kind is VerdictKind.OK:
            places.answered(now, self._sample(now))
        elif kind is VerdictKind.TIMEOUT:
            places.timed_out(now, self._sample(now))
        elif kind in (VerdictKind.THROTTLED, VerdictKind.OVERLOADED) and not verdict.rest:
            places.overloaded(now, self.started, verdict.stated_limit)
        places.exit(now, self.started)

    def _sample(self, now: float) -> Sample:
        call = self.call
        size = size_class(len(call.request.body), self.answer_size, stream=call.info.stream)
        allowed = None if self.until is None else self.until - self.started
        return Sample(self.started, now - self.started, size, allowed, call.number)

    def _was_impatient(self, verdict: Verdict, now: float) -> bool:
        return verdict.kind is VerdictKind.TIMEOUT and now - self.started < IMPATIENT and not self.call.outlives(now)

    def _shut_gate(self, verdict: Verdict, now: float) -> float:
        """Close the gate of the target for as long as it asks: so many seconds, 0 where it asks for nothing new."""
        target, policy = self._target, self.runtime.policy
        seconds, patient = verdict.retry_after, True
        if verdict.rest:
            seconds, patient = policy.gate.rest, False
        if target is None or seconds is None or verdict.kind is VerdictKind.CALLER_FAULT:
            return 0.0
        seconds = min(seconds, policy.gate.rest if verdict.rest else policy.retry.max_retry_after)
        status = verdict.status or 0
        if status < 400:  # it was said inside a 200
            status = 429 if verdict.kind is VerdictKind.THROTTLED else 503
        closes = target.gate.close(now, seconds, status=status, reason=verdict.reason, patient=patient)
        return seconds if closes else 0.0
