"""What is said instead of an answer."""

from __future__ import annotations

from deepseek_resilient.gateway.relay import JSON
from deepseek_resilient.wire_errors import error_body, spoken_at

_CLOSE = (b"connection", b"close")


class Problem(Exception):
    """What is said instead of an answer; `close`: and the connection ends."""

    def __init__(self, status: int, kind: str, message: str, *, close: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.headers = [JSON, _CLOSE] if close else [JSON]

    def body(self, path: str) -> bytes:
        """As whoever asked at that path reads it."""
        return error_body(spoken_at(path), self.status, str(self), self.kind)


def too_long(longest: int) -> Problem:
    """A body over the limit."""
    told = f"Request Entity Too Large: the limit of this gateway is {longest} bytes"
    return Problem(413, "invalid_request_error", told, close=True)
