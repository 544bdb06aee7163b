"""What is said instead of an answer."""

from __future__ import annotations

from deepseek_resilient import wire
from deepseek_resilient.gateway.relay import JSON

_CLOSE = (b"connection", b"close")


class Problem(Exception):
    """What is said instead of an answer; `close`: and the connection ends."""

    def __init__(self, status: int, kind: str, message: str, *, close: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.body = wire.error_body(message, kind)
        self.headers = [JSON, _CLOSE] if close else [JSON]


def too_long(longest: int) -> Problem:
    """A body over the limit."""
    told = f"Request Entity Too Large: the limit of this gateway is {longest} bytes"
    return Problem(413, "invalid_request_error", told, close=True)
