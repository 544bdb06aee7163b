"""How an attempt gets in: which upstream, what is asked of it, and the permit to ask now.

    route ── admission, ladder ── gate ── breaker ── rate ── places

`enter` answers with an `Entry`, which `Attempt` gives back, or with the refusal. With several upstreams each is asked
in turn whether it lets the call in at once; only when none does, the call waits, at the one that routing prefers.
Whoever has waited at a step is asked at all of them again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from deepseek_resilient import wire
from deepseek_resilient.config.quality import Refuse, StaleAnswer
from deepseek_resilient.core.breaker import NO_PERMIT
from deepseek_resilient.core.effects import Sleep, Wait
from deepseek_resilient.core.ladder import simplify, steps
from deepseek_resilient.core.rate import Reservation, TooLarge
from deepseek_resilient.core.target import ALL_ACCOUNTS
from deepseek_resilient.core.tokens import estimate_request
from deepseek_resilient.errors import (
    CircuitOpenError,
    OverloadedError,
    RateLimitedError,
    RejectedError,
    ShedError,
    TooManyTokensError,
)
from deepseek_resilient.events import CallSimplified, StepWaited

if TYPE_CHECKING:
    from deepseek_resilient.config import Upstream
    from deepseek_resilient.core.admission import Admission
    from deepseek_resilient.core.bill import Charge
    from deepseek_resilient.core.breaker import Permit
    from deepseek_resilient.core.concurrency import Places
    from deepseek_resilient.core.messages import Request
    from deepseek_resilient.core.routing import Pick, Router
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.core.target import Target

_HEADROOM = 1.5
"""A call leaves the queue when less than this many times the usual time of an answer is left of its deadline."""


_REFUSE, _STALE = Refuse(), StaleAnswer()


class Entry(NamedTuple):
    """The right to send `request` to `target` once, and what has to be given back for it."""

    request: Request
    target: Target | None
    permit: Permit
    reservation: Reservation | None = None
    charge: Charge | None = None
    pick: Pick | None = None


class _Pause(NamedTuple):
    """A step lets the call wait."""

    step: str
    delay: float
    refusal: RejectedError


async def enter(runtime: Runtime, call: Call) -> Entry | RejectedError:
    """The next attempt of `call`. What is no inference call has no target, and passes."""
    request = call.request
    if not call.info.dialect.is_inference:
        call.target = request.origin.partition("://")[2]
        return Entry(request, None, NO_PERMIT)
    if runtime.router is None:
        return await _enter_at(runtime, call, None, patient=True)
    return await _route(runtime, call, runtime.router)


async def _route(runtime: Runtime, call: Call, router: Router) -> Entry | RejectedError:
    """At the first upstream that lets the call in at once: those not tried yet, then, after the wait that a retry owes,
    the others. When none does, at the one that will first."""
    refused: dict[str, RejectedError] = {}
    for before in (call.tried, frozenset[str]()):
        if not before and call.owed and (late := await _pay(runtime, call)) is not None:
            return late
        while (pick := router.pick(runtime.clock(), call.size, before | refused.keys())) is not None:
            entered: Entry | RejectedError | None = None
            try:
                entered = await _enter_at(runtime, call, pick.upstream, patient=False)
            finally:
                if not isinstance(entered, Entry):
                    router.finish(pick, runtime.clock(), None)
            if isinstance(entered, Entry):
                return entered._replace(pick=pick)
            refused[pick.upstream.name] = entered
        if not call.tried:
            break
    for name in sorted(refused, key=lambda one: refused[one].retry_after or 0.0):
        others = refused.keys() - {name}
        if (pick := router.pick(runtime.clock(), call.size, others)) is None:
            continue
        router.finish(pick, runtime.clock(), None)  # who waits is not in flight
        entered = await _enter_at(runtime, call, pick.upstream, patient=True)
        if isinstance(entered, RejectedError):
            refused[name] = entered
        elif (pick := router.pick(runtime.clock(), call.size, others)) is None:  # drained or removed meanwhile
            _give_back(runtime, call, entered)
        else:
            return entered._replace(pick=pick)
    return min(refused.values(), key=lambda error: error.retry_after or 0.0) if refused else _nobody(runtime, router)


async def enter_local(runtime: Runtime, call: Call, upstream: Upstream) -> Entry | RejectedError:
    """The next attempt of `call`, at the model on this machine."""
    entered = await _enter_at(runtime, call, upstream, patient=True)
    if isinstance(entered, Entry):
        entered.request.direct = True
    return entered


def _give_back(runtime: Runtime, call: Call, entry: Entry) -> None:
    now, target = runtime.clock(), cast("Target", entry.target)
    _release(target, entry.permit)
    _give_up(runtime, target, entry.reservation)
    if target.places is not None:
        target.places.exit(now, now)
    if entry.charge is not None and runtime.ledger is not None:
        runtime.ledger.cancel(entry.charge, call)


async def _pay(runtime: Runtime, call: Call) -> RejectedError | None:
    """The wait before an upstream that was tried already is tried again."""
    delay, call.owed = call.owed, 0.0
    if not call.outlives(runtime.clock() + delay):
        return OverloadedError("no upstream is left that was not tried, and no time.", step="route")
    await _wait(runtime, call, "route", delay)
    return None


def _nobody(runtime: Runtime, router: Router) -> RejectedError:
    waits = [each.out_for for each in router.statistics(runtime.clock()).values() if each.out_for > 0]
    return OverloadedError(
        "no upstream is free: all are resting, ejected, full or draining; nothing was sent.",
        step="route",
        retry_after=min(waits, default=None),
    )


async def _enter_at(runtime: Runtime, call: Call, upstream: Upstream | None, *, patient: bool) -> Entry | RejectedError:
    target = _target_of(runtime, call, upstream, call.info.model)
    call.target = target.name
    call.simplified = ()
    fields, level = None, 0
    if target.admission is not None:
        if call.attempts == 0 and (shed := _shed(runtime, call, target, target.admission)) is not None:
            return shed
        level, load = target.admission.meter.look(runtime.clock())
        taken = steps(runtime.policy.ladder, level, call.priority)
        if _REFUSE in taken or (call.has_stale and not call.continued and _STALE in taken):
            return _shed_error(call, target, load, target.admission.dwell)
        fields = _simplify(runtime, call, level) if taken and not (call.continued or call.local) else None
    entered: RejectedError | tuple[Permit, Reservation | None] | None = None
    if fields is not None and "model" in call.simplified:
        cheaper = _target_of(runtime, call, upstream, str(fields["model"]))
        call.target = cheaper.name
        entered = await _pass(runtime, call, cheaper, patient=patient)
        if isinstance(entered, RejectedError) and entered.step in ("gate", "breaker"):
            call.target, call.simplified = target.name, ()  # better the own model than none
            fields = entered = None
        else:
            target = cheaper
    if entered is None:
        entered = await _pass(runtime, call, target, patient=patient)
    if isinstance(entered, RejectedError):
        return entered
    request = call.request
    if fields is not None or upstream is not None:
        request = request.adapted(fields, upstream)
    entry = Entry(request, target, *entered)
    if runtime.ledger is not None:
        model = call.info.model if fields is None else str(fields["model"])
        charge = runtime.ledger.open(call, model if upstream is None else upstream.model(model), upstream)
        if charge is None:
            _give_back(runtime, call, entry)
            return _unpaid(call)
        entry = entry._replace(charge=charge)
    if call.simplified:
        runtime.listeners.emit(CallSimplified(runtime.clock(), call.number, target.name, level, call.simplified))
    return entry


def _target_of(runtime: Runtime, call: Call, upstream: Upstream | None, model: str) -> Target:
    request = call.request
    if upstream is None:
        return runtime.targets.get(request.origin, request.account, model)
    if upstream.kind == "local" and call.local:  # its port and key change with each start
        return runtime.targets.get("local", ALL_ACCOUNTS, model, "local", upstream.max_concurrency)
    account = hash(upstream.api_key) if upstream.api_key else request.account
    return runtime.targets.get(
        upstream.base_url, account, upstream.model(model), upstream.name, upstream.max_concurrency
    )  # fmt: skip


def _shed(runtime: Runtime, call: Call, target: Target, admission: Admission) -> RejectedError | None:
    now = runtime.clock()
    if target.places is not None:
        in_flight, limit, delay = target.places.pressure()
        if limit is not None or delay or not admission.meter.quiet:
            admission.meter.report_in_flight(now, in_flight, limit)
            left = math.inf if call.deadline is None else max(call.deadline - now, 0.001)
            admission.meter.report_queue_delay(now, delay / left)
    if call.dice is None and runtime.router is not None:
        call.dice = runtime.random.random()
    shed = admission.admit(now, call.priority, call.dice)
    return None if shed is None else _shed_error(call, target, shed.load, shed.retry_after)


def _shed_error(call: Call, target: Target, load: float, retry_after: float) -> ShedError:
    return ShedError(
        f"{target.name} is at {load:.0%} of what it can take, and {call.priority.label} calls are shed there; "
        f"nothing was sent. Try again in {retry_after:.2f} s, or call with a higher priority.",
        step="admission",
        retry_after=retry_after,
    )


def _simplify(runtime: Runtime, call: Call, level: int) -> dict[str, Any] | None:
    """What is asked instead of the call's own fields, as the ladder has it; None for the call as it is."""
    if call.request.encoded or not call.request.replayable:
        return None
    simpler = simplify(call.info.dialect, call.read(), level, call.priority, runtime.policy.ladder)
    if simpler is None or wire.encode(simpler.fields) is None:
        return None
    call.simplified = simpler.changed
    return simpler.fields


async def _pass(
    runtime: Runtime, call: Call, target: Target, *, patient: bool
) -> RejectedError | tuple[Permit, Reservation | None]:
    """Through gate, breaker, rate and places of `target`, waiting where allowed."""
    places, held = target.places, False
    reservation: Reservation | None = None
    entered = False
    try:
        while True:
            answer = _ask_health(runtime, call, target)
            if isinstance(answer, RejectedError):
                return answer
            if isinstance(answer, _Pause):
                if not patient:
                    return answer.refusal
                if held and places is not None:
                    held = False
                    places.exit(runtime.clock(), runtime.clock())
                _give_up(runtime, target, reservation)
                reservation = None
                await _wait(runtime, call, answer.step, answer.delay)
                continue
            if target.rate is not None and reservation is None:
                paced = _reserve(runtime, call, target, patient=patient)
                if isinstance(paced, RejectedError):
                    _release(target, answer)
                    return paced
                reservation = paced
                if paced.delay > 0:
                    _release(target, answer)
                    await _wait(runtime, call, "rate", paced.delay)
                    continue
            if places is None or held or places.try_enter():
                entered = True
                return answer, reservation
            _release(target, answer)
            if not patient:
                return _crowded(call, "which is as many as it can take now", places.seconds_to_empty())
            _give_up(runtime, target, reservation)
            reservation = None
            full = await _queue(runtime, call, places)
            if full is not None:
                return full
            held = True
    finally:
        if not entered:
            if held and places is not None:
                places.exit(runtime.clock(), runtime.clock())
            _give_up(runtime, target, reservation)


def _ask_health(runtime: Runtime, call: Call, target: Target) -> RejectedError | Permit | _Pause:
    """The gate, then the breaker."""
    now = runtime.clock()
    closed = target.gate.check(now)
    if closed is not None:
        remedy = "Try again then, or give the call a longer timeout."
        if not closed.patient:
            remedy = "Waiting does not mend it: top up the balance of the account, or use another one."
        refusal: RejectedError = RateLimitedError(
            f"{target.name} asked to be left alone for another {closed.remaining:.1f} s ({closed.reason}); "
            f"nothing was sent. {remedy}",
            step="gate",
            retry_after=closed.remaining,
            http_status=closed.status,
        )
        waits = closed.patient and call.outlives(now + closed.delay)
        return _Pause("gate", closed.delay, refusal) if waits else refusal
    breaker = target.breaker
    if breaker is None:
        return NO_PERMIT
    permit = breaker.try_acquire(now)
    if not isinstance(permit, float):
        return permit
    delay = permit * runtime.random.uniform(1.0, 2.0)
    refusal = CircuitOpenError(
        f"the circuit of {target.name} is open: it failed too often a moment ago; nothing was sent. "
        f"Try again in {permit:.2f} s.",
        step="breaker",
        retry_after=permit,
    )
    return refusal if breaker.refuses or not call.outlives(now + delay) else _Pause("breaker", delay, refusal)


def _give_up(runtime: Runtime, target: Target, reservation: Reservation | None) -> None:
    """A reservation is for its instant: who waits elsewhere makes another one."""
    if reservation is not None and target.rate is not None:
        target.rate.cancel(reservation, runtime.clock())


def _release(target: Target, permit: Permit) -> None:
    if target.breaker is not None:
        target.breaker.release(permit)


def _reserve(runtime: Runtime, call: Call, target: Target, *, patient: bool) -> Reservation | RejectedError:
    assert target.rate is not None  # noqa: S101 -- for the type checker; asked only where there is one
    now = runtime.clock()
    patience = 0.0 if not patient else math.inf if call.deadline is None else max(call.deadline - now, 0.0)
    if call.tokens is None:
        call.tokens = 0
        if runtime.policy.rate.tokens_per_minute is not None:
            encoded = call.request.encoded
            call.tokens = len(call.request.body) if encoded else estimate_request(call.read(), runtime.count_tokens)
    answer = target.rate.reserve(now, call.tokens, patience)
    if isinstance(answer, Reservation):
        return answer
    if isinstance(answer, TooLarge):
        return TooManyTokensError(
            f"this call has about {answer.tokens:.0f} tokens, more than the {answer.capacity:.0f} that may be sent to "
            f"{target.name} at once (tokens_per_minute and burst of its RatePolicy); nothing was sent.",
            step="rate",
        )
    return RateLimitedError(
        f"the rate limit of {target.name} is used up for another {answer:.2f} s; nothing was sent.",
        step="rate",
        retry_after=answer,
    )


async def _queue(runtime: Runtime, call: Call, places: Places) -> RejectedError | None:
    """Wait for a place, as long as an attempt could still end in time; None with a place, or the refusal."""
    began = runtime.clock()
    until = None
    if call.deadline is not None:
        left = call.deadline - began
        until = began + max(left - places.expected(stream=call.info.stream) * _HEADROOM, left / 2)
    waiter = places.queue(began, call.priority, until)
    if isinstance(waiter, float):
        return _crowded(call, "and as many calls wait already as may", waiter)
    try:
        await Wait(waiter, until=until)
    except BaseException:
        places.leave(waiter, runtime.clock())
        raise
    now = runtime.clock()
    call.waited += now - began
    if call.told:
        runtime.listeners.emit(StepWaited(now, call.number, "concurrency", call.target, now - began))
    if waiter.granted:
        return None
    places.leave(waiter, now)
    why = "and calls that matter more took the queue" if waiter.refused else "and none came free in time"
    return _crowded(call, why, places.seconds_to_empty())


def _crowded(call: Call, why: str, retry_after: float) -> RejectedError:
    return RateLimitedError(
        f"{call.target} has as many calls of ours in flight as it can take now, {why}; nothing was sent. "
        f"Try again in {retry_after:.2f} s.",
        step="concurrency",
        retry_after=retry_after,
    )


def _unpaid(call: Call) -> RejectedError:
    return RateLimitedError(
        f"another attempt, at {call.target}, would cost more than is left for extra attempts (extra_per_minute and "
        "extra_per_day of the LedgerPolicy).",
        step="money",
    )


async def _wait(runtime: Runtime, call: Call, step: str, delay: float) -> None:
    runtime.listeners.emit(StepWaited(runtime.clock(), call.number, step, call.target, delay))
    call.waited += delay
    await Sleep(delay)
