"""core/verdict.py: what an attempt came to, in one of seven words."""

import email.utils

import pytest

from deepseek_resilient.core import verdict as judge
from deepseek_resilient.core.messages import Failure, FailureKind
from deepseek_resilient.core.verdict import Verdict, VerdictKind
from deepseek_resilient.wire import Dialect

from .driving import ANSWER, BROKEN, TIMEOUT, WALL, reply

EXPECTED = {
    FailureKind.CONNECT: ("fault", "no_connection", True),
    FailureKind.TIMEOUT: ("timeout", "timed_out", True),
    FailureKind.BROKEN: ("fault", "connection_broken", True),
    FailureKind.CUT: ("truncated", "stream_cut", False),
    FailureKind.SILENT: ("timeout", "stream_silent", False),
    FailureKind.LOCAL: ("caller_fault", "no_free_connection", False),
    FailureKind.UNUSABLE: ("caller_fault", "unusable_request", False),
}


@pytest.mark.parametrize("kind", list(FailureKind))
def test_of_a_failure(kind):
    """Each way to fail has its verdict; after content nothing is retryable; our own pool is not the target's fault."""
    assert (*EXPECTED[kind], None) == judge.of_failure(Failure(kind, "text"))[:4]


def test_what_counts_against_a_target():
    """Four kinds are failures; a caller's fault and throttling are not."""
    assert {"overloaded", "fault", "timeout", "truncated"} == judge.FAILURES


@pytest.mark.parametrize(
    ("status", "body", "failure", "expected"),
    [
        (200, b"", TIMEOUT, ("timeout", "timed_out", True, 200)),
        (200, b"", BROKEN, ("overloaded", "blank_200", True, 200)),
        (200, b"\n \n", BROKEN, ("overloaded", "blank_200", True, 200)),
        (200, b'{"a"', BROKEN, ("truncated", "cut_body", True, 200)),
        (399, b"", BROKEN, ("overloaded", "blank_200", True, 399)),
        (400, b"", BROKEN, ("truncated", "cut_body", True, 400)),
        (503, b" ", BROKEN, ("truncated", "cut_body", True, 503)),
    ],
)
def test_of_a_broken_body(status, body, failure, expected):
    """Only white space in a 200 is overload; anything else that broke off was cut; a time limit is a time limit."""
    assert expected == judge.of_broken_body(reply(status), body, failure)[:4]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, ANSWER, ("ok", "ok", False, 200)),
        (200, None, ("ok", "ok", False, 200)),
        (201, ANSWER, ("ok", "ok", False, 201)),
        (200, b"", ("overloaded", "blank_200", True, 200)),
        (299, b"", ("overloaded", "blank_200", True, 299)),
        (300, b"", ("ok", "ok", False, 300)),
        (307, b"", ("ok", "ok", False, 307)),
        (200, b'{"error":{"code":402}}', ("throttled", "error_in_200", False, 200)),
        (400, b"", ("caller_fault", "bad_request", False, 400)),
        (402, b"", ("throttled", "balance_exhausted", False, 402)),
        (429, b"", ("throttled", "rate_limited", True, 429)),
        (429, None, ("throttled", "rate_limited", True, 429)),
        (503, b"<html>", ("overloaded", "busy", True, 503)),
        (504, b"", ("fault", "status_504", True, 504)),
    ],
)
def test_of_a_reply(status, body, expected):
    """By the status; a 200 by its body; a redirect is no blank answer."""
    assert expected == judge.of_reply(Dialect.CHAT, reply(status), body, WALL)[:4]


def test_a_plain_200_is_the_one_ok():
    """The happy path makes no new object."""
    assert judge.OK is judge.of_reply(Dialect.CHAT, reply(), ANSWER, WALL)


def test_the_servers_wishes_are_kept():
    """Retry-After (also as a date), the stated limit and the rest after a 402 are in the verdict."""
    body = b"which exceeds your concurrency limit of 25 based on"
    date = email.utils.formatdate(WALL + 5, usegmt=True)
    assert Verdict(VerdictKind.THROTTLED, "rate_limited", True, 429, 5.0, 25, False) == judge.of_reply(
        Dialect.CHAT, reply(429, retry_after=date), body, WALL
    )
    assert Verdict(VerdictKind.THROTTLED, "balance_exhausted", False, 402, None, None, True) == judge.of_reply(
        Dialect.CHAT, reply(402), None, WALL
    )
    assert judge.of_reply(Dialect.CHAT, reply(503), body, WALL).stated_limit is None


@pytest.mark.parametrize(
    ("status", "told", "retryable"),
    [(503, "false", False), (400, "true", True), (429, "maybe", True), (400, "maybe", False)],
)
def test_x_should_retry_overrules_the_status(status, told, retryable):
    """The server's own word counts, where it is one."""
    assert retryable is judge.of_reply(Dialect.CHAT, reply(status, x_should_retry=told), b"", WALL).retryable


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": 503}, ("overloaded", "error_in_stream", True, 200, 2.0)),
        ({"type": "invalid_request_error"}, ("caller_fault", "error_in_stream", False, 200, 2.0)),
        (None, ("fault", "error_in_stream", True, 200, 2.0)),
    ],
)
def test_of_an_error_event(error, expected):
    """An error inside a stream is what its code or type says, with the headers' wishes."""
    assert expected == judge.of_error_event(reply(retry_after="2"), error, WALL)[:5]
