"""What a gateway offers, as an OpenAPI 3.1 document: its paths, and what it says itself; the rest is DeepSeek's."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from deepseek_resilient import __version__

_CALLS = {
    "/v1/chat/completions": ("Chat", ["model", "messages"], "messages"),
    "/beta/completions": ("FIM", ["model", "prompt"], "prompt"),
    "/v1/responses": ("Responses", ["model", "input"], "input"),
    "/anthropic/v1/messages": ("Anthropic's Messages", ["model", "messages", "max_tokens"], "messages"),
}
_OURS = {
    400: "The request cannot be understood",
    401: "No key, or one that nobody has",
    403: "The model is none of the tenant's",
    404: "There is no such path or model",
    405: "Another method is possible here",
    408: "The body did not come in time",
    413: "The body is over the limit",
    500: "A mistake of the gateway itself",
}
_LATER = {
    429: "A limit is reached, here or upstream",
    503: "DeepSeek is busy or not there; nothing is sent to it for a while",
}
_UPSTREAM = {
    402: "The company's balance is used up",
    422: "DeepSeek refuses a parameter",
    502: "The upstream did not answer, or not so that it can be read",
    504: "The deadline of the call is over",
}


@cache
def document() -> bytes:
    """The document as JSON."""
    paths: dict[str, Any] = {path: {"post": _call(*said)} for path, said in _CALLS.items()}
    paths["/v1/models"] = {"get": _operation("The tenant's models", _content({"type": "object"}))}
    named = _operation("One model", _content({"type": "object"}))
    named["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": _word()}]
    paths["/v1/models/{model}"] = {"get": named}
    paths["/openapi.json"] = {
        "get": {
            "summary": "This document",
            "operationId": "this document",
            "security": [],
            "responses": {"200": {"description": "It", "content": _content({"type": "object"})}},
        }
    }
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "deepseek-resilient gateway",
                "version": __version__,
                "description": "DeepSeek's API as OpenAI's and Anthropic's SDKs speak it. Bodies and answers are passed"
                " on as they are: fields that are not named here are the upstream's business. A gateway without tenants"
                " asks for no key.",
            },
            "security": [{"key": []}, {"x-api-key": []}],
            "paths": paths,
            "components": {
                "securitySchemes": {
                    "key": {"type": "http", "scheme": "bearer"},
                    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
                "schemas": {"Error": _error()},
            },
        }
    ).encode()


def _call(summary: str, required: list[str], content: str) -> dict[str, Any]:
    asked: Any = {"type": "array", "minItems": 1, "items": {"type": "object"}}
    fields = {
        "model": {"type": "string"},
        content: asked if content == "messages" else {"type": "string"},
        "stream": {"type": "boolean"},
        "max_tokens": {"type": "integer", "minimum": 1},
    }
    answers = {**_content({"type": "object"}), "text/event-stream": {"schema": {"type": "string"}}}
    operation = _operation(summary, answers)
    body = {"type": "object", "required": required, "properties": fields}
    operation["requestBody"] = {"required": True, "content": _content(body)}
    operation["parameters"] = [
        {
            "name": "x-resilient-deadline",
            "in": "header",
            "description": "Seconds that the caller waits; then 504",
            "schema": {"type": "string", "pattern": r"^[1-9][0-9]{0,8}(\.[0-9]{1,9})?$"},
        }
    ]
    return operation


def _operation(summary: str, answers: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "DeepSeek's answer", "content": answers}}
    for status, description in sorted({**_OURS, **_LATER, **_UPSTREAM}.items()):
        said: dict[str, Any] = {"description": description, "content": _content(_reference())}
        if status in _LATER:
            said["headers"] = {"retry-after": {"schema": {"type": "number"}, "description": "Seconds"}}
        responses[str(status)] = said
    return {"summary": summary, "operationId": summary, "responses": responses}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _word() -> dict[str, Any]:
    return {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"}


def _reference() -> dict[str, Any]:
    return {"$ref": "#/components/schemas/Error"}


def _error() -> dict[str, Any]:
    """OpenAI's format; Anthropic's has a `type` beside it."""
    told = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}
    return {"type": "object", "required": ["error"], "properties": {"error": told}}
