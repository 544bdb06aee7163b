"""The guard: what the server would refuse or choke on is refused before it costs anything.

    body too long ── white space ── not JSON ── nested too deep ── no object ── fields (guard_fields.py) ── too long

Only rules that are confirmed refuse: DeepSeek's documentation, its own errors in users' reports, or a limit of
`GuardPolicy` that no sensible request meets. When in doubt the request passes, and the server judges. Nothing is
changed: duplicates and unknown fields go through as they are.

Every step is linear in the body and runs at C speed (`guard_measures.py`), and an ordinary body costs a few
microseconds, for all of this happens on the caller's event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import jiter

from deepseek_resilient.core.guard_fields import Refused, inspect_fields
from deepseek_resilient.core.guard_measures import has_white_run, nests_deeper
from deepseek_resilient.wire import Dialect

if TYPE_CHECKING:
    from deepseek_resilient.config.guard import GuardPolicy

__all__ = ["Refused", "inspect", "inspect_bytes"]

_READ_FOR_ITS_ERROR: Final = 65_536
_OTHER = Dialect.OTHER


def inspect(policy: GuardPolicy, dialect: Dialect, body: bytes, fields: object, tenant: str = "") -> Refused | None:
    """Why this request is refused; None when it may pass.

    `fields` is what `body` was parsed to by `wire`, None when it is not JSON. `body` is as it was before any
    content encoding.
    """
    if dialect is _OTHER:
        return None
    if (refused := inspect_bytes(policy, body)) is not None:
        return refused
    if not isinstance(fields, dict):
        return _unreadable(body, fields)
    levels = policy.max_nesting
    if levels is not None and len(body) > 2 * levels and nests_deeper(body, levels):
        return _too_deep()
    limits = policy.tenants.get(tenant) if tenant else None
    return inspect_fields(policy, limits, dialect, fields, len(body))


def inspect_bytes(policy: GuardPolicy, body: bytes) -> Refused | None:
    """What can be said before a body is parsed: too long, or white space without end. `inspect` asks this too."""
    size = len(body)
    if policy.max_body_bytes is not None and size > policy.max_body_bytes:
        message = f"Request Entity Too Large: the body has {size} bytes, the limit is {policy.max_body_bytes}"
        return Refused(413, message, None, "body_too_large")
    longest = policy.max_whitespace
    if longest is not None and size >= longest and has_white_run(body, longest):
        message = f"Failed to parse the request body as JSON: more than {longest} bytes of white space"
        return Refused(400, message, None, "white_space")
    return None


def _unreadable(body: bytes, fields: object) -> Refused:
    """The words for a body that is no JSON object. Its beginning is read again for them."""
    if fields is None:
        why = ""
        try:
            jiter.from_json(body[:_READ_FOR_ITS_ERROR], partial_mode=len(body) > _READ_FOR_ITS_ERROR)
        except ValueError as error:
            why = f": {error}"
        if "recursion limit" in why:
            return _too_deep()
        if why or len(body) > _READ_FOR_ITS_ERROR:
            return Refused(400, f"Failed to parse the request body as JSON{why}", None, "not_json")
    return Refused(400, "Failed to deserialize the JSON body: expected an object", None, "not_an_object")


def _too_deep() -> Refused:
    return Refused(400, "Failed to parse the request body as JSON: recursion limit exceeded", None, "nesting")
