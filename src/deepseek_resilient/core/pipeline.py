"""The path of one call, on one screen.

    call ── deadline ── retry ── gate ── breaker, places ── send ── verdict
              │           │        │        │         │        └ core/verdict.py   what came back, in one of seven words
              │           │        │        │         └ core/stream.py             streams: held until the first content
              │           │        │        └ core/concurrency.py, core/limit.py   is there a place? who waits?
              │           │        │          core/breaker.py                      is the target worth an attempt now?
              │           │        └ core/gate.py                                  has it asked to be left alone?
              │           └ core/retry.py, core/budget.py                          again? when? who pays?
              └ core/runtime.py (Call)                                             one limit for everything below it

Places kept for what is still to come: guard, cache and ladder before `retry`; admission and hedge around it; route in
front of the gate; rate behind the breaker.

Everything here is a value: a `Response` (an error reply, or a refusal of ours, too), a `Failure`, or None after a
stream that was handed over whole. Exceptions are for the drivers' cancellation and for mistakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from deepseek_resilient import wire
from deepseek_resilient.core import verdict as judge
from deepseek_resilient.core.attempt import Attempt
from deepseek_resilient.core.breaker import NO_PERMIT
from deepseek_resilient.core.effects import Emit, Read, Respond, Send, Sleep, Wait
from deepseek_resilient.core.messages import Failure, FailureKind, Reply, Response
from deepseek_resilient.core.refusal import response_of
from deepseek_resilient.core.retry import next_delay
from deepseek_resilient.core.stream import Decoder, relay
from deepseek_resilient.errors import CircuitOpenError, OverloadedError, RateLimitedError, RejectedError
from deepseek_resilient.events import CallEnded, CallRefused, CallStarted, RetryScheduled, RetryStopped, StepWaited

if TYPE_CHECKING:
    from deepseek_resilient.core.breaker import Permit
    from deepseek_resilient.core.concurrency import Places
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.core.target import Target

Outcome = Response | Failure | None

_HEADROOM = 1.5
"""A call leaves the queue when less than this many times the usual time of an answer is left of its deadline."""


async def run(runtime: Runtime, call: Call) -> Outcome:
    """Make the call; account for it whatever happens, cancellation included."""
    runtime.count_call()
    runtime.budget.deposit()
    told = call.told = runtime.listeners.wanted
    if told:
        info = call.info
        runtime.listeners.emit(CallStarted(call.started, call.number, info.dialect, info.model, info.stream))
    try:
        return await _with_retries(runtime, call)
    finally:
        runtime.count_end()
        if told:
            now = runtime.clock()
            last = call.verdicts[-1] if call.verdicts else "none"
            runtime.listeners.emit(CallEnded(now, call.number, call.attempts, last, now - call.started, call.waited))


async def _with_retries(runtime: Runtime, call: Call) -> Outcome:
    outcome: Outcome = None
    paid = False
    try:
        while True:
            admitted, target = await _admit(runtime, call)
            if isinstance(admitted, RejectedError):
                return _finish(call, _refuse(runtime, call, admitted) if outcome is None else outcome)
            attempt = Attempt(runtime, call, target, admitted)
            paid = False
            try:
                attempt.announce()
                outcome = await _send(runtime, call, attempt)
            finally:
                attempt.abandon()
            verdict = attempt.verdict
            if verdict is None or verdict.kind is judge.VerdictKind.OK or outcome is None:
                return _finish(call, outcome)
            delay = next_delay(runtime, call, verdict)
            now = runtime.clock()
            if isinstance(delay, str):
                runtime.listeners.emit(RetryStopped(now, call.number, call.attempts, delay, verdict.reason))
                return _finish(call, outcome)
            paid = True
            runtime.listeners.emit(RetryScheduled(now, call.number, call.attempts, delay, verdict.reason))
            call.waited += delay
            await Sleep(delay)
    finally:
        if paid:
            runtime.budget.refund()


async def _admit(runtime: Runtime, call: Call) -> tuple[RejectedError | Permit, Target | None]:
    """Pick the target and pass its steps. What is no inference call has no target, and passes."""
    if not call.info.dialect.is_inference:
        call.target = call.request.origin.partition("://")[2]
        return NO_PERMIT, None
    target = runtime.targets.get(call.request.origin, call.request.account, call.info.model)
    call.target = target.name
    return await _pass(runtime, call, target), target


class _Pause(NamedTuple):
    """A step that lets the call wait."""

    step: str
    delay: float


async def _pass(runtime: Runtime, call: Call, target: Target) -> RejectedError | Permit:
    """Through the gate, the breaker and the places of `target`, waiting where allowed: a permit, or the refusal.

    The permit comes with a place. Whoever has waited at one of them is asked at all again.
    """
    places, held = target.places, False
    try:
        while True:
            answer = _ask_health(runtime, call, target)
            if isinstance(answer, RejectedError):
                return answer
            if isinstance(answer, _Pause):
                if held and places is not None:
                    held = False
                    places.exit(runtime.clock(), runtime.clock())
                await _wait(runtime, call, *answer)
            elif places is None or held or places.try_enter():
                held = False
                return answer
            else:
                if target.breaker is not None:
                    target.breaker.release(answer)
                full = await _queue(runtime, call, places)
                if full is not None:
                    return full
                held = True
    finally:
        if held and places is not None:
            places.exit(runtime.clock(), runtime.clock())


def _ask_health(runtime: Runtime, call: Call, target: Target) -> RejectedError | Permit | _Pause:
    """The gate, then the breaker."""
    now = runtime.clock()
    closed = target.gate.check(now)
    if closed is not None:
        if not closed.patient or not call.outlives(now + closed.delay):
            return RateLimitedError(
                f"{target.name} asked to be left alone for another {closed.remaining:.1f} s ({closed.reason}); "
                "nothing was sent. Try again then, or give the call a longer timeout.",
                step="gate",
                retry_after=closed.remaining,
                http_status=closed.status,
            )
        return _Pause("gate", closed.delay)
    if target.breaker is None:
        return NO_PERMIT
    permit = target.breaker.try_acquire(now)
    if not isinstance(permit, float):
        return permit
    delay = permit * runtime.random.uniform(1.0, 2.0)
    if target.breaker.refuses or not call.outlives(now + delay):
        return CircuitOpenError(
            f"the circuit of {target.name} is open: it failed too often a moment ago; nothing was sent. "
            f"Try again in {permit:.2f} s.",
            step="breaker",
            retry_after=permit,
        )
    return _Pause("breaker", delay)


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


async def _wait(runtime: Runtime, call: Call, step: str, delay: float) -> None:
    runtime.listeners.emit(StepWaited(runtime.clock(), call.number, step, call.target, delay))
    call.waited += delay
    await Sleep(delay)


async def _send(runtime: Runtime, call: Call, attempt: Attempt) -> Outcome:
    """Send once, and settle the attempt."""
    info, policy = call.info, runtime.policy
    if not info.dialect.is_inference:
        return await _pass_through(runtime, call, attempt)
    until = call.deadline
    limits = (policy.attempt_timeout, policy.stream.first_content if info.stream else None)
    for limit in limits:
        if limit is not None and (until is None or attempt.started + limit < until):
            until = attempt.started + limit
    attempt.until = until
    reply = await Send(
        call.request,
        connect=call.connect,
        until=until,
        patience=policy.stream.silence if info.stream else 0.0,
    )
    if isinstance(reply, Failure):
        return _failed(runtime, call, attempt, judge.of_failure(reply), reply)
    if info.stream and reply.status < 300:
        outcome = await relay(attempt, reply, until, lambda response: _dress(call, response))
        return _explain(runtime, call, outcome) if isinstance(outcome, Failure) else outcome
    body = await _read_all(reply, until)
    if isinstance(body, tuple):
        failure, came = body
        return _failed(runtime, call, attempt, judge.of_broken_body(reply, came, failure), failure)
    attempt.answer_size = len(body)
    decoder = Decoder(reply.header(b"content-encoding"))
    readable = decoder.feed(body)
    verdict = judge.of_reply(info.dialect, reply, readable if decoder.readable else None, runtime.wall())
    attempt.settle(verdict)
    if verdict.kind is judge.VerdictKind.OK and decoder.readable:
        attempt.note_model(wire.stated_model(readable))
    if verdict.retryable and reply.status < 300 and verdict.reason != wire.OVERLOAD_FINISH:
        reason = "a 200 without an answer" if verdict.reason == "blank_200" else f"a 200 with {verdict.reason}"
        return response_of(OverloadedError(f"{call.target} sent {reason}", step="retry"))
    return Response(reply.status, reply.headers, body, reply.extensions)


async def _pass_through(runtime: Runtime, call: Call, attempt: Attempt) -> Outcome:
    """What is no inference call goes through as it is; only a refused or failed attempt is looked at."""
    reply = await Send(call.request, bounded=False)
    if isinstance(reply, Failure):
        return _failed(runtime, call, attempt, judge.of_failure(reply), reply)
    if reply.status >= 400:
        body = await _read_all(reply, None)
        if isinstance(body, tuple):
            return _failed(runtime, call, attempt, judge.of_broken_body(reply, b"", body[0]), body[0])
        attempt.settle(judge.of_reply(call.info.dialect, reply, None, runtime.wall()))
        return Response(reply.status, reply.headers, body, reply.extensions)
    attempt.settle(judge.OK)
    await Respond(_dress(call, Response(reply.status, reply.headers, None, reply.extensions)))
    chunk = await Read(reply, until=None)
    while chunk and not isinstance(chunk, Failure):
        chunk = await Emit(chunk, reply, patience=None)
    return chunk or None


async def _read_all(reply: Reply, until: float | None) -> bytes | tuple[Failure, bytes]:
    parts: list[bytes] = []
    read = Read(reply, until=until)
    while True:
        chunk = await read
        if isinstance(chunk, Failure):
            return chunk, b"".join(parts)
        if not chunk:
            return b"".join(parts)
        parts.append(chunk)


def _failed(runtime: Runtime, call: Call, attempt: Attempt, verdict: judge.Verdict, failure: Failure) -> Outcome:
    attempt.settle(verdict)
    if verdict.reason == "blank_200":
        return response_of(OverloadedError(f"{call.target} ended the wait without an answer", step="retry"))
    return _explain(runtime, call, failure)


def _explain(runtime: Runtime, call: Call, failure: Failure) -> Failure:
    """A time limit, with the words that say which one it was."""
    if failure.kind is not FailureKind.TIMEOUT:
        return failure
    if call.outlives(runtime.clock()):
        which = "the limit of one attempt (attempt_timeout, stream.first_content or connect_timeout)"
    else:
        which = "the deadline of the call (timeout=)"
    spent = runtime.clock() - call.started
    message = f"{call.target} did not answer in time: {which} passed after {spent:.2f} s, attempt {call.attempts}"
    return Failure(FailureKind.TIMEOUT, message, failure.exception)


def _refuse(runtime: Runtime, call: Call, error: RejectedError) -> Response:
    runtime.count_refusal(error.step)
    runtime.listeners.emit(CallRefused(runtime.clock(), call.number, error.step, call.target, error.retry_after))
    return response_of(error)


def _finish(call: Call, outcome: Outcome) -> Outcome:
    return _dress(call, outcome) if isinstance(outcome, Response) else outcome


def _dress(call: Call, response: Response) -> Response:
    """Say in headers what the call took."""
    response.headers = [
        *response.headers,
        (b"x-resilient-attempts", str(call.attempts).encode()),
        (b"x-resilient-target", call.target.encode("ascii", "replace")),
        (b"x-resilient-verdicts", ",".join(call.verdicts).encode()),
        (b"x-resilient-waited", f"{call.waited:.3f}".encode()),
    ]
    return response
