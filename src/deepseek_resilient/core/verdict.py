"""One verdict per attempt: seven kinds, from which every step learns in its own way.

| kind          | says                                  | retry | breaker          | gate                     |
| ------------- | ------------------------------------- | ----- | ---------------- | ------------------------ |
| ok            | answered                              |       | success          |                          |
| caller_fault  | 400, 401, 404, 422: the request is wrong | no | says nothing     |                          |
| throttled     | 429; 402                              | 429   | says nothing     | Retry-After; 402 rests   |
| overloaded    | 503, 529, blank 200, no system resource | yes | failure          | Retry-After              |
| fault         | other 5xx, broken connection, garbage | yes   | failure          | Retry-After              |
| timeout       | a limit of the attempt passed         | yes   | failure          |                          |
| truncated     | the answer ended before its end       | before content; later `seam.py` | failure |         |
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from deepseek_resilient import wire
from deepseek_resilient.core.messages import Failure, FailureKind, Reply

if TYPE_CHECKING:
    from deepseek_resilient.wire import Dialect, Meaning


class VerdictKind(StrEnum):
    """What an attempt came to."""

    OK = "ok"
    CALLER_FAULT = "caller_fault"
    THROTTLED = "throttled"
    OVERLOADED = "overloaded"
    FAULT = "fault"
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"


FAILURES = frozenset({VerdictKind.OVERLOADED, VerdictKind.FAULT, VerdictKind.TIMEOUT, VerdictKind.TRUNCATED})
"""What counts against the health of a target."""


class Verdict(NamedTuple):
    """An attempt, judged.

    `reason` is a short fixed word (never the server's or the caller's text); `retryable` says that another attempt may
    help; `retry_after` is the server's wish in seconds; `stated_limit` the concurrency limit its 429 named; `rest` that
    the target should be left alone for minutes (402).
    """

    kind: VerdictKind
    reason: str
    retryable: bool = False
    status: int | None = None
    retry_after: float | None = None
    stated_limit: int | None = None
    rest: bool = False


OK = Verdict(VerdictKind.OK, "ok", status=200)

_OF_FAILURE = {
    FailureKind.CONNECT: (VerdictKind.FAULT, "no_connection", True),
    FailureKind.TIMEOUT: (VerdictKind.TIMEOUT, "timed_out", True),
    FailureKind.BROKEN: (VerdictKind.FAULT, "connection_broken", True),
    FailureKind.CUT: (VerdictKind.TRUNCATED, "stream_cut", False),
    FailureKind.SILENT: (VerdictKind.TIMEOUT, "stream_silent", False),
    FailureKind.LOCAL: (VerdictKind.CALLER_FAULT, "no_free_connection", False),
    FailureKind.UNUSABLE: (VerdictKind.CALLER_FAULT, "unusable_request", False),
}
NEVER_SENT = ("no_connection", "no_free_connection", "unusable_request")
"""Reasons that say that the server got nothing."""


def of_failure(failure: Failure) -> Verdict:
    """The verdict on an attempt that brought no reply, or whose stream ended badly."""
    kind, reason, retryable = _OF_FAILURE[failure.kind]
    return Verdict(kind, reason, retryable)


def of_broken_body(reply: Reply, body: bytes, failure: Failure) -> Verdict:
    """The verdict on a reply whose body did not arrive whole."""
    if failure.kind is FailureKind.TIMEOUT:
        return of_failure(failure)._replace(status=reply.status)
    if reply.status < 400 and (not body or body.isspace()):
        return Verdict(VerdictKind.OVERLOADED, "blank_200", True, reply.status)
    return Verdict(VerdictKind.TRUNCATED, "cut_body", True, reply.status)


def of_reply(dialect: Dialect, reply: Reply, body: bytes | None, wall: float) -> Verdict:
    """The verdict on a complete reply. `body` is decoded; None when it could not be, or need not be looked at."""
    meaning = wire.meaning_of_status(reply.status)
    if meaning.kind == "ok":
        problem = None
        if body is not None and reply.status < 300:  # a redirect carries no answer
            problem = wire.answer_problem(dialect, body)
        if problem is None:
            return OK if reply.status == 200 else OK._replace(status=reply.status)
        meaning = problem
    return _judge(meaning, reply, body or b"", wall)


def of_error_event(reply: Reply, error: object, wall: float) -> Verdict:
    """The verdict on a stream that carries an error object instead of content."""
    meaning = wire.meaning_of_status(wire.status_of_error(error))
    return _judge(meaning._replace(reason="error_in_stream"), reply, b"", wall)


def _judge(meaning: Meaning, reply: Reply, body: bytes, wall: float) -> Verdict:
    kind = VerdictKind(meaning.kind)
    told = wire.should_retry(reply.header)
    return Verdict(
        kind,
        meaning.reason,
        meaning.retryable if told is None else told,
        reply.status,
        retry_after=wire.retry_after(reply.header, wall),
        stated_limit=wire.stated_limit(body) if kind is VerdictKind.THROTTLED else None,
        rest=meaning.reason == "balance_exhausted",
    )
