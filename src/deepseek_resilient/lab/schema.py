"""A small value that fits a JSON schema: what a simulated model answers when it is told to answer in one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORMATS: Final = {
    "date": "2026-11-23",
    "time": "12:00:00Z",
    "date-time": "2026-11-23T12:00:00Z",
    "duration": "PT1S",
    "email": "someone@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "hostname": "example.com",
}
_DEPTH: Final = 24
_NODES: Final = 10_000


def example(schema: Mapping[str, Any], text: str = "simulated") -> Any:
    """A minimal valid value; strings that may be anything are `text`.

    Knows types, enum, const, properties, items, bounds, formats, `$ref` into the schema itself, anyOf, oneOf and allOf;
    not patterns and conditions. Recursive schemas end at their optional parts, at the latest after 24 levels or
    10,000 values.
    """
    return _Maker(schema, text).make(schema, 0)


class _Maker:
    def __init__(self, root: Mapping[str, Any], text: str) -> None:
        self._root = root
        self._text = text
        self._left = _NODES

    def make(self, schema: object, depth: int) -> Any:
        self._left -= 1
        if not isinstance(schema, dict) or depth > _DEPTH or self._left < 0:
            return None
        schema = self._resolve(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][0]
        for name in ("anyOf", "oneOf"):
            options = schema.get(name)
            if isinstance(options, list) and options:
                # deep down the way out of a recursive schema is its null
                plain = next((option for option in options if self._is_null(option)), None)
                return self.make(plain if plain is not None and depth > 3 else options[0], depth + 1)
        if isinstance(schema.get("allOf"), list):
            merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
            for part in schema["allOf"]:
                if isinstance(part, dict):
                    for key, value in self._resolve(part).items():
                        known = merged.get(key)
                        if isinstance(known, dict) and isinstance(value, dict):
                            merged[key] = {**known, **value}
                        elif isinstance(known, list) and isinstance(value, list) and key == "required":
                            merged[key] = [*known, *value]
                        else:
                            merged[key] = value
            return self.make(merged, depth + 1)
        return self._typed(schema, depth)

    def _typed(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[0] if kind else None
        match kind:
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return self._number(schema, kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
            case "array":
                least = schema.get("minItems", 0)
                count = least if isinstance(least, int) else 0
                return [self.make(schema.get("items", {}), depth + 1) for _ in range(min(max(count, 0), 64))]
        properties = schema.get("properties")
        if isinstance(properties, dict):
            required = schema.get("required")
            names = required if isinstance(required, list) else list(properties)
            return {name: self.make(properties.get(name, {}), depth + 1) for name in names if isinstance(name, str)}
        return {} if kind == "object" and depth else {"answer": self._text}

    def _string(self, schema: dict[str, Any]) -> str:
        text = _FORMATS.get(str(schema.get("format")), self._text)
        least, most = schema.get("minLength"), schema.get("maxLength")
        if isinstance(least, int) and len(text) < least:
            text = text.ljust(min(least, 1 << 20), ".")
        return text[:most] if isinstance(most, int) else text

    @staticmethod
    def _number(schema: dict[str, Any], whole: bool) -> float:
        step = schema.get("multipleOf")
        step = step if isinstance(step, (int, float)) and step > 0 else 1
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        value: float = 0
        if isinstance(low, (int, float)) and value < low:
            value = math.ceil(low / step) * step
        if isinstance(above, (int, float)) and value <= above:
            value = (math.floor(above / step) + 1) * step
        if isinstance(high, (int, float)) and value > high:
            value = math.floor(high / step) * step
        if isinstance(below, (int, float)) and value >= below:
            value = (math.ceil(below / step) - 1) * step
        return int(value) if whole else value

    def _resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        for _ in range(_DEPTH):
            reference = schema.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#"):
                break
            target: Any = self._root
            for part in filter(None, reference[1:].split("/")):
                target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
            schema = target if isinstance(target, dict) else {}
        return schema

    def _is_null(self, schema: object) -> bool:
        return isinstance(schema, dict) and self._resolve(schema).get("type") == "null"
