"""What a request's answer is known by: one key for all requests that must be answered alike.

The key is a digest of the canonical form of the request's fields, with keys sorted and without JSON's white space, and
of a scope (address, account, tenant). Left out of it are fields that say what goes without saying: null, and the
documented default. What is not known here is in the key: a needless miss costs a call, a false hit is a wrong answer.
So are `stream` (it changes the bytes), and `user`, `user_id` and `metadata` (they may keep users apart).

Where no answer is kept, only calls that are in flight together can be alike: those of one crowd, or of a caller that
repeats itself, which say the same in the same bytes. Their key is a digest of the bytes, a sixth of the work.

Defaults: https://api-docs.deepseek.com/api/create-chat-completion and .../create-completion, and OpenAI's reference of
Chat Completions, Completions and Responses, August 2026. `max_tokens` has none that is known; thinking has one only
for DeepSeek's own models.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from deepseek_resilient.wire import Dialect

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAMPLING = {"temperature": 1, "top_p": 1, "stream": False}
_PENALTIES = {"presence_penalty": 0, "frequency_penalty": 0, "n": 1, "logit_bias": {}}
_DEFAULTS: dict[Dialect, dict[str, Any]] = {
    Dialect.CHAT: _SAMPLING | _PENALTIES | {"logprobs": False, "response_format": {"type": "text"}, "tools": []},
    Dialect.FIM: _SAMPLING | _PENALTIES | {"echo": False, "best_of": 1},
    Dialect.RESPONSES: _SAMPLING | {"tools": [], "text": {"format": {"type": "text"}}},
    Dialect.MESSAGES: {"stream": False, "tools": []},
}
_SIZE = 16
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def is_deterministic(fields: Mapping[str, Any]) -> bool:
    """Whether the caller asks for the same answer each time: temperature 0, or a seed."""
    temperature, seed = fields.get("temperature"), fields.get("seed")
    cold = isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and temperature == 0
    return cold or (isinstance(seed, int) and not isinstance(seed, bool))


def fingerprint(dialect: Dialect, fields: Mapping[str, Any], scope: bytes) -> bytes | None:
    """The key, 16 bytes; None for what has no canonical form (NaN, endless nesting)."""
    defaults = _DEFAULTS[dialect]
    telling: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None or (name in defaults and _equal(value, defaults[name])):
            continue
        if value.__class__ is float and value.is_integer():
            value = int(value)
        telling[name] = value
    try:
        text = _canonical(telling)
    except (ValueError, RecursionError):
        return None
    of = b"%b %d %b" % (dialect.encode(), len(scope), scope)
    return sha256(of + text.encode("ascii")).digest()[:_SIZE]


def digest(body: bytes, scope: bytes) -> bytes:
    """The key of a body that has to be the same to the byte, 16 bytes."""
    return sha256(b"%d %b%b" % (len(scope), scope, body)).digest()[:_SIZE]


def _equal(value: object, default: object) -> bool:
    """Equal as JSON has it: true is not 1."""
    return isinstance(value, bool) is isinstance(default, bool) and value == default
