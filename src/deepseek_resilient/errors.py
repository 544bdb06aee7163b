"""Our exceptions, for those who look below the SDK.

    ResilienceError                  (`http_status`: what it is as an HTTP answer)
    ├── ConfigError                  a setting is wrong: which, its value, what is allowed (also a ValueError)
    ├── RejectedError                refused by one of our steps; `step`, `retry_after` in seconds or None
    │   ├── CircuitOpenError         the circuit of the target is open
    │   ├── RateLimitedError         the target asked to be left alone, its rate is used up, or no place is free, for
    │   │   │                        longer than the call can wait
    │   │   └── TooManyTokensError   ... and waiting does not help: the call alone is more than the rate allows
    │   ├── ShedError                the load is too high for calls of this priority
    │   ├── InvalidRequestError      the guard: the server would refuse this request; `param`
    │   └── OverloadedError          the server gave no usable answer and the attempts are used up
    ├── LocalModelError              the model on this machine is not to be had; `why`, and the message says what to do
    ├── DeadlineExceededError        a time limit of the call passed
    └── StreamInterruptedError       a stream ended before its end; `partial` is the text that came

Callers of the OpenAI SDK keep their habits: a rejection reaches them as the HTTP answer that means it (429 or 503 in
the server's own format; the object itself is in `response.extensions["resilience_error"]`), a time limit as their
library's timeout. What leaves a transport as an exception belongs to both trees: `StreamInterruptedError` is also
`httpx.RemoteProtocolError`, `DeadlineExceededError` is also `httpx.ReadTimeout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


_LONGEST = 200
"""A value of more characters is cut in a message."""


class ResilienceError(Exception):
    """The root of the tree."""

    http_status: int = 500


class ConfigError(ResilienceError, ValueError):
    """A setting has a wrong value. The message names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        shown = repr(value)
        if len(shown) > _LONGEST:
            shown = shown[: _LONGEST - 3] + "..."
        super().__init__(f"{field}={shown}: must be {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.allowed)


class RejectedError(ResilienceError):
    """One of our steps refused the call, or gave it up.

    Attributes:
        step: which step ("guard", "route", "admission", "gate", "breaker", "rate", "concurrency", "money",
            "retry").
        retry_after: seconds until another try may succeed; None when unknown.
    """

    http_status = 503
    kind = "rejected"

    def __init__(
        self, message: str, *, step: str, retry_after: float | None = None, http_status: int | None = None
    ) -> None:
        super().__init__(message)
        self.step = step
        self.retry_after = retry_after
        if http_status is not None:
            self.http_status = http_status

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (type(self), str(self), self.step, self.retry_after, vars(self).get("http_status"))


def _unpickle(
    kind: type[RejectedError], message: str, step: str, retry_after: float | None, http_status: int | None
) -> RejectedError:
    return kind(message, step=step, retry_after=retry_after, http_status=http_status)


class CircuitOpenError(RejectedError):
    """The circuit of the target is open: it failed too often a moment ago."""

    kind = "circuit_open"


class RateLimitedError(RejectedError):
    """The target asked to be left alone (Retry-After, exhausted balance) for longer than this call can wait."""

    http_status = 429
    kind = "rate_limited"


class TooManyTokensError(RateLimitedError):
    """The call alone has more tokens than its rate limit ever lets through at once: waiting does not help."""

    http_status = 400
    kind = "too_many_tokens"


class ShedError(RejectedError):
    """The load is so high that calls of this priority are not let in."""

    kind = "shed"


class InvalidRequestError(RejectedError):
    """The guard: the server would refuse this request, or should not be made to read it. `param` is the field."""

    http_status = 400
    kind = "invalid_request_error"

    def __init__(
        self, message: str, *, step: str, retry_after: float | None = None, http_status: int | None = None,
        param: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, step=step, retry_after=retry_after, http_status=http_status)
        self.param = param


class OverloadedError(RejectedError):
    """The server gave no usable answer (a blank 200, an error inside a stream) and no attempt is left."""

    kind = "overloaded"


class LocalModelError(ResilienceError):
    """The model on this machine cannot be started, or is not ready. The message says what to do.

    Attributes:
        why: "not_installed", "no_model", "corrupt", "too_large", "port_taken", "wrong_key", "not_found", "unanswered",
            "died", "memory", "timeout", "not_ready" or "closed".
    """

    http_status = 503

    def __init__(self, message: str, *, why: str = "no_model") -> None:
        super().__init__(message)
        self.why = why

    def __reduce__(self) -> tuple[object, ...]:
        return _local, (type(self), str(self), self.why)


def _local(kind: type[LocalModelError], message: str, why: str) -> LocalModelError:
    return kind(message, why=why)


class DeadlineExceededError(ResilienceError):
    """A time limit passed: the deadline of the call, or the last attempt's own."""

    http_status = 504


class StreamInterruptedError(ResilienceError):
    """A stream was cut or fell silent after content had come.

    Attributes:
        partial: the answer's text so far.
        resume: the message of the assistant to put at the end of `messages` for DeepSeek's beta address to go on with
            it; None where that cannot be (no chat, a tool call or JSON had begun, the end had been seen).
    """

    http_status = 502

    def __init__(self, message: str, *, partial: str = "", resume: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.partial = partial
        self.resume = resume


def partial_of(error: BaseException | None) -> str:
    """The text that had come before a stream was interrupted: of `error`, or of what caused it; "" if none had.

    For `except openai.APIConnectionError as error`, where ours is the cause: `partial_of(error)`.
    """
    interrupted = _interrupted(error)
    return "" if interrupted is None else interrupted.partial


def resume_of(error: BaseException | None) -> dict[str, Any] | None:
    """The message by which an interrupted answer can be gone on with; None where it cannot.

    `client.with_beta().chat.completions.create(messages=[*messages, resume_of(error)], ...)` answers with the rest. A
    prefix of your own at the end of `messages` is in it already: it goes in its place.
    """
    interrupted = _interrupted(error)
    return None if interrupted is None or interrupted.resume is None else dict(interrupted.resume)


def _interrupted(error: BaseException | None) -> StreamInterruptedError | None:
    while error is not None and not isinstance(error, StreamInterruptedError):
        error = error.__cause__
    return error
