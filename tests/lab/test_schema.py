"""Values made for a schema."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field

from deepseek_resilient.lab.schema import example


class Node(BaseModel):
    name: str = Field(min_length=3, max_length=5)
    weight: float = Field(gt=1, le=2)
    children: list[Node]
    parent: Node | None


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, {"answer": "simulated"}),
        ({"type": "object"}, {"answer": "simulated"}),
        ({"const": 3}, 3),
        ({"enum": ["b", "a"]}, "b"),
        ({"type": ["string", "null"]}, "simulated"),
        ({"type": "string", "format": "date"}, "2026-11-23"),
        ({"type": "string", "minLength": 12}, "simulated..."),
        ({"type": "integer", "minimum": 2.5}, 3),
        ({"type": "integer", "exclusiveMaximum": 0}, -1),
        ({"type": "number", "exclusiveMinimum": 1, "multipleOf": 0.5}, 1.5),
        ({"type": "number", "maximum": -4}, -4),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
        ({"properties": {"a": {"type": "null"}, "b": {}}, "required": ["a"]}, {"a": None}),
        ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, 0),
        (
            {
                "allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"$ref": "#/$defs/b"}],
                "$defs": {"b": {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}},
            },
            {"a": 0, "b": True},
        ),
    ],
)
def test_a_value_fits_its_schema(schema: dict[str, Any], value: Any) -> None:
    """Each keyword that is known is honoured."""
    assert value == example(schema)


def test_a_recursive_model_can_be_read_back() -> None:
    """What is made for a pydantic model with references to itself is valid for it."""
    node = Node.model_validate(example(Node.model_json_schema()))
    assert "simul" == node.name


def test_a_schema_that_explodes_ends() -> None:
    """Nested arrays of many items stop at a bound of values."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(20):
        schema = {"type": "array", "items": schema, "minItems": 60}
    example(schema)
    example({"$ref": "#"})
