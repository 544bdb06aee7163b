"""Our own answers: a refusal, or a 200 that was no answer, as an HTTP reply in the server's error format.

So `except openai.RateLimitError` keeps working. `x-resilient-refused-by` names the step, `retry-after` says when
to come again, and `x-should-retry: false` keeps an SDK around us from repeating what we have just decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_resilient import wire
from deepseek_resilient.core.messages import Response

if TYPE_CHECKING:
    from deepseek_resilient.errors import RejectedError


def response_of(error: RejectedError) -> Response:
    """The HTTP answer that means `error`; the error itself is in its extensions."""
    body = wire.error_body(str(error), error.kind, getattr(error, "param", None))
    headers = [
        (b"content-length", str(len(body)).encode()),
        (b"content-type", b"application/json"),
        (b"x-resilient-refused-by", error.step.encode()),
        (b"x-should-retry", b"false"),
    ]
    if error.retry_after is not None:
        headers.append((b"retry-after", f"{max(error.retry_after, 0.001):.3f}".encode()))
    return Response(error.http_status, headers, body, {"http_version": b"HTTP/1.1", "resilience_error": error})
