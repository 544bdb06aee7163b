"""What a gateway offers: which paths there are, which model a call asks for, and those that a tenant may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jiter

from deepseek_resilient import wire
from deepseek_resilient.gateway.check import is_check
from deepseek_resilient.gateway.loopback import is_from_here
from deepseek_resilient.gateway.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deepseek_resilient.core.messages import RawHeaders

_SHORT = 65_536
"""Bytes of a body that the server takes in before anybody has asked for them."""


def asks_for_models(path: str) -> bool:
    """Whether a GET of that path is one of the list, or of one of them."""
    _, found, name = path.rstrip("/").rpartition("/models")
    if not found or not name:
        return bool(found)
    return name[0] == "/" and not {"", ".", ".."} & set(name[1:].split("/"))  # up and away, with our key


def route_of(method: str, path: str) -> str:
    """The end of a path that is one of ours, without what its caller put before it or behind; "" for no such path."""
    if wire.dialect_of(method, path).is_inference:
        return next(end for end, _ in wire.INFERENCE_PATHS if path.rstrip("/").endswith(end))
    if is_check(path):
        return "/check"
    if method != "GET":
        return ""
    return "/models" if asks_for_models(path) else path if path == "/openapi.json" else ""


def by_name(headers: RawHeaders) -> dict[bytes, bytes]:
    """The headers of a request. Of those that are there twice: the last one, but a bearer token before what is said of
    another scheme, and a page from elsewhere before one from here."""
    found = dict(headers)
    if len(found) < len(headers):
        found |= {name: value for name, value in headers if name == b"authorization" and is_bearer(value)}
        found |= {name: value for name, value in headers if name == b"origin" and not is_from_here(value)}
    return found


def is_bearer(authorization: bytes) -> bool:
    """Whether a key is said so."""
    return authorization[:7].lower() == b"bearer "


def is_long(found: Mapping[bytes, bytes]) -> bool:
    """Whether a body is so long, or may be, that the tenant's limits are asked before it is read. A shorter one is
    read first, for by its body a repeat is known."""
    length = found.get(b"content-length")
    return b"transfer-encoding" in found if length is None else length.isdigit() and int(length[:18]) > _SHORT


def no_such(method: str, path: str) -> Problem:
    """A path that is none of ours."""
    allowed = b"POST" if wire.dialect_of("POST", path).is_inference else b"GET" if asks_for_models(path) else b""
    if allowed and method.encode() != allowed:
        problem = Problem(405, "invalid_request_error", f"Only {allowed.decode()} is possible here")
        problem.headers.append((b"allow", allowed))
        return problem
    shown = path[:100] if path.isprintable() else "(not printable)"
    return Problem(404, "not_found", f"There is no {method} {shown} at this gateway")


def fields_of(body: bytes) -> Any:
    """What a call says, read so that no server can read another model in it."""
    try:
        fields = jiter.from_json(body, catch_duplicate_keys=True)
    except ValueError as error:
        told = f"The body is not the JSON of a call: {error}"
        raise Problem(400, "invalid_request_error", told) from None
    if isinstance(fields, dict) and len([name for name in fields if name.casefold() == "model"]) > 1:
        raise Problem(400, "invalid_request_error", "The body names its model twice, in other letters")
    return fields


def model_of(fields: object) -> object:
    """The model that a call asks for."""
    model = fields.get("model") if isinstance(fields, dict) else None
    return model if isinstance(model, str) else None


def listed(models: frozenset[str], body: bytes) -> bytes:
    """The list of models, without those that are not the tenant's."""
    try:
        known = jiter.from_json(body)
    except ValueError:
        return body
    if not isinstance(known, dict) or not isinstance(known.get("data"), list):
        return body
    data = [model for model in known["data"] if isinstance(model, dict) and model.get("id") in models]
    return wire.encode({**known, "data": data}) or body
