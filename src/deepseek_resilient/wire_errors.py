"""How errors look to whoever asks: in OpenAI's format, or in Anthropic's where that is spoken.

Anthropic's SDK takes the class of an error from its status, and in a stream sees only an event that is named `error`.
"""

from __future__ import annotations

import json

from deepseek_resilient import wire
from deepseek_resilient.wire import Dialect

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def spoken_at(path: str) -> Dialect:
    """The dialect of whoever asks there, also where no call can be made: beside `/messages`, or below `/anthropic`."""
    dialect = wire.dialect_of("POST", path)
    if dialect is Dialect.OTHER and any(part in f"{path}/" for part in ("/messages/", "/anthropic/")):
        return Dialect.MESSAGES
    return dialect


def error_body(dialect: Dialect, status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """An error as that dialect has it. Anthropic's types follow from the status; `kind` and `param` are OpenAI's."""
    if dialect is not Dialect.MESSAGES:
        return wire.error_body(message, kind, param)
    named = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    told = {"type": "error", "error": {"type": named, "message": message}}
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")


def event_of(dialect: Dialect, status: int, body: bytes) -> bytes:
    """The body of an answer, as an event of a stream that has begun."""
    named = b"event: error\n" if dialect is Dialect.MESSAGES and status >= 400 else b""
    return b"%bdata: %b\n\n" % (named, b" ".join(body.splitlines()))
