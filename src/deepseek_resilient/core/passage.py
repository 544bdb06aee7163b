"""Through the steps of one target: may we ask it now, and if not, shall the call wait for that?

    gate ── breaker ── rate ── places

Whoever has waited at a step is asked at all of them again; what was held meanwhile is given back first, but the place,
which was waited for last.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from deepseek_resilient.core.breaker import NO_PERMIT, Permit
from deepseek_resilient.core.effects import Sleep, Wait
from deepseek_resilient.core.rate import Reservation, TooLarge
from deepseek_resilient.core.tokens import estimate_request
from deepseek_resilient.errors import CircuitOpenError, RateLimitedError, RejectedError, TooManyTokensError
from deepseek_resilient.events import StepWaited

if TYPE_CHECKING:
    from deepseek_resilient.core.concurrency import Places, Waiter
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.core.target import Target

_SPREAD = 0.1
"""Calls that wait at an open circuit come back over this many seconds, so that they do not come in step."""
_HEADROOM = 1.5
"""A call leaves the queue when less than this many times the usual time of an answer is left of its deadline."""


class _Pause(NamedTuple):
    """A step lets the call wait."""

    step: str
    delay: float
    refusal: RejectedError


async def pass_through(
    runtime: Runtime, call: Call, target: Target, *, patient: bool
) -> RejectedError | tuple[Permit, Reservation | None]:
    """Through gate, breaker, rate and places of `target`, waiting where allowed."""
    places, held = target.places, False
    paused_at: float | None = None
    reservation: Reservation | None = None
    entered = False
    try:
        while True:
            answer = _ask_health(runtime, call, target, paused_at)
            if isinstance(answer, RejectedError):
                return answer
            if isinstance(answer, _Pause):
                if not patient:
                    return answer.refusal
                if paused_at is None and answer.step == "breaker":
                    paused_at = runtime.clock()
                if held and places is not None:
                    held = False
                    places.exit(runtime.clock(), runtime.clock())
                give_up(runtime, target, reservation)
                reservation = None
                await wait_at(runtime, call, answer.step, answer.delay)
                continue
            if target.rate is not None and reservation is None:
                paced = _reserve(runtime, call, target, patient=patient)
                if isinstance(paced, RejectedError):
                    release(target, answer)
                    return paced
                reservation = paced
                if paced.delay > 0:
                    release(target, answer)
                    paused_at = None
                    await wait_at(runtime, call, "rate", paced.delay)
                    continue
            if places is None or held or places.try_enter(runtime.clock()):
                entered = True
                return answer, reservation
            release(target, answer)
            if not patient:
                return _crowded(call, "which is as many as it can take now", places.seconds_to_empty())
            give_up(runtime, target, reservation)
            reservation = paused_at = None
            full = await _queue(runtime, call, places)
            if full is not None:
                return full
            held = True
    finally:
        if not entered:
            if held and places is not None:
                places.exit(runtime.clock(), runtime.clock())
            give_up(runtime, target, reservation)


def _ask_health(
    runtime: Runtime, call: Call, target: Target, paused_at: float | None
) -> RejectedError | Permit | _Pause:
    """The gate, then the breaker, for an attempt that first paused at the breaker then."""
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
    if isinstance(permit, Permit):
        return permit
    began = now if paused_at is None else paused_at
    time = math.inf if call.deadline is None else call.deadline - began
    left = began + breaker.patience(time, elsewhere=runtime.local is not None or call.has_stale) - now
    delay = min(permit + runtime.random.uniform(0.0, min(permit, _SPREAD)), left)
    refusal = CircuitOpenError(
        f"the circuit of {target.name} is open: it failed too often a moment ago; nothing was sent. "
        f"Try again in {permit:.2f} s.",
        step="breaker",
        retry_after=permit,
    )
    in_vain = permit > left or not call.outlives(now + delay)
    return refusal if in_vain else _Pause("breaker", delay, refusal)


def give_up(runtime: Runtime, target: Target, reservation: Reservation | None) -> None:
    """A reservation is for its instant: who waits elsewhere makes another one."""
    if reservation is not None and target.rate is not None:
        target.rate.cancel(reservation, runtime.clock())


def release(target: Target, permit: Permit) -> None:
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
        now = await _wait_for_place(runtime, places, waiter, until)
    except BaseException:
        places.leave(waiter, runtime.clock())
        raise
    call.waited += now - began
    if call.told:
        runtime.listeners.emit(StepWaited(now, call.number, "concurrency", call.target, now - began))
    if waiter.granted:
        return None
    places.leave(waiter, now)
    why = "and calls that matter more took the queue" if waiter.refused else "and none came free in time"
    return _crowded(call, why, places.seconds_to_empty())


async def _wait_for_place(runtime: Runtime, places: Places, waiter: Waiter, until: float | None) -> float:
    """Until its bell rings, or until then; answers when that was."""
    while True:
        again = places.look_again(runtime.clock(), waiter)
        await Wait(waiter, until=again if until is None else min(until, again))
        now = runtime.clock()
        if waiter.rung or (until is not None and now >= until):
            return now


def _crowded(call: Call, why: str, retry_after: float) -> RejectedError:
    return RateLimitedError(
        f"{call.target} has as many calls of ours in flight as it can take now, {why}; nothing was sent. "
        f"Try again in {retry_after:.2f} s.",
        step="concurrency",
        retry_after=retry_after,
    )


async def wait_at(runtime: Runtime, call: Call, step: str, delay: float) -> None:
    runtime.listeners.emit(StepWaited(runtime.clock(), call.number, step, call.target, delay))
    call.waited += delay
    await Sleep(delay)
