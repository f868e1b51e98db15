"""The bounds of a JSON schema: what is sensible passes, what would cost the others does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.core.grammar import (
    MAX_DEPTH,
    MAX_LITERAL_CHARS,
    MAX_PROPERTIES,
    MAX_VALUES,
    GrammarError,
    GrammarKind,
    json_schema_grammar,
    packed,
    unpacked,
)


def nested(levels: int) -> dict[str, Any]:
    """A schema of `levels` JSON values in each other below the top."""
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


def named(count: int) -> dict[str, Any]:
    return {"properties": {f"p{i}": {} for i in range(count)}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        nested(MAX_DEPTH),
        named(MAX_PROPERTIES),
        {"enum": list(range(MAX_VALUES - 2))},
        {"const": "x" * MAX_LITERAL_CHARS},
        {"description": "x" * 9000},
        {"multipleOf": 0.01},
        {"multipleOf": 25_000.0 / 100},
        {"prefixItems": [{"multipleOf": 997}, {"multipleOf": 991}]},
        {"allOf": [{"multipleOf": 6}, {"multipleOf": 0.5}]},
    ],
)
def test_a_schema_within_the_bounds_is_kept_as_it_is(schema: dict[str, Any]) -> None:
    """Kind and text come back, in order, nothing lost."""
    kind, text = unpacked(json_schema_grammar(schema))
    assert kind is GrammarKind.JSON_SCHEMA
    assert json.loads(text) == schema
    assert list(json.loads(text)) == list(schema)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (nested(MAX_DEPTH + 1), "deeper"),
        (nested(100_000), "deeper"),
        (named(MAX_PROPERTIES + 1), "properties"),
        ({"enum": list(range(MAX_VALUES))}, "values"),
        ({"const": "x" * (MAX_LITERAL_CHARS + 1)}, "text of more"),
        ({"properties": {"x" * (MAX_LITERAL_CHARS + 1): {}}}, "key of more"),
        ({"enum": ["x" * MAX_LITERAL_CHARS] * 200}, "longer"),
        ({"description": "x" * 70_000}, "longer"),
        ({"multipleOf": 7919}, "multipleOf"),
        ({"multipleOf": 1e-12}, "multipleOf"),
        ({"multipleOf": 1e300}, "multipleOf"),
        ({"multipleOf": 10**400}, "multipleOf"),
        ({"multipleOf": 0}, "multipleOf"),
        ({"multipleOf": "7"}, "multipleOf"),
        ({"allOf": [{"multipleOf": n} for n in (101, 103, 107)]}, "common multiple"),
        ({"anyOf": [{"multipleOf": 997}, {"multipleOf": 0.997}]}, "common multiple"),
        ({"items": [{"multipleOf": n} for n in range(1, 30)]}, "8 times"),
    ],
)
def test_a_schema_beyond_the_bounds_is_refused(schema: dict[str, Any], words: str) -> None:
    """Whatever the depth, with one sentence that repeats nothing of it."""
    with pytest.raises(GrammarError, match=words) as caught:
        json_schema_grammar(schema)
    assert "xxx" not in str(caught.value)


def test_instructions_to_the_library_are_left_out() -> None:
    """A client must not switch off what makes the answer JSON, nor unknown keywords' refusal."""
    sent = {"x-guidance": {"lenient": True, "item_separator": "evil"}, "type": "object"}
    assert json_schema_grammar(sent) == packed(GrammarKind.JSON_SCHEMA, '{"type":"object"}')


def test_an_unknown_kind_is_no_grammar() -> None:
    """Only the closed list is read."""
    with pytest.raises(GrammarError, match="kind"):
        unpacked("poetry:roses are red")
