"""The path of one call, on one screen.

    call ── guard, deadline ── retry ── enter ── send ── verdict
              │                  │        │       │        └ core/verdict.py   what came back, in one of seven words
              │                  │        │       └ core/stream.py             streams: held until the first content
              │                  │        │           core/seam.py                 gone on with where they broke off
              │                  │        └ core/entrance.py                   which upstream, and may we ask it now?
              │                  │            core/routing.py, core/outliers.py      who of several?
              │                  │            core/admission.py, core/ladder.py      who is shed, what is simplified?
              │                  │            core/gate.py                           has it asked to be left alone?
              │                  │            core/breaker.py                        is it worth an attempt now?
              │                  │            core/rate.py, core/tokens.py           how many per minute?
              │                  │            core/concurrency.py, core/limit.py     is there a place? who waits?
              │                  │            core/ledger.py, core/money.py          is there money for it?
              │                  └ core/retry.py, core/budget.py               again? when? who pays?
              └ core/guard.py; core/runtime.py (Call)                          would the server refuse it anyway?

Around both: core/fallback.py, where the model on this machine answers for remote targets that do not.
Between guard and retry: core/sharing.py (core/cache.py, core/flight.py), where a known answer ends the call.
Around retry: core/hedge.py, which begins a second one beside a first that is late.

Everything here is a value: a `Response` (an error reply, or a refusal of ours, too), a `Failure`, or None after a
stream that was handed over whole. Exceptions are for the drivers' cancellation and for mistakes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from deepseek_resilient import wire
from deepseek_resilient.core import verdict as judge
from deepseek_resilient.core.attempt import Attempt
from deepseek_resilient.core.effects import Emit, Read, Respond, Send, Sleep
from deepseek_resilient.core.entrance import Entry, enter
from deepseek_resilient.core.fallback import with_local
from deepseek_resilient.core.flight import is_failure
from deepseek_resilient.core.guard import inspect
from deepseek_resilient.core.hedge import hedged
from deepseek_resilient.core.messages import Failure, FailureKind, Reply, Response
from deepseek_resilient.core.refusal import response_of
from deepseek_resilient.core.retry import next_delay
from deepseek_resilient.core.seam import make_seam
from deepseek_resilient.core.sharing import answer, key_of
from deepseek_resilient.core.stream import Decoder, relay
from deepseek_resilient.core.think import tell_apart
from deepseek_resilient.errors import InvalidRequestError, OverloadedError, RejectedError
from deepseek_resilient.events import CallEnded, CallRefused, CallStarted, RetryScheduled, RetryStopped
from deepseek_resilient.usage import usage_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from deepseek_resilient.core.effects import Effect
    from deepseek_resilient.core.runtime import Call, Runtime

_OF_THE_BODY = (b"content-encoding", b"content-length", b"transfer-encoding")

Outcome = Response | Failure | None


async def run(runtime: Runtime, call: Call) -> Outcome:
    """Make the call; account for it whatever happens, cancellation included."""
    runtime.count_call()
    told = call.told = runtime.listeners.wanted
    if told:
        info = call.info
        runtime.listeners.emit(CallStarted(call.started, call.number, info.dialect, info.model, info.stream))
    try:
        fault = _inspect(runtime, call)
        if fault is not None:
            return _finish(call, _refuse(runtime, call, fault))
        if runtime.ledger is not None and call.info.dialect.is_inference:
            call.record = runtime.ledger.begin(call)
        sharing = runtime.sharing
        key = None if sharing is None else key_of(sharing, call)
        runtime.layers.begin(call, call.started)
        if sharing is None or key is None:
            outcome = await _lead(runtime, call)
        else:
            outcome = await answer(runtime, call, sharing, key, partial(_lead, runtime))
        runtime.layers.end(call, runtime.clock(), failed=is_failure(outcome))
        if isinstance(outcome, Failure) and call.record is not None:
            return replace(outcome, call=call.record.number)
        return outcome
    finally:
        runtime.count_end()
        if runtime.ledger is not None and call.record is not None:
            runtime.ledger.end(call.record, call)
        if told:
            now = runtime.clock()
            last = call.source or (call.verdicts[-1] if call.verdicts else "none")
            runtime.listeners.emit(CallEnded(now, call.number, call.attempts, last, now - call.started, call.waited))


def _inspect(runtime: Runtime, call: Call) -> RejectedError | None:
    guard = runtime.policy.guard
    if guard is None:
        return None
    if call.request.encoded or not call.request.replayable:
        if call.tenant not in guard.tenants:
            return None
        told = "a tenant with limits of its own cannot send what cannot be read: an encoded body, or a stream"
        return InvalidRequestError(told, step="guard")
    refused = inspect(guard, call.info.dialect, call.request.body, call.fields, call.tenant)
    if refused is None:
        return None
    return InvalidRequestError(refused.message, step="guard", http_status=refused.status, param=refused.param)


def _lead(runtime: Runtime, call: Call) -> Coroutine[Effect[Any], Any, Outcome]:
    """Ask for the answer."""
    runtime.budget.deposit()
    if runtime.local is None:
        return _remote(runtime, call)
    return with_local(runtime, call, runtime.local, partial(_remote, runtime), _locally)


async def _locally(runtime: Runtime, call: Call, entry: Entry) -> tuple[Outcome, Attempt]:
    """One attempt at the local model."""
    outcome, attempt = await _once(runtime, call, entry)
    return _finish(call, outcome), attempt


def _remote(runtime: Runtime, call: Call) -> Coroutine[Effect[Any], Any, Outcome]:
    hedges = runtime.hedges
    delay = None if hedges is None else hedges.delay(call)
    if hedges is None or delay is None:
        return _with_retries(runtime, call)
    return hedged(runtime, call, hedges, delay, partial(_with_retries, runtime))


async def _with_retries(runtime: Runtime, call: Call) -> Outcome:
    outcome: Outcome = None
    verdict: judge.Verdict | None = None
    paid = False
    call.seam = make_seam(runtime, call)
    try:
        while True:
            entry = await enter(runtime, call)
            if isinstance(entry, RejectedError):
                if outcome is None or verdict is None:
                    return _finish(call, _refuse(runtime, call, entry))
                return _stop(runtime, call, outcome, entry.step, verdict.reason)
            paid = False
            outcome, attempt = await _once(runtime, call, entry)
            verdict = attempt.verdict
            if verdict is None or verdict.kind is judge.VerdictKind.OK or outcome is None:
                return _finish(call, outcome)
            if call.seam is not None and attempt.first_content is not None:
                verdict = call.seam.go_on(runtime, call, attempt, cast("Failure", outcome), verdict)
            if call.handover is not None:
                call.handover.plan(call, runtime.clock())
            delay = next_delay(runtime, call, verdict)
            if isinstance(delay, str):
                return _stop(runtime, call, outcome, delay, verdict.reason)
            paid = True
            runtime.listeners.emit(RetryScheduled(runtime.clock(), call.number, call.attempts, delay, verdict.reason))
            call.waited += delay
            if delay:
                await Sleep(delay)
    finally:
        if paid:
            runtime.budget.refund()


async def _once(runtime: Runtime, call: Call, entry: Entry) -> tuple[Outcome, Attempt]:
    call.fields = None
    attempt = Attempt(runtime, call, entry)
    try:
        attempt.announce()
        return await _send(runtime, call, attempt), attempt
    finally:
        attempt.abandon()


async def _send(runtime: Runtime, call: Call, attempt: Attempt) -> Outcome:
    """Send once, and settle the attempt."""
    info, policy, request = call.info, runtime.policy, attempt.entry.request
    if not info.dialect.is_inference:
        return await _pass_through(runtime, call, attempt)
    until = call.deadline
    limits = (policy.attempt_timeout, policy.stream.first_content if info.stream else None)
    for limit in limits:
        if limit is not None and (until is None or attempt.started + limit < until):
            until = attempt.started + limit
    attempt.until = until
    reply = await Send(
        request,
        connect=call.connect,
        until=until,
        patience=policy.stream.silence if info.stream else 0.0,
        attempt=call.attempts + call.retries_above,
        headers=runtime.listeners.headers(call.number, call.attempts, request.origin),
    )
    if isinstance(reply, Failure):
        return _failed(runtime, call, attempt, judge.of_failure(reply), reply)
    if attempt.entry.pick is not None or call.local:  # one upstream's cookies are not for another
        reply.headers = [pair for pair in reply.headers if pair[0].lower() != b"set-cookie"]
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
    attempt.usage = usage_of(readable)
    if verdict.kind is judge.VerdictKind.OK and decoder.readable:
        attempt.note_model(wire.stated_model(readable))
    attempt.settle(verdict)
    if verdict.retryable and reply.status < 300 and verdict.reason != wire.OVERLOAD_FINISH:
        reason = "a 200 without an answer" if verdict.reason == "blank_200" else f"a 200 with {verdict.reason}"
        return response_of(OverloadedError(f"{call.target} sent {reason}", step="retry"), info.dialect)
    headers = reply.headers
    said = _said(call)
    if said and verdict.kind is judge.VerdictKind.OK and decoder.readable:
        body = wire.mark(tell_apart(readable) if call.local else readable, **said)
        headers = [pair for pair in headers if pair[0].lower() not in _OF_THE_BODY]
    return Response(reply.status, headers, body, reply.extensions)


def _said(call: Call) -> dict[str, object]:
    """What an answer says of itself in its body."""
    if call.local:
        return {"local": call.local, "left_out": call.left_out}
    return {"simplified": call.simplified} if call.simplified else {}


async def _pass_through(runtime: Runtime, call: Call, attempt: Attempt) -> Outcome:
    """What is no inference call goes through as it is; only a refused or failed attempt is looked at."""
    headers = runtime.listeners.headers(call.number, call.attempts, call.request.origin)
    reply = await Send(call.request, bounded=False, headers=headers)
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
    if reply.body is not None:
        return reply.body
    parts: list[bytes] = []
    read = Read(reply, until=until)
    while True:
        chunk = await read
        if isinstance(chunk, Failure):
            return chunk, b"".join(parts)
        parts.append(chunk)
        if not chunk or reply.ended:
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _failed(runtime: Runtime, call: Call, attempt: Attempt, verdict: judge.Verdict, failure: Failure) -> Outcome:
    attempt.settle(verdict)
    if verdict.reason == "blank_200":
        ended = OverloadedError(f"{call.target} ended the wait without an answer", step="retry")
        return response_of(ended, call.info.dialect)
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
    return Failure(FailureKind.TIMEOUT, message, failure.exception, target=call.target)


def _refuse(runtime: Runtime, call: Call, error: RejectedError) -> Response:
    runtime.count_refusal(error.step)
    runtime.listeners.emit(CallRefused(runtime.clock(), call.number, error.step, call.target, error.retry_after))
    return response_of(error, call.info.dialect)


def _stop(runtime: Runtime, call: Call, outcome: Outcome, why: str, reason: str) -> Outcome:
    """There is no further attempt: say why, to the listeners and to the caller."""
    runtime.listeners.emit(RetryStopped(runtime.clock(), call.number, call.attempts, why, reason))
    finished = _finish(call, outcome)
    if call.seam is not None and finished is call.seam.cut and isinstance(finished, Failure):
        if why == "futile" and outcome is finished:  # there was none that might have gone on with it
            reason = "it ended as no request can go on from" if call.seam.left else "no continuations are left"
        told = reason if why == "futile" else why
        return replace(finished, message=f"{finished.message}; it could not be gone on with: {told}")
    if isinstance(finished, Response) and why != "futile":
        finished.headers.append((b"x-resilient-stopped-by", why.encode()))
    return finished


def _finish(call: Call, outcome: Outcome) -> Outcome:
    if call.seam is not None and call.seam.cut is not None and outcome is not None:
        return call.seam.cut
    return _dress(call, outcome) if isinstance(outcome, Response) else outcome


def _dress(call: Call, response: Response) -> Response:
    """Say in headers what the call took."""
    headers = [
        *response.headers,
        (b"x-resilient-attempts", b"%d" % call.attempts),
        (b"x-resilient-target", call.target.encode("ascii", "replace")),
        (b"x-resilient-verdicts", ",".join(call.verdicts).encode()),
        (b"x-resilient-waited", b"%.3f" % call.waited),
    ]
    if call.simplified:
        headers.append((b"x-resilient-simplified", ",".join(call.simplified).encode()))
    if call.local:
        headers.append((b"x-resilient-local", call.local.encode("ascii", "replace")))
    if call.record is not None:
        headers.append((b"x-resilient-call", b"%d" % call.record.number))
        if response.body is not None:
            headers.append((b"x-resilient-cost", b"%.6f" % call.record.cost))
    response.headers = headers
    return response
