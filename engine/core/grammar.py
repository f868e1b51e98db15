"""What an answer may be held to, as one string that travels, and how large a JSON schema may be.

It knows the words and the bounds, and no library that follows a grammar (engine/model/grammar.py
does). A grammar is its kind, a colon and its text, for instance `json_schema:{"type":"object"}`.

The bounds keep what one client sends from costing the others: with them a schema was compiled in at
most some tens of milliseconds (benchmarks/grammar.py), without them in up to 25 seconds (three
`multipleOf` in an `allOf`: an automaton with a state per remainder of the product).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any

MAX_GRAMMAR_CHARS = 64 * 1024
MAX_DEPTH = 64  # of JSON values in each other: some thirty objects in objects
MAX_VALUES = 4096  # JSON values in one schema
MAX_PROPERTIES = 256  # named in one schema, everywhere together
MAX_LITERAL_CHARS = 512  # of a key, a pattern, a value of enum or const
MAX_DIVISOR = 1000  # of multipleOf, decimal point aside
MAX_DIVISORS = 8
# Between two tokens of JSON: a space or a line and its indentation. Unbounded, a model that is not
# sure what to say can fill its whole answer with spaces.
WHITESPACE = r"[ ]|\n[ ]{0,32}"
_PROSE = frozenset({"title", "description", "$comment", "$schema", "$id"})
_COMBINING = frozenset({"allOf", "anyOf", "oneOf", "$ref"})
_PLACES = 9  # after the point of multipleOf
_MOST = 1e15  # of multipleOf, whatever its digits


class GrammarKind(StrEnum):
    """What the text of a grammar is; closed list."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"  # of the whole answer, in the syntax of Rust's regex crate
    LARK = "lark"  # llguidance's dialect


class GrammarError(ValueError):
    """The grammar cannot be followed; its message, in our words, repeats nothing of it."""


def packed(kind: GrammarKind, text: str) -> str:
    """Return the string that stands for a grammar in `SamplingParams.grammar`."""
    return f"{kind.value}:{text}"


def unpacked(grammar: str) -> tuple[GrammarKind, str]:
    """Return kind and text; raises GrammarError where there is no such kind."""
    kind, _, text = grammar.partition(":")
    try:
        return GrammarKind(kind), text
    except ValueError:
        raise GrammarError("there is no such kind of grammar") from None


def json_schema_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of a JSON schema; raises GrammarError for one beyond the bounds.

    The order of properties is kept: answers have them in that order. The library's own instructions
    (`x-guidance`) are left out: with them a client could ask for text that is not JSON.
    """
    _check(schema)
    plain = {key: value for key, value in schema.items() if key != "x-guidance"}
    try:
        text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise GrammarError("it is not JSON") from error
    if len(text) > MAX_GRAMMAR_CHARS:
        raise GrammarError(f"it is longer than {MAX_GRAMMAR_CHARS} characters")
    return packed(GrammarKind.JSON_SCHEMA, text)


def schema_in_lark(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema as a term of a LARK grammar; raises GrammarError as for a whole one.

    What may stand between two tokens of JSON is bounded as it is elsewhere.
    """
    _, text = unpacked(json_schema_grammar(schema))
    options = {"whitespace_pattern": WHITESPACE, "item_separator": ",", "key_separator": ":"}
    named = {"x-guidance": options, **json.loads(text)}
    return "%json " + json.dumps(named, separators=(",", ":"), ensure_ascii=False)


def _check(schema: Mapping[str, Any]) -> None:
    divisors: list[Decimal] = []
    num_properties = 0
    combines = False
    for num_values, (depth, key, value) in enumerate(_walk(schema), 1):
        if depth > MAX_DEPTH:
            raise GrammarError(f"it is nested deeper than {MAX_DEPTH} levels")
        if num_values > MAX_VALUES:
            raise GrammarError(f"it has more than {MAX_VALUES} values")
        if isinstance(value, str) and len(value) > MAX_LITERAL_CHARS and key not in _PROSE:
            raise GrammarError(f"it has a text of more than {MAX_LITERAL_CHARS} characters")
        combines = combines or key in _COMBINING
        if isinstance(value, Mapping):
            if any(len(name) > MAX_LITERAL_CHARS for name in value):
                raise GrammarError(f"it has a key of more than {MAX_LITERAL_CHARS} characters")
            num_properties += len(value) if key == "properties" else 0
            if num_properties > MAX_PROPERTIES:
                raise GrammarError(f"it names more than {MAX_PROPERTIES} properties")
        elif key == "multipleOf":
            divisors.append(_divisor(value))
    _check_divisors(divisors, combines)


def _walk(schema: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Yield every value with its depth and the nearest key; no recursion, whatever the depth."""
    rest: list[tuple[int, str, Any]] = [(0, "", schema)]
    while rest:
        depth, key, value = rest.pop()
        yield depth, key, value
        if isinstance(value, Mapping):
            rest += [(depth + 1, name, child) for name, child in value.items()]
        elif isinstance(value, list):
            rest += [(depth + 1, key, child) for child in value]


def _divisor(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MOST:
        raise GrammarError("'multipleOf' takes a number above 0, and no huge one")
    divisor = Decimal(repr(value)).normalize()
    exponent = divisor.as_tuple().exponent
    assert isinstance(exponent, int)
    significant = int(divisor.scaleb(-exponent)) if exponent < 0 else int(divisor)
    if significant > MAX_DIVISOR or exponent < -_PLACES:
        raise GrammarError(f"'multipleOf' takes up to {MAX_DIVISOR}, decimal point aside")
    return divisor


def _check_divisors(divisors: list[Decimal], combines: bool) -> None:
    """Refuse divisors that may meet in one number: the automaton has their common multiple."""
    if len(divisors) > MAX_DIVISORS:
        raise GrammarError(f"it has 'multipleOf' more than {MAX_DIVISORS} times")
    if combines and len(set(divisors)) > 1:
        places = max(0, *(-int(divisor.as_tuple().exponent) for divisor in divisors))
        whole = [int(divisor.scaleb(places)) for divisor in divisors]
        if math.lcm(*whole) > MAX_DIVISOR:
            raise GrammarError("its 'multipleOf' have too large a common multiple")
