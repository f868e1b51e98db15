"""What can be followed and what is refused, in our words; and what bombs cost."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.grammar import GrammarError, json_schema_grammar
from engine.model.grammar import GrammarCompiler


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler.for_bytes()


def follow(compiler: GrammarCompiler, schema: dict[str, Any], text: str) -> bool:
    """True where `text` is a whole answer to `schema`."""
    matcher = compiler.matcher(json_schema_grammar(schema))
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "secret-word"}, "not a schema"),
        ({"not": {"const": "secret-word"}}, "'not' cannot be followed"),
        ({"if": {}, "then": {}}, "'if', 'then' cannot be followed"),
        ({"type": "string", "pattern": "(secret-word"}, "pattern"),
        ({"type": "string", "pattern": "(?=secret-word)"}, "pattern"),
        ({"type": "string", "format": "secret-word"}, "format"),
        ({"$ref": "#/$defs/secret-word"}, "leads nowhere"),
        ({"$ref": "http://secret-word/"}, "leads nowhere"),
        ({"$ref": "#"}, "no value"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no value"),
        ({"enum": []}, "no value"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "anyOf"),
        ({"minItems": -1}, "not a schema"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(
    compiler: GrammarCompiler, schema: dict[str, Any], words: str
) -> None:
    """Never by ignoring a part of it, and never in words of the client's or the library's."""
    with pytest.raises(GrammarError, match=words) as caught:
        compiler.check(json_schema_grammar(schema))
    assert "secret-word" not in str(caught.value)


def test_whitespace_is_bounded(compiler: GrammarCompiler) -> None:
    """Between tokens: a space, or a line and its indentation, never more."""
    schema = {"type": "array", "items": {"type": "integer"}}
    assert follow(compiler, schema, "[1,2]")
    assert follow(compiler, schema, "[1, 2]")
    assert follow(compiler, schema, "[\n    1,\n    2\n]")
    assert not follow(compiler, schema, "[1,  2]")
    assert not follow(compiler, schema, " [1]")


def test_properties_come_in_the_order_of_the_schema(compiler: GrammarCompiler) -> None:
    """As told in the docs; further properties may follow where the schema allows them."""
    schema = {"properties": {"b": {}, "a": {}}, "required": ["b", "a"], "type": "object"}
    assert follow(compiler, schema, '{"b":1,"a":2,"c":3}')
    assert not follow(compiler, schema, '{"a":2,"b":1}')


def bomb(base: dict[str, Any], wrap: Any, levels: int) -> dict[str, Any]:
    """Definitions each of which names the one below it several times."""
    names = {"a0": base}
    for i in range(1, levels):
        names[f"a{i}"] = wrap({"$ref": f"#/$defs/a{i - 1}"})
    return {"$defs": names, "$ref": f"#/$defs/a{levels - 1}"}


BOMBS: dict[str, dict[str, Any]] = {
    "billion laughs": bomb({"type": "string"}, lambda r: {"prefixItems": [r] * 10}, 20),
    "all of all": bomb({"properties": {"x": {}}}, lambda r: {"allOf": [r] * 4}, 12),
    "any of any": bomb({"properties": {"x": {}}}, lambda r: {"anyOf": [r, r, r]}, 12),
    "repeats": {"type": "string", "pattern": "^(((.{1,99}){1,99}){1,99})$"},
    "long": {"type": "string", "minLength": 10**9},
    "items": {"type": "array", "minItems": 10**9, "items": {"minItems": 10**9, "type": "array"}},
    "divisors": {"prefixItems": [{"type": "integer", "multipleOf": 985 + i} for i in range(8)]},
    "states": {"type": "string", "pattern": "^.*a.{200}b.{200}$"},
    "names": {"properties": {f"p{i}": {"type": ["string", "null"]} for i in range(256)}},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_followed_within_the_librarys_bounds(
    compiler: GrammarCompiler, name: str
) -> None:
    """Masks come, or the matcher stops with an error; benchmarks/grammar.py has the times."""
    grammar = json_schema_grammar(BOMBS[name])
    matcher = compiler.matcher(grammar)
    for _ in range(300):
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(256) if mask[i // 8] >> i % 8 & 1]
        if matcher.is_error() or not allowed:
            break
        assert matcher.consume_token(allowed[len(allowed) // 2])


def test_a_product_of_choices_is_refused(compiler: GrammarCompiler) -> None:
    """What has to be multiplied out is given up early."""
    choices = [[{"properties": {f"p{i}{j}": {}}} for j in range(4)] for i in range(8)]
    schema = {"allOf": [{"anyOf": options} for options in choices]}
    with pytest.raises(GrammarError, match="too complex"):
        compiler.check(json_schema_grammar(schema))


def test_a_grammar_is_compiled_once(compiler: GrammarCompiler) -> None:
    """Matchers of one grammar start afresh and do not disturb each other."""
    grammar = json_schema_grammar({"const": "ab"})
    first, second = compiler.matcher(grammar), compiler.matcher(grammar)
    assert first.consume_tokens(list(b'"ab"'))
    assert second.consume_tokens(list(b'"a'))
    assert first.is_accepting()
    assert not second.is_accepting()
    assert compiler.matcher(grammar).consume_token(ord('"'))
