"""Errors of the engine as answers to the application's caller, in OpenAI's format.

Only what is no fault of the application is answered: overload, time limits, outages. A wrong request (400, 401, 422) is
the application's own, and passes on as it is, like every error that did not come from our engine. The texts name
neither the upstream nor the account.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from deepseek_resilient import wire
from deepseek_resilient.core.messages import CALL_ATTRIBUTE
from deepseek_resilient.errors import DeadlineExceededError, InvalidRequestError, RejectedError, ResilienceError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXTS = {
    429: "Too many requests to the model at the moment.",
    502: "The model's answer broke off.",
    503: "The model cannot answer at the moment.",
    504: "The model did not answer in time.",
}
_KINDS = {429: "rate_limited", 502: "stream_interrupted", 503: "overloaded", 504: "timeout"}
_SDKS = ("openai", "anthropic")
_WRONG = ("InvalidURL", "LocalProtocolError", "UnsupportedProtocol")
"""What the application itself did wrong, in the words of the HTTP libraries."""


class Answer(NamedTuple):
    """An HTTP answer. Its headers are ASCII, their names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """As ASGI has them."""
        return [(name.encode(), value.encode()) for name, value in self.headers]


def answer_to(error: BaseException) -> Answer | None:
    """What the application's caller gets for `error`; None where it is not ours to answer.

    Ours are the exceptions of `deepseek_resilient.errors`, and those of an SDK or HTTP library that came of a call
    through an engine of ours. The answer says `x-should-retry: false`: the engine has tried already.
    """
    if isinstance(error, ResilienceError):
        return _of_ours(error)
    response: Any = getattr(error, "response", None)
    if response is not None:
        return _of_response(response)
    if type(error).__module__.partition(".")[0] in _SDKS:
        error = error.__cause__ or error
        if isinstance(error, ResilienceError):
            return _of_ours(error)
    ours = hasattr(error, CALL_ATTRIBUTE) and type(error).__name__ not in _WRONG
    return _answer(503) if ours else None


def refusal(error: RejectedError) -> Answer:
    """The answer for who is refused at the door. What is wrong with the caller's headers is told in full."""
    if isinstance(error, InvalidRequestError):
        return _answer(400, kind=error.kind, step=error.step, text=str(error))
    return _answer(error.http_status, kind=error.kind, step=error.step, retry_after=error.retry_after)


def _of_ours(error: ResilienceError) -> Answer | None:
    if error.http_status not in _TEXTS:
        return None
    if isinstance(error, RejectedError):
        return refusal(error)
    return _answer(error.http_status, step="deadline" if isinstance(error, DeadlineExceededError) else None)


def _of_response(response: Any) -> Answer | None:
    """Servers cannot say `x-resilient-`: such a header is from our engine."""
    ours = getattr(response, "extensions", {}).get("resilience_error")
    if isinstance(ours, ResilienceError):
        return _of_ours(ours)
    headers: Mapping[str, str] = response.headers
    status = response.status_code
    if not any(name.startswith("x-resilient-") for name in headers) or (status < 500 and status not in (408, 429)):
        return None
    return _answer(
        {408: 504, 429: 429, 504: 504}.get(status, 503),
        step=headers.get("x-resilient-stopped-by"),
        retry_after=_seconds(headers.get("retry-after", "")),
    )


def _seconds(text: str) -> float | None:
    return float(text) if text.replace(".", "", 1).isdecimal() and len(text) < 10 else None


def _answer(
    status: int, *, kind: str = "", step: str | None = None, retry_after: float | None = None, text: str = ""
) -> Answer:
    body = wire.error_body(text or _TEXTS[status], kind or _KINDS[status])
    headers = [
        ("content-length", str(len(body))),
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("x-should-retry", "false"),
    ]
    if step is not None:
        headers.append(("x-resilient-refused-by", step))
    if status in (429, 503):  # whole seconds: not every caller reads others
        headers.append(("retry-after", str(max(math.ceil(retry_after or 0.0), 1))))
    return Answer(status, headers, body)
