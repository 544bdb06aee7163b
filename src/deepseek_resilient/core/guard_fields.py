"""What the guard asks of the fields of a request, in the order in which the server does.

Rules of DeepSeek's documentation first (the simulated server has the same): a model, `stream`, `max_tokens`, messages
or a prompt. Then those known from users' reports of its errors: half a surrogate pair (400), a `temperature` that is no
number, an unknown role, a content that is neither text nor a list. Everything else passes as it is, fields that nobody
knows as well: the server may have learnt them.

A message carries the server's own words and the name of the field, never the caller's text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deepseek_resilient.core.guard_measures import has_white_run, least_tokens
from deepseek_resilient.wire import Dialect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_resilient.config.guard import GuardPolicy, TenantLimits


class Refused(NamedTuple):
    """A refusal of the guard: the HTTP status, the server's words, the field at fault, its code.

    `reason` is one word for events, from a fixed set.
    """

    status: int
    message: str
    param: str | None
    reason: str
    code: str = "invalid_request_error"


WRONG_TYPE_STATUS: Final = 422
"""As in DeepSeek's error table. Users saw 422 up to April 2025 and mostly 400 since."""

_MOST_OUTPUT: Final = 393_216
_USER_ID_BYTES: Final = 512
_LOOKED_AT: Final = 10_000
"""So many messages are looked at one by one, which takes milliseconds. What comes after them the server may judge."""

_ROLES: Final = frozenset(("system", "user", "assistant", "tool", "latest_reminder", "developer", "function"))
"""Those that the server's own error names, and `developer`, which OpenAI's clients send: it may learn that one."""

_OUTPUT_FIELDS: Final = ("max_tokens", "max_completion_tokens")
_RESPONSES_OUTPUT_FIELDS: Final = ("max_output_tokens",)
_KINDS: Final = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "floating point",
    str: "string",
    list: "sequence",
}
_CHAT, _FIM, _RESPONSES, _MESSAGES = Dialect.CHAT, Dialect.FIM, Dialect.RESPONSES, Dialect.MESSAGES


def inspect_fields(
    policy: GuardPolicy, limits: TenantLimits | None, dialect: Dialect, fields: dict[str, Any], size: int
) -> Refused | None:
    """Why a request with these fields, in a body of `size` bytes, is refused; None when it may pass."""
    model = fields.get("model")
    if type(model) is not str:
        if model is None:
            return _parameter("missing field `model`", "model", "no_model")
        return _parameter("`model` must be of type str", "model")
    user = fields.get("user_id")
    if type(user) is str and len(user) > _USER_ID_BYTES // 4 and len(user.encode("utf-8", "replace")) > _USER_ID_BYTES:
        return Refused(400, f"Invalid user_id: longer than {_USER_ID_BYTES} bytes", "user_id", "user_id_too_long")
    stream = fields.get("stream")
    if stream is not None and type(stream) is not bool:
        return _parameter("`stream` must be of type bool", "stream")
    if (refused := _check_output(policy, limits, dialect, fields)) is not None:
        return refused
    if (refused := _check_prompt(policy, dialect, fields)) is not None:
        return refused
    for name in ("temperature", "top_p"):
        value = fields.get(name)
        if value is not None and type(value) is not float and type(value) is not int:
            return _type(name, value, "f32")
    if limits is not None and limits.models is not None and model not in limits.models:
        return Refused(403, "This model is not among those that you may use", "model", "tenant_model")
    most = policy.max_prompt_tokens
    if limits is not None and limits.max_prompt_tokens is not None:
        most = limits.max_prompt_tokens if most is None else min(most, limits.max_prompt_tokens)
    if most is not None and size > most:
        return _check_length(most, dialect, fields)
    return None


def _check_output(
    policy: GuardPolicy, limits: TenantLimits | None, dialect: Dialect, fields: dict[str, Any]
) -> Refused | None:
    """How much the model may write. The first field that is given counts."""
    most = policy.max_output_tokens
    tenant = None if limits is None else limits.max_output_tokens
    if tenant is not None:
        most = tenant if most is None else min(most, tenant)
    names = _RESPONSES_OUTPUT_FIELDS if dialect is _RESPONSES else _OUTPUT_FIELDS
    for name in names:
        value = fields.get(name)
        if value is None:
            continue
        if type(value) is not int:
            return _parameter(f"`{name}` must be of type int", name)
        if value < 1 or (most is not None and value > most):
            text = f"Invalid {name} value, the valid range of {name} is [1, {most or _MOST_OUTPUT}]"
            return Refused(400, text, name, "out_of_range" if value < 1 else "too_many_output_tokens")
        return None
    if dialect is _MESSAGES:
        return Refused(400, "max_tokens: field required", "max_tokens", "no_max_tokens")
    if tenant is not None:
        text = f"{names[0]}: field required, in the range [1, {most}]"
        return Refused(400, text, names[0], "no_max_tokens")
    return None


def _check_prompt(policy: GuardPolicy, dialect: Dialect, fields: dict[str, Any]) -> Refused | None:
    if dialect is _FIM:
        prompt = fields.get("prompt")
        if type(prompt) is list and prompt:  # several prompts, or tokens: DeepSeek's own API has them not, others do
            texts = (each for each in prompt if type(each) is str)
            return next((refused for each in texts if (refused := _check_text(policy, each, "prompt"))), None)
        if type(prompt) is not str:
            return _parameter("`prompt` must be a string", "prompt")
        return _check_text(policy, prompt, "prompt")
    name = "input" if dialect is _RESPONSES else "messages"
    messages = fields.get(name)
    if dialect is _RESPONSES and type(messages) is str:
        return _check_text(policy, messages, name)
    if messages is None and dialect is _RESPONSES and (fields.get("previous_response_id") or fields.get("prompt")):
        return None
    if messages is None or messages == []:
        return Refused(400, f"Empty input {name}", name, "no_messages")
    if type(messages) is not list:
        return _parameter(f"`{name}` must be a sequence of objects", name)
    if policy.max_messages is not None and len(messages) > policy.max_messages:
        return Refused(400, f"{name}: more than {policy.max_messages} items", name, "too_many_messages")
    plain = dialect is not _RESPONSES
    for index, message in enumerate(messages if len(messages) <= _LOOKED_AT else messages[:_LOOKED_AT]):
        if type(message) is not dict:
            return _parameter(f"`{name}` must be a sequence of objects", name)
        content = message.get("content")
        if type(content) is str:
            if len(content) > 1024 or not content.isascii():
                refused = _check_text(policy, content, f"{name}[{index}].content")
                if refused is not None:
                    return refused
        elif content is not None:
            refused = _check_parts(policy, content, f"{name}[{index}].content", plain)
            if refused is not None:
                return refused
        if plain:
            role = message.get("role")
            if type(role) is not str or role not in _ROLES:
                return _role(role, f"{name}[{index}].role")
        elif type(output := message.get("output")) is str:
            refused = _check_text(policy, output, f"{name}[{index}].output")
            if refused is not None:
                return refused
    return None


def _check_text(policy: GuardPolicy, text: str, name: str) -> Refused | None:
    longest = policy.max_whitespace
    if longest is not None and len(text) >= longest and has_white_run(text, longest):
        return Refused(400, f"{name}: more than {longest} characters of white space", name, "white_space")
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"Failed to parse the request body as JSON: {name}: lone leading surrogate in hex escape"
        return Refused(400, message, name, "lone_surrogate")
    return None


def _check_parts(policy: GuardPolicy, content: object, name: str, plain: bool) -> Refused | None:
    """A content that is no string: the texts in a list of parts, or, in a message, something that is no content."""
    for text in _texts_of(content):
        refused = _check_text(policy, text, name)
        if refused is not None:
            return refused
    return None if type(content) is list or not plain else _type(name, content, "a string or a sequence")


def _role(role: object, name: str) -> Refused:
    if role is None:
        return _refuse_type(f"{name.removesuffix('.role')}: missing field `role`", name, "unknown_role")
    if type(role) is not str:
        return _type(name, role, "a string")
    known = "expected one of `system`, `user`, `assistant`, `tool`, `latest_reminder`"
    return _refuse_type(f"{name}: unknown variant, {known}", name, "unknown_role")


def _check_length(most: int, dialect: Dialect, fields: dict[str, Any]) -> Refused | None:
    """Whether the prompt is surely longer than `most` tokens. Each message takes one at least."""
    name = "prompt" if dialect is _FIM else "input" if dialect is _RESPONSES else "messages"
    messages = fields.get(name)
    texts = _texts(messages) if type(messages) is list else [messages] if type(messages) is str else []
    if dialect is _MESSAGES or dialect is _RESPONSES:
        texts.extend(_texts_of(fields.get("system" if dialect is _MESSAGES else "instructions")))
    least = len(messages) if type(messages) is list else 0
    if least + sum(map(len, texts)) // 4 > most:
        least += least_tokens("".join(texts))
    if least <= most:
        return None
    text = (
        f"This model's maximum context length is {most} tokens. However, you requested at least {least} tokens. "
        f"Please reduce the length of the {name}"
    )
    return Refused(400, text, name, "too_many_tokens")


def _texts(messages: list[Any]) -> list[str]:
    contents = [message.get("content") for message in messages if type(message) is dict]
    texts = [content for content in (*contents, *messages) if type(content) is str]
    if len(texts) < len(contents):
        texts.extend(text for content in contents if type(content) is list for text in _texts_of(content))
    return texts


def _texts_of(content: object) -> Iterator[str]:
    if type(content) is str:
        yield content
    elif type(content) is list:
        for part in content:
            if type(part) is dict and type(text := part.get("text")) is str:
                yield text


def _parameter(message: str, name: str, reason: str = "wrong_type") -> Refused:
    return Refused(WRONG_TYPE_STATUS, f"Failed to deserialize the JSON body: {message}", name, reason)


def _type(name: str, value: object, expected: str) -> Refused:
    return _refuse_type(f"{name}: invalid type: {_KINDS.get(type(value), 'map')}, expected {expected}", name)


def _refuse_type(message: str, name: str, reason: str = "wrong_type") -> Refused:
    text = f"Failed to deserialize the JSON body into the target type: {message}"
    return Refused(WRONG_TYPE_STATUS, text, name, reason)
