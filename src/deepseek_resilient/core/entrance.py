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
from deepseek_resilient.core.ladder import simplify, steps
from deepseek_resilient.core.passage import give_up, pass_through, release, wait_at
from deepseek_resilient.core.target import ALL_ACCOUNTS
from deepseek_resilient.errors import (
    OverloadedError,
    RateLimitedError,
    RejectedError,
    ShedError,
)
from deepseek_resilient.events import CallSimplified

if TYPE_CHECKING:
    from deepseek_resilient.config import Priority, Upstream
    from deepseek_resilient.core.admission import LoadMeter
    from deepseek_resilient.core.bill import Charge
    from deepseek_resilient.core.breaker import Permit
    from deepseek_resilient.core.messages import Request
    from deepseek_resilient.core.rate import Reservation
    from deepseek_resilient.core.routing import Pick, Router
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.core.target import Target

_REFUSE, _STALE = Refuse(), StaleAnswer()


class Entry(NamedTuple):
    """The right to send `request` to `target` once, and what has to be given back for it."""

    request: Request
    target: Target | None
    permit: Permit
    reservation: Reservation | None = None
    charge: Charge | None = None
    pick: Pick | None = None


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
    release(target, entry.permit)
    give_up(runtime, target, entry.reservation)
    if target.places is not None:
        target.places.exit(now, now)
    if entry.charge is not None and runtime.ledger is not None:
        runtime.ledger.cancel(entry.charge, call)


async def _pay(runtime: Runtime, call: Call) -> RejectedError | None:
    """The wait before an upstream that was tried already is tried again."""
    delay, call.owed = call.owed, 0.0
    if not call.outlives(runtime.clock() + delay):
        return OverloadedError("no upstream is left that was not tried, and no time.", step="route")
    await wait_at(runtime, call, "route", delay)
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
        now = runtime.clock()
        if call.attempts == 0:
            _report(call, target, target.admission.meter, now)
        level, load = target.admission.meter.look(now)
        if call.attempts == 0:
            if call.dice is None and runtime.router is not None:
                call.dice = runtime.random.random()
            shed = target.admission.admit(level, load, call.priority, call.dice)
            if shed is not None:
                return _shed_error(call.priority, target, load, shed.retry_after)
        taken = steps(runtime.policy.ladder, level, call.priority)
        if _REFUSE in taken or (call.has_stale and not call.continued and _STALE in taken):
            return _shed_error(call.priority, target, load, target.admission.dwell)
        fields = _simplify(runtime, call, level) if taken and not (call.continued or call.local) else None
    entered: RejectedError | tuple[Permit, Reservation | None] | None = None
    if fields is not None and "model" in call.simplified:
        cheaper = _target_of(runtime, call, upstream, str(fields["model"]))
        call.target = cheaper.name
        entered = await pass_through(runtime, call, cheaper, patient=patient)
        if isinstance(entered, RejectedError) and entered.step in ("gate", "breaker"):
            call.target, call.simplified = target.name, ()  # better the own model than none
            fields = entered = None
        else:
            target = cheaper
    if entered is None:
        entered = await pass_through(runtime, call, target, patient=patient)
    if isinstance(entered, RejectedError):
        return entered
    request = call.request
    if fields is not None or upstream is not None:
        request = request.adapted(fields, upstream)
    charge: Charge | None = None
    if runtime.ledger is not None:
        model = call.info.model if fields is None else str(fields["model"])
        charge = runtime.ledger.open(call, model if upstream is None else upstream.model(model), upstream)
        if charge is None:
            _give_back(runtime, call, Entry(request, target, *entered))
            return _unpaid(call)
    if call.simplified:
        runtime.listeners.emit(CallSimplified(runtime.clock(), call.number, target.name, level, call.simplified))
    return Entry(request, target, *entered, charge)


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


def _report(call: Call, target: Target, meter: LoadMeter, now: float) -> None:
    """Tell the meter how full the target's places are."""
    if target.places is not None:
        in_flight, limit, delay = target.places.pressure(now)
        if limit is not None or delay or not meter.quiet:
            left = math.inf if call.deadline is None else max(call.deadline - now, 0.001)
            meter.report_places(now, in_flight, limit, delay / left)


def would_shed(runtime: Runtime, priority: Priority, model: str | None, dice: float) -> ShedError | None:
    """Whether every target, or every one of `model`, would shed a call of that priority now: the soonest to take it."""
    soonest: ShedError | None = None
    now = runtime.clock()
    for target in runtime.targets.all(model):
        if target.admission is None:
            return None
        level, load = target.admission.meter.look(now)
        shed = target.admission.admit(level, load, priority, dice)
        if shed is not None:
            refused = _shed_error(priority, target, load, shed.retry_after)
        elif _REFUSE in steps(runtime.policy.ladder, level, priority):
            refused = _shed_error(priority, target, load, target.admission.dwell)
        else:
            return None
        if soonest is None or (refused.retry_after or 0.0) < (soonest.retry_after or 0.0):
            soonest = refused
    return soonest


def _shed_error(priority: Priority, target: Target, load: float, retry_after: float) -> ShedError:
    return ShedError(
        f"{target.name} is at {load:.0%} of what it can take, and {priority.label} calls are shed there; "
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


def _unpaid(call: Call) -> RejectedError:
    return RateLimitedError(
        f"another attempt, at {call.target}, would cost more than is left for extra attempts (extra_per_minute and "
        "extra_per_day of the LedgerPolicy).",
        step="money",
    )
