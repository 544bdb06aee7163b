"""errors.py and core/refusal.py: the tree, and each refusal as the HTTP answer that means it."""

import json
import pickle

import httpx
import httpx2
import pytest

from deepseek_resilient import errors
from deepseek_resilient.bridge import exception_of
from deepseek_resilient.core.messages import Failure, FailureKind
from deepseek_resilient.core.refusal import response_of
from deepseek_resilient.errors import (
    CircuitOpenError,
    ConfigError,
    DeadlineExceededError,
    InvalidRequestError,
    LocalModelError,
    OverloadedError,
    RateLimitedError,
    RejectedError,
    ResilienceError,
    ShedError,
    StreamInterruptedError,
    TooManyTokensError,
)
from deepseek_resilient.wire import Dialect
from deepseek_resilient.wire_errors import error_body, event_of, spoken_at

TREE = {
    ConfigError: (ResilienceError, 500),
    RejectedError: (ResilienceError, 503),
    CircuitOpenError: (RejectedError, 503),
    RateLimitedError: (RejectedError, 429),
    TooManyTokensError: (RateLimitedError, 400),
    ShedError: (RejectedError, 503),
    InvalidRequestError: (RejectedError, 400),
    OverloadedError: (RejectedError, 503),
    LocalModelError: (ResilienceError, 503),
    DeadlineExceededError: (ResilienceError, 504),
    StreamInterruptedError: (ResilienceError, 502),
}


def test_the_tree_is_the_one_in_the_docstring():
    """Every class, under its parent, in the module's own picture, with its HTTP status."""
    found = {
        kind: (kind.__bases__[0], kind.http_status)
        for kind in vars(errors).values()
        if isinstance(kind, type) and kind is not ResilienceError
    }
    assert TREE == found
    assert [] == [kind.__name__ for kind in [ResilienceError, *TREE] if kind.__name__ not in errors.__doc__]


def test_a_config_error_names_field_value_and_what_is_allowed():
    """It is a ValueError too."""
    error = ConfigError("BudgetPolicy.ratio", 2, "at most 1")
    assert isinstance(error, ValueError)
    assert "BudgetPolicy.ratio=2: must be at most 1" == str(error)
    assert ("BudgetPolicy.ratio", 2, "at most 1") == (error.field, error.value, error.allowed)


def test_a_rejection_knows_its_step_and_when_to_come_again():
    """A status of its own goes before the class's."""
    error = RateLimitedError("text", step="gate", retry_after=2.0, http_status=402)
    assert ("gate", 2.0, 402, 429) == (error.step, error.retry_after, error.http_status, RateLimitedError.http_status)
    assert (None, 429) == (
        RateLimitedError("text", step="gate").retry_after,
        RateLimitedError("x", step="y").http_status,
    )


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a", 1, "b"),
        DeadlineExceededError("late"),
        StreamInterruptedError("cut", partial="so far"),
    ],
)
def test_errors_survive_pickling(error):
    """They cross process pools with everything they carry."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own bytes
    assert (type(error), str(error), vars(error)) == (type(copy), str(copy), vars(copy))


@pytest.mark.parametrize("kind", [RejectedError, CircuitOpenError, RateLimitedError, OverloadedError])
def test_rejections_survive_pickling(kind):
    """They cross process pools with step, status and wait."""
    error = kind("text", step="gate", retry_after=2.0, http_status=402)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own bytes
    assert (kind, "text", vars(error)) == (type(copy), str(copy), vars(copy))


@pytest.mark.parametrize("kind", [FailureKind.TIMEOUT, FailureKind.CUT, FailureKind.SILENT])
@pytest.mark.parametrize("library", [httpx, httpx2])
def test_what_a_transport_raises_survives_pickling(library, kind):
    """A worker process can hand it to its parent, with the partial text."""
    error = exception_of(library, Failure(kind, "text", partial="so far"))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own bytes
    assert (type(error), str(error), getattr(error, "partial", "")) == (
        type(copy),
        str(copy),
        getattr(copy, "partial", ""),
    )


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (CircuitOpenError("open", step="breaker", retry_after=0.25), 503, "circuit_open", b"0.250"),
        (RateLimitedError("alone", step="gate", retry_after=0.0), 429, "rate_limited", b"0.001"),
        (RateLimitedError("alone", step="gate", retry_after=1.23456, http_status=402), 402, "rate_limited", b"1.235"),
        (OverloadedError("blank", step="retry"), 503, "overloaded", None),
        (RejectedError("no", step="x"), 503, "rejected", None),
    ],
)
def test_a_refusal_is_an_http_answer(error, status, code, retry_after):
    """Status, body in the server's format, who refused, when to come again, and no retry by an SDK around us."""
    response = response_of(error, Dialect.CHAT)
    fields = dict(response.headers)
    assert status == response.status
    assert {"message": str(error), "type": code, "param": None, "code": code} == json.loads(response.body)["error"]
    assert (b"application/json", error.step.encode(), b"false", retry_after) == (
        fields[b"content-type"], fields[b"x-resilient-refused-by"], fields[b"x-should-retry"],
        fields.get(b"retry-after"),
    )  # fmt: skip
    assert error is response.extensions["resilience_error"]


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (402, "billing_error"),
        (403, "permission_error"), (404, "not_found_error"), (405, "invalid_request_error"), (408, "timeout_error"),
        (413, "request_too_large"), (429, "rate_limit_error"), (500, "api_error"), (502, "api_error"),
        (503, "overloaded_error"), (504, "timeout_error"), (529, "overloaded_error"),
    ],
)  # fmt: skip
def test_anthropic_has_an_error_by_its_status(status, named):
    """Type and message, and nothing of OpenAI's; a lone surrogate is no reason to have none."""
    body = error_body(Dialect.MESSAGES, status, "no\ud800", "busy", "model")
    assert {"type": "error", "error": {"type": named, "message": "no?"}} == json.loads(body)
    response = response_of(RejectedError("no", step="x", http_status=status), Dialect.MESSAGES)
    assert named == json.loads(response.body)["error"]["type"]
    assert {"message": "no", "type": "busy", "param": "model", "code": "busy"} == json.loads(
        error_body(Dialect.CHAT, status, "no", "busy", "model")
    )["error"]


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/anthropic/v1/messages", Dialect.MESSAGES),
        ("/v1/messages/", Dialect.MESSAGES),
        ("/v1/messages/count_tokens", Dialect.MESSAGES),
        ("/anthropic/v1/models", Dialect.MESSAGES),
        ("/anthropic", Dialect.MESSAGES),
        ("/anthropic/v1/chat/completions", Dialect.CHAT),
        ("/v1/models", Dialect.OTHER),
        ("/v1/mymessages", Dialect.OTHER),
    ],
)
def test_who_speaks_anthropics_dialect(path, dialect):
    """Who asks for messages, or for what is beside them; calls by what they are."""
    assert dialect is spoken_at(path)


def test_an_error_in_a_stream_has_the_name_that_anthropic_looks_for():
    """In one line; what is no error has no name."""
    assert b"event: error\ndata: {  }\n\n" == event_of(Dialect.MESSAGES, 503, b"{\n }")
    assert b"data: {}\n\n" == event_of(Dialect.MESSAGES, 200, b"{}")
    assert b"data: {}\n\n" == event_of(Dialect.CHAT, 503, b"{}")
    assert b"data: { a b }\n\n" == event_of(Dialect.CHAT, 503, b"{\r\na\rb }")


def test_a_long_value_is_cut_in_the_message():
    """Two hundred characters of it say which it is; the value itself is whole."""
    error = ConfigError("Policy.retry", "x" * 1000, "short")
    assert f"Policy.retry='{'x' * 196}...: must be short" == str(error)
    assert "x" * 1000 == error.value
