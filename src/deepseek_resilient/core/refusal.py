"""Our own answers: a refusal, or a 200 that was no answer, as an HTTP reply in the error format of the dialect.

So `except openai.RateLimitError` keeps working, or that of `anthropic`. `x-resilient-refused-by` names the step,
`retry-after` says when to come again, and `x-should-retry: false` keeps an SDK around us from repeating what we have
just decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_resilient.core.messages import Response
from deepseek_resilient.wire_errors import error_body

if TYPE_CHECKING:
    from deepseek_resilient.errors import RejectedError
    from deepseek_resilient.wire import Dialect


def response_of(error: RejectedError, dialect: Dialect) -> Response:
    """The HTTP answer that means `error` to who speaks that dialect; the error itself is in its extensions."""
    body = error_body(dialect, error.http_status, str(error), error.kind, getattr(error, "param", None))
    headers = [
        (b"content-length", str(len(body)).encode()),
        (b"content-type", b"application/json"),
        (b"x-resilient-refused-by", error.step.encode()),
        (b"x-should-retry", b"false"),
    ]
    if error.retry_after is not None:
        headers.append((b"retry-after", f"{max(error.retry_after, 0.001):.3f}".encode()))
    return Response(error.http_status, headers, body, {"http_version": b"HTTP/1.1", "resilience_error": error})
