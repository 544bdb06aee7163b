"""Reads a request as DeepSeek would: what is asked, in whichever of the dialects, or what is wrong with it.

Pure: a `LabRequest` becomes an `Ask` or a `Problem`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .exchange import LabRequest

Endpoint = Literal["chat", "fim", "responses", "messages", "models", "balance"]

MODELS: Final = ("deepseek-flash", "deepseek-v4-pro")
CONTEXT_TOKENS: Final = 1_048_576

_ENDPOINTS: Final[tuple[tuple[str, str, Endpoint, tuple[str, ...]], ...]] = (
    ("POST", "/chat/completions", "chat", ("", "/v1", "/beta", "/beta/v1")),
    ("POST", "/completions", "fim", ("/beta", "/beta/v1")),
    ("POST", "/responses", "responses", ("", "/v1", "/beta", "/beta/v1")),
    ("POST", "/messages", "messages", ("/anthropic", "/anthropic/v1")),
    ("GET", "/models", "models", ("", "/v1", "/beta", "/beta/v1", "/anthropic/v1")),
    ("GET", "/user/balance", "balance", ("", "/v1")),
)
ROUTES: Final[dict[str, tuple[str, Endpoint]]] = {
    prefix + path: (method, endpoint) for method, path, endpoint, prefixes in _ENDPOINTS for prefix in prefixes
}
"""Every path that is served, with its method and what it means."""

_TYPES: Final = {
    401: "authentication_error",
    402: "unknown_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal in DeepSeek's error format; `code` misleads, as the real one does."""

    status: int
    message: str
    type: str = ""
    code: str | None = "invalid_request_error"

    def body(self) -> bytes:
        """The JSON of it."""
        return _body(self)


@lru_cache(maxsize=256)
def _body(problem: Problem) -> bytes:
    kind = problem.type or _TYPES.get(problem.status, "invalid_request_error")
    error = {"message": problem.message, "type": kind, "param": None, "code": problem.code}
    return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call, and the JSON schema of its arguments."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What an inference request wants, the same in every dialect. `calls` are the tools that will be called; `prefix`
    is what has been said of the answer, and `thought` of the reasoning (None: neither)."""

    endpoint: Endpoint
    model: str
    prompt: str
    prompt_tokens: int
    cached_tokens: int
    stream: bool = False
    include_usage: bool = False
    thinking: bool = True
    max_tokens: int | None = None
    calls: tuple[Tool, ...] = ()
    schema: Mapping[str, Any] | None = None
    prefix: str | None = None
    thought: str = ""


class _BadRequest(Exception):
    """Carries a Problem up to `read`."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.problem = Problem(status, message)


def check_key(headers: Mapping[str, str], keys: frozenset[str] | None) -> Problem | None:
    """401 unless there is a key: one of `keys`, or any that does not contain "invalid" where `keys` is None."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    key = key or headers.get("x-api-key", "")
    if key and (key in keys if keys is not None else "invalid" not in key):
        return None
    shown = f"****{key[-4:]}" if len(key) > 8 else "****"
    reason = f"Your api key: {shown} is invalid" if key else "no api key was given"
    return Problem(401, f"Authentication Fails, {reason}", "authentication_error")


def read(request: LabRequest, endpoint: Endpoint, models: Sequence[str]) -> Ask | Problem:
    """What an inference request asks, or why it is refused."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        return Problem(400, f"Failed to parse the request body as JSON: {error}")
    try:
        return _read(body, endpoint, models, beta=request.path.startswith("/beta"))
    except _BadRequest as error:
        return error.problem


def _read(body: object, endpoint: Endpoint, models: Sequence[str], *, beta: bool) -> Ask:
    if not isinstance(body, dict):
        raise _BadRequest("Failed to deserialize the JSON body: expected an object")
    model = _field(body, "model", str, None)
    if model is None:
        raise _BadRequest("Failed to deserialize the JSON body: missing field `model`", 422)
    if model not in models and not (endpoint == "messages" and model.startswith("claude")):
        raise _BadRequest(f"Model Not Exist: the supported models are {', '.join(models)}, not {model!r}")
    user = body.get("user_id")
    if isinstance(user, str) and len(user.encode("utf-8", "replace")) > 512:
        raise _BadRequest("Invalid user_id: longer than 512 bytes")
    thinking = body.get("thinking")
    effort = body.get("reasoning")
    asked = {
        "endpoint": endpoint,
        "model": model if model in models else models[0],
        "stream": _field(body, "stream", bool, False),
        "thinking": not (
            endpoint == "fim"
            or (isinstance(thinking, dict) and thinking.get("type") == "disabled")
            or (isinstance(effort, dict) and effort.get("effort") == "none")
        ),
        "max_tokens": _max_tokens(body, endpoint),
    }
    if endpoint == "fim":
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise _BadRequest("Failed to deserialize the JSON body: `prompt` must be a string", 422)
        return Ask(
            **asked,
            prompt=prompt,
            prompt_tokens=_tokens(prompt),
            cached_tokens=0,
            include_usage=_include_usage(body),
        )
    messages = _messages(body, endpoint)
    prompt, tokens, cached = _measure(messages, _text(body.get("system") or body.get("instructions")))
    return Ask(
        **asked,
        prompt=prompt,
        prompt_tokens=tokens,
        cached_tokens=cached,
        include_usage=endpoint == "chat" and _include_usage(body),
        calls=_calls(body, prompt, messages[-1]),
        schema=_schema(body),
        **_prefix(messages[-1], beta=beta),
    )


def _prefix(last: dict[str, Any], *, beta: bool) -> dict[str, Any]:
    """What the answer begins with, where the last message says so."""
    if last.get("prefix") is not True:
        return {}
    if not beta:
        raise _BadRequest("prefix is a beta feature: set base_url to https://api.deepseek.com/beta")
    if last.get("role") != "assistant":
        raise _BadRequest("the role of the last message must be assistant when prefix is true")
    return {"prefix": _text(last.get("content")), "thought": _text(last.get("reasoning_content"))}


def _field(body: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _BadRequest(f"Failed to deserialize the JSON body: `{name}` must be of type {kind.__name__}", 422)
    return value


def _max_tokens(body: dict[str, Any], endpoint: Endpoint) -> int | None:
    names = ("max_output_tokens",) if endpoint == "responses" else ("max_tokens", "max_completion_tokens")
    for name in names:
        value: int | None = _field(body, name, int, None)
        if value is not None:
            if value < 1:
                raise _BadRequest(f"Invalid {name} value, the valid range of {name} is [1, 393216]")
            return value
    if endpoint == "messages":
        raise _BadRequest("max_tokens: field required")
    return None


def _include_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _messages(body: dict[str, Any], endpoint: Endpoint) -> list[dict[str, Any]]:
    name = "input" if endpoint == "responses" else "messages"
    messages = body.get(name)
    if endpoint == "responses" and isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if messages is None or messages == []:
        raise _BadRequest(f"Empty input {name}")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _BadRequest(f"Failed to deserialize the JSON body: `{name}` must be a sequence of objects", 422)
    return messages


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def _measure(messages: list[dict[str, Any]], system: str) -> tuple[str, int, int]:
    """The last user message, all tokens, and those of the prefix a conversation would have in the cache."""
    prompt = last = ""
    length = len(system)
    for message in messages:
        last = _text(message.get("content"))
        length += len(last) + 4
        if message.get("role") == "user" and last:
            prompt = last
    tokens = length // 4 + 1
    if tokens > CONTEXT_TOKENS:
        raise _BadRequest(
            f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, you requested {tokens} tokens"
        )
    return prompt, tokens, (length - len(last)) // 4 // 64 * 64


def _tokens(text: str) -> int:
    return len(text) // 4 + 1


def _calls(body: dict[str, Any], prompt: str, last: dict[str, Any]) -> tuple[Tool, ...]:
    """The tools the model will call: the named one, those the prompt mentions, or the first if one is required."""
    given = body.get("tools")
    if not isinstance(given, list) or not given:
        return ()
    tools = [tool for tool in map(_tool, given) if tool is not None]
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "none" or not tools:
        return ()
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        if named := tuple(tool for tool in tools if tool.name == name):
            return named
    required = kind in ("required", "any")
    content = last.get("content")
    results = [part.get("type") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    if last.get("role") == "tool" or last.get("type") == "function_call_output" or "tool_result" in results:
        return (tools[0],) if required else ()
    mentioned = tuple(tool for tool in tools if tool.name in prompt)
    return mentioned or ((tools[0],) if required else ())


def _tool(data: object) -> Tool | None:
    if not isinstance(data, dict):
        return None
    function = data["function"] if isinstance(data.get("function"), dict) else data
    name = function.get("name")
    schema = function.get("parameters") or function.get("input_schema") or {}
    return Tool(name, schema) if isinstance(name, str) and name and isinstance(schema, dict) else None


def _schema(body: dict[str, Any]) -> Mapping[str, Any] | None:
    """The schema the answer must fit: that of json_schema, or an object with an answer for json_object."""
    wanted = body.get("response_format")
    text = body.get("text")
    if isinstance(text, dict):
        wanted = text.get("format")
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_schema":
        inner = wanted.get("json_schema")
        schema = (inner if isinstance(inner, dict) else wanted).get("schema")
        return schema if isinstance(schema, dict) else {}
    return {} if wanted.get("type") == "json_object" else None
