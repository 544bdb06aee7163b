"""What is known of the wire of DeepSeek and of servers that speak OpenAI's format: the one place that knows it.
(What answers say of their tokens is beside it, in `usage.py`.)

Facts only: which request is what, what a status means, how a stream shows content and its end, how errors look. What
follows from a fact is decided in `core/`. Sources: DeepSeek's API documentation (July 2026), and users' reports where
the documentation is silent; `docs/deepseek.md` tells them row by row.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BASE_URL = "https://api.deepseek.com"
BETA_PATH = "/beta"
DEFAULT_MODEL = "deepseek-flash"
TRACE_HEADER = b"x-ds-trace-id"
OVERLOAD_FINISH = "insufficient_system_resource"
LONGEST_RETRY_AFTER = 86_400.0

_OVERLOAD_MARK = OVERLOAD_FINISH.encode()


class Dialect(StrEnum):
    """What kind of call a request is."""

    CHAT = "chat"
    FIM = "fim"
    RESPONSES = "responses"
    MESSAGES = "messages"
    OTHER = "other"
    """No inference: models, balance, files. Passed through; retried only where HTTP says it is safe."""

    def __init__(self, name: str) -> None:
        self.is_inference: Final = name != "other"
        """Whether a model answers."""


class Sign:
    """What an event of a stream shows: bits of an int (an `IntFlag` would cost a microsecond per chunk)."""

    NOTHING: Final = 0
    CONTENT: Final = 1
    FINISH: Final = 2
    DONE: Final = 4
    ERROR: Final = 8
    OVERLOAD: Final = 16


class CallInfo(NamedTuple):
    """What the engine must know of a request before it is sent."""

    dialect: Dialect
    model: str
    stream: bool


INFERENCE_PATHS = (
    ("/chat/completions", Dialect.CHAT),
    ("/completions", Dialect.FIM),
    ("/responses", Dialect.RESPONSES),
    ("/messages", Dialect.MESSAGES),
)
_NO_INFERENCE = CallInfo(Dialect.OTHER, "", False)


def dialect_of(method: str, path: str) -> Dialect:
    """What kind of call goes to that path (without its query)."""
    if method == "POST":
        path = path.rstrip("/")
        for suffix, dialect in INFERENCE_PATHS:
            if path.endswith(suffix):
                return dialect
    return Dialect.OTHER


def identify(method: str, path: str, body: bytes, fields: object = None) -> tuple[CallInfo, object]:
    """What kind of call this is, and what an inference call's body says (None: it is no JSON); `fields` is what it says
    where that is known.

    A body that is not a JSON object is an inference call without model or stream.

    The model's name goes into headers, log lines and names of targets: what cannot be printed becomes "?".
    """
    dialect = dialect_of(method, path)
    if dialect is Dialect.OTHER:
        return _NO_INFERENCE, None
    if fields is None:
        fields = _json(body)
    if not isinstance(fields, dict):
        return CallInfo(dialect, "", False), fields
    model = fields.get("model")
    name = _printable(model[:128]) if isinstance(model, str) else ""
    return CallInfo(dialect, name, fields.get("stream") is True), fields


def fields_of(body: bytes) -> dict[str, Any]:
    """The fields of a JSON object; none where it is none."""
    fields = _json(body)
    return fields if isinstance(fields, dict) else {}


def mark(body: bytes, **said: object) -> bytes:
    """The JSON object with what is `said` about it under the name `resilient`; what is no object stays as it is."""
    fields = _json(body)
    if not isinstance(fields, dict):
        return body
    return encode({**fields, "resilient": said}) or body


def encode(fields: dict[str, Any]) -> bytes | None:
    """As JSON in ASCII; None for what JSON cannot say (a number too large for a float, say)."""
    try:
        return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError:
        return None


def address_of(base_url: str, path: str) -> str:
    """Where an inference call to `path` goes at a server whose API begins at `base_url`.

    DeepSeek has the Messages dialect under `/anthropic` and its beta features under `/beta` of the bare host.
    """
    base, path = base_url.rstrip("/"), path.rstrip("/")
    suffix = next((suffix for suffix, _ in INFERENCE_PATHS if path.endswith(suffix)), path)
    if path.endswith(f"/beta{suffix}"):
        return f"{base.removesuffix('/v1').removesuffix('/beta')}/beta{suffix}"
    if path.endswith(f"/anthropic/v1{suffix}"):
        return f"{base}/v1{suffix}" if base.endswith("/anthropic") else f"{base}/anthropic/v1{suffix}"
    return base + suffix


class Meaning(NamedTuple):
    """What a status says: the kind of verdict, why, and whether another attempt may help."""

    kind: str
    reason: str
    retryable: bool


_BY_STATUS = {
    400: Meaning("caller_fault", "bad_request", False),
    401: Meaning("caller_fault", "bad_key", False),
    402: Meaning("throttled", "balance_exhausted", False),
    403: Meaning("caller_fault", "forbidden", False),
    404: Meaning("caller_fault", "not_found", False),
    408: Meaning("timeout", "server_timed_out", True),
    422: Meaning("caller_fault", "bad_parameter", False),
    425: Meaning("fault", "too_early", True),
    429: Meaning("throttled", "rate_limited", True),
    503: Meaning("overloaded", "busy", True),
    529: Meaning("overloaded", "busy", True),
}


def meaning_of_status(status: int) -> Meaning:
    """What a status means (DeepSeek's error table; 529 is Anthropic's word for 503)."""
    known = _BY_STATUS.get(status)
    if known is not None:
        return known
    if status < 400:
        return Meaning("ok", "ok", False)
    if status < 500:
        return Meaning("caller_fault", f"status_{status}", False)
    return Meaning("fault", f"status_{status}", True)


_BY_ERROR_TYPE = {
    "rate_limit_error": 429,
    "authentication_error": 401,
    "invalid_request_error": 400,
    "overloaded_error": 529,
    "service_unavailable_error": 503,
}


def status_of_error(error: object) -> int:
    """The status that an error object inside a 200 stands for: by its numeric code, then its type, else 500."""
    if isinstance(error, dict):
        code = error.get("code")
        if isinstance(code, str) and code.isdecimal() and len(code) == 3:
            code = int(code)
        if isinstance(code, int) and 400 <= code <= 599:
            return code
        return _BY_ERROR_TYPE.get(str(error.get("type")), 500)
    return 500


_STATED_LIMIT = re.compile(rb"concurrency limit of (\d{1,6})")


def stated_limit(body: bytes) -> int | None:
    """The concurrency limit that a 429 of DeepSeek states in its message, if it does."""
    found = _STATED_LIMIT.search(body[:4096])
    return int(found.group(1)) if found else None


def retry_after(header: Callable[[bytes], str | None], wall: float) -> float | None:
    """Seconds to wait as the server states it, or None.

    `retry-after-ms` goes before `retry-after` (seconds, fractions, or an HTTP date seen from `wall`, Unix seconds).
    What is negative or past is 0; what is absurdly long is cut to a day; what cannot be read states nothing.
    """
    for name, unit in ((b"retry-after-ms", 0.001), (b"retry-after", 1.0)):
        text = header(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            parsed = email.utils.parsedate_tz(text) if unit == 1.0 else None
            if parsed is None:
                continue
            try:
                seconds = email.utils.mktime_tz(parsed) - wall
            except (ValueError, OverflowError):
                continue
        if not math.isnan(seconds):
            return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
    return None


def should_retry(header: Callable[[bytes], str | None]) -> bool | None:
    """The server's own word on retrying (`x-should-retry`), or None."""
    return {"true": True, "false": False}.get((header(b"x-should-retry") or "").strip().lower())


_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,128})"')


def stated_model(data: bytes) -> str:
    """The model that an answer, or an event of a stream, names; "" if it names none near its beginning.

    Seen without parsing: inside JSON strings the quotes are escaped, so text of the answer cannot look like the field.
    """
    found = _MODEL.search(data, 0, 4096)
    return _printable(found.group(1).decode("utf-8", "replace")) if found else ""


def answer_problem(dialect: Dialect, body: bytes) -> Meaning | None:
    """What is wrong with the body of a buffered 200, or None when it is an answer."""
    if not body or body.isspace():
        return Meaning("overloaded", "blank_200", True)
    answer = _json(body)
    if not isinstance(answer, dict):
        if body.lstrip()[:1] in (b"{", b"["):
            return Meaning("truncated", "cut_body", True)
        return Meaning("fault", "not_json", True)
    if _OVERLOAD_MARK in body and OVERLOAD_FINISH in _finish_reasons(answer):
        return Meaning("overloaded", OVERLOAD_FINISH, True)
    error = answer.get("error")
    if error and dialect is not Dialect.RESPONSES:
        meaning = meaning_of_status(status_of_error(error))
        return meaning._replace(reason="error_in_200")
    return None


def signs(dialect: Dialect, name: bytes, data: bytes) -> int:
    """What one event of a stream shows. Data that cannot be read shows nothing."""
    if dialect is _CHAT or dialect is _FIM:
        if data == b"[DONE]":
            return Sign.DONE
        return _completion_signs(_json(data))
    event = _json(data)
    if not isinstance(event, dict):
        return Sign.NOTHING
    kind = str(event.get("type") or name.decode("latin-1"))
    return _EVENT_SIGNS.get(kind, Sign.CONTENT if kind.endswith(".delta") else Sign.NOTHING)


_CHAT, _FIM = Dialect.CHAT, Dialect.FIM


def is_plain_content(data: bytes) -> bool:
    """Whether an event of a chat or FIM stream that has begun can be nothing but more content, seen without parsing.

    JSON escapes the quotes inside strings, so the bytes `"finish_reason":null` cannot come from the model's text. A
    second `finish_reason` may be that of another choice.
    """
    if b'"error"' in data or data == b"[DONE]" or (b'"usage"' in data and b'"usage":null' not in data):
        return False
    named = data.count(b"finish_reason")
    return named == 0 or (named == 1 and b'"finish_reason":null' in data)


_TERMINAL = Sign.FINISH | Sign.DONE
_EVENT_SIGNS = {
    "response.completed": _TERMINAL,
    "response.incomplete": _TERMINAL,
    "response.failed": _TERMINAL | Sign.ERROR,
    "content_block_delta": Sign.CONTENT,
    "message_stop": _TERMINAL,
    "error": Sign.ERROR,
}


_NO_CONTENT = frozenset(("role", "index", "finish_reason", "logprobs"))


def _completion_signs(chunk: object) -> int:
    if not isinstance(chunk, dict):
        return Sign.NOTHING
    if chunk.get("error"):
        return Sign.ERROR
    found: int = Sign.NOTHING
    for choice in _dicts(chunk.get("choices")):
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = choice
        if any(value for key, value in delta.items() if key not in _NO_CONTENT):
            found |= Sign.CONTENT
        reason = choice.get("finish_reason")
        if reason:
            found |= Sign.FINISH
            if reason == OVERLOAD_FINISH:
                found |= Sign.OVERLOAD
    return found


def error_of_event(data: bytes) -> object:
    """The error object that an event of a stream carries (`{"error": …}`, or Responses' `response.failed`)."""
    event = _json(data)
    if not isinstance(event, dict):
        return None
    response = event.get("response")
    return event.get("error") or (response.get("error") if isinstance(response, dict) else None)


def text_of_events(dialect: Dialect, events: Iterable[bytes]) -> str:
    """The text of the (first) answer that these events carry: what a caller keeps of a stream that was cut. `mended` it
    is whole: a surrogate pair may be split over two events."""
    parts: list[str] = []
    for data in events:
        event = _json(data)
        if not isinstance(event, dict):
            continue
        if dialect is Dialect.RESPONSES:
            if event.get("type") == "response.output_text.delta":
                parts.append(str(event.get("delta") or ""))
        elif dialect is Dialect.MESSAGES:
            delta = event.get("delta")
            parts.append(str(delta.get("text") or "") if isinstance(delta, dict) else "")
        else:
            for choice in _dicts(event.get("choices")):
                if choice.get("index", 0) == 0:
                    delta = choice.get("delta")
                    parts.append(str((delta.get("content") if isinstance(delta, dict) else choice.get("text")) or ""))
    return "".join(parts)


def mended(halves: str) -> str:
    """The text, of which characters may come in two halves; a half without the other is one that cannot be read."""
    return halves.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def error_body(message: str, kind: str, param: str | None = None) -> bytes:
    """An error in the server's own format."""
    error = {"message": message, "type": kind, "param": param, "code": kind}
    return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


def _finish_reasons(answer: dict[str, Any]) -> set[object]:
    return {str(choice.get("finish_reason")) for choice in _dicts(answer.get("choices"))}


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in text)


def _dicts(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _json(data: bytes) -> object:
    try:
        return jiter.from_json(data)
    except ValueError:  # half a surrogate pair, which a stream may split, is an error to jiter alone
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return None
