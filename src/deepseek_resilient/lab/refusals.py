"""Replies that stand in for an answer before any work is done: errors, pages of the front, bad content types."""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from .asks import Problem

if TYPE_CHECKING:
    from .capacity import Refusal
    from .exchange import Headers
    from .faults import Fault

BUSY: Final = (
    "Service is too busy. We advise users to temporarily switch to alternative LLM API service providers, "
    "or try again later."
)

_PAGES: Final = {500: "Internal Server Error", 502: "Bad Gateway", 504: "Gateway Time-out"}
_MESSAGES: Final = {
    400: "Invalid request",
    401: "Authentication Fails, Your api key: ****0000 is invalid",
    402: "Insufficient Balance",
    404: "Not Found",
    422: "Invalid parameters",
    429: "Rate limit reached",
    500: "Internal Server Error",
    503: BUSY,
    529: BUSY,
}


def concurrency(current: int, limit: int) -> Problem:
    """The 429 of an account over its dynamic limit."""
    return Problem(
        429,
        f"Your current concurrency is {current}, which exceeds your concurrency limit of {limit} "
        "based on your remaining balance",
        "rate_limit_error",
    )


def refused(refusal: Refusal) -> Problem:
    """What a request is told that got no place."""
    return concurrency(refusal.current, refusal.limit) if refusal.reason == "limit" else Problem(503, BUSY)


def reply_of(fault: Fault, unix_time: float) -> tuple[int, str, bytes, Headers] | None:
    """Status, content type, body and extra headers of a fault that answers with an error; None for other kinds."""
    kind = fault.kind
    if kind.startswith("html_"):
        status = int(kind[5:])
        title = f"{status} {_PAGES[status]}"
        page = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
        return status, "text/html", (page + "<hr><center>openresty</center>\r\n</body>\r\n</html>\r\n").encode(), []
    message = fault.text("message")
    media = "application/json"
    match kind:
        case "outage_503":
            problem = Problem(503, message or BUSY)
        case "throttle_429":
            problem = concurrency(fault.count("current"), fault.count("limit"))
            problem = Problem(429, message or problem.message, problem.type)
        case "balance_402":
            problem = Problem(402, message or _MESSAGES[402], "unknown_error")
        case "status" | "wrong_content_type":
            status = fault.count("status")
            problem = Problem(
                status, message or _MESSAGES.get(status, f"Simulated status {status}"), fault.text("type")
            )
            media = "application/octet-stream" if kind == "wrong_content_type" else media
        case _:
            return None
    return problem.status, media, problem.body(), _hints(fault, unix_time)


def _hints(fault: Fault, unix_time: float) -> Headers:
    headers: Headers = []
    given = fault.parameters
    if given.get("retry_after") is not None:
        headers.append(("retry-after", fault.text("retry_after")))
    if given.get("retry_after_date") is not None:
        headers.append(("retry-after", formatdate(unix_time + fault.number("retry_after_date"), usegmt=True)))
    if given.get("retry_after_ms") is not None:
        headers.append(("retry-after-ms", fault.text("retry_after_ms")))
    if given.get("should_retry") is not None:
        headers.append(("x-should-retry", "true" if given["should_retry"] else "false"))
    return headers
