"""Calls of tools are told from text, wherever the text is cut; what is no call stays text."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.chat_template import ToolForm
from gateway.completion import CallDelta
from gateway.tool_reader import MOST_HELD, Part, ToolReader

HERMES, LLAMA = ToolForm.HERMES, ToolForm.LLAMA
NAMES = frozenset({"add", "look_up"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(sorted(NAMES)), st.dictionaries(st.text(max_size=4), JSON)),
    min_size=1,
    max_size=3,
)


def read(form: ToolForm, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Return the text and the calls of an answer in pieces; checks that deltas fit together."""
    numbers = itertools.count()
    reader = ToolReader(form, NAMES, lambda: f"call_{next(numbers)}")
    parts: list[Part] = []
    for piece in pieces:
        parts += reader.push(piece)
    parts += reader.end()
    text, calls, ids = "", [], []
    for part in parts:
        assert part != ""
        if isinstance(part, CallDelta):
            if part.name:
                assert part.number == len(calls)
                calls.append([part.name, ""])
                ids.append(part.id)
            assert (part.number, part.id) == (len(calls) - 1, ids[-1])
            calls[-1][1] += part.arguments
        else:
            text += part
    assert len(set(ids)) == len(ids)
    assert reader.num_calls == len(calls)
    return text, [(name, arguments) for name, arguments in calls]


def every_cut(form: ToolForm, answer: str) -> tuple[str, list[tuple[str, str]]]:
    """Read an answer whole, by characters, and cut in two anywhere: always the same."""
    whole = read(form, [answer])
    assert read(form, list(answer)) == whole
    for cut in range(1, len(answer)):
        assert read(form, [answer[:cut], answer[cut:]]) == whole, answer[:cut]
    return whole


def hermes(name: str, arguments: Any, **options: Any) -> str:
    call = json.dumps({"name": name, "arguments": arguments}, **options)
    return f"<tool_call>\n{call}\n</tool_call>"


def test_hermes_calls_behind_a_text() -> None:
    """Text comes first, without the space in front of the call; calls come in order."""
    first = hermes("add", {"a": 1, "s": "}</tool_call>{"})
    text, calls = every_cut(HERMES, f"Let me see.\n\n{first}\n{hermes('look_up', {})}\n")
    assert text == "Let me see."
    assert [(name, json.loads(a)) for name, a in calls] == [
        ("add", {"a": 1, "s": "}</tool_call>{"}),
        ("look_up", {}),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "Just text, a < b and <tool is none.",
        "  spaces \n stay  ",
        "<tool_call> nothing that is JSON </tool_call> and more",
        "<tool_call>",
        "say <tool_call>\n[1, 2]\n</tool_call>",
    ],
)
def test_what_is_no_call_stays_text(answer: str) -> None:
    """Nothing of it is lost, and nothing is held for good."""
    text, calls = every_cut(HERMES, answer)
    assert (text.replace(" ", "").replace("\n", ""), calls) == (
        answer.replace(" ", "").replace("\n", ""),
        [],
    )


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ('{"arguments": {"a": 1}, "name": "add"}', {"a": 1}),
        ('{"name": "add"}', {}),
        ('{"name": "add", "arguments": "{\\"a\\": 2}"}', {"a": 2}),
        ('{"name":"add","arguments":{"a":{"b":[{}]}},"id":"x"}', {"a": {"b": [{}]}}),
        ('{ "type" : "function", "name" : "add", "arguments" : {"a": 3} }', {"a": 3}),
    ],
)
def test_other_ways_to_write_a_call(call: str, arguments: Any) -> None:
    """Keys in another order, arguments as text, none at all, keys that say nothing."""
    text, calls = every_cut(HERMES, f"<tool_call>{call}</tool_call>")
    assert text == ""
    assert [(name, json.loads(a)) for name, a in calls] == [("add", arguments)]


def test_long_heads_and_spaces_are_bounded() -> None:
    """A call with a long head is told at its end; more spaces than any model writes are text."""
    name = {"id": "x" * 600, "name": "add", "arguments": {"a": 1}}
    answer = f"<tool_call>{json.dumps(name)}</tool_call>"
    assert read(HERMES, list(answer)) == ("", [("add", '{"a": 1}')])
    text, calls = read(HERMES, [" "] * 1000 + list(hermes("add", {})))
    assert len(calls) == 1
    assert 1000 - MOST_HELD <= len(text) < 1000


def test_a_call_shows_while_it_is_written() -> None:
    """The name is known before the arguments, and those grow with every piece."""
    reader = ToolReader(HERMES, NAMES, lambda: "id")
    assert reader.push('<tool_call>{"name": "add", "argum') == []
    assert reader.push('ents": {"a"') == [
        CallDelta(0, "id", "add", ""),
        CallDelta(0, "id", "", '{"a"'),
    ]
    assert reader.push(": 1") == [CallDelta(0, "id", "", ": 1")]
    assert reader.end() == []  # cut off: what came is all there is


def test_llama_writes_the_call_as_its_whole_answer() -> None:
    """With the tag or without, one or several; text behind a call stays."""
    one = '{"name": "add", "parameters": {"a": 1}}'
    assert every_cut(LLAMA, f" \n{one}") == ("", [("add", '{"a": 1}')])
    assert every_cut(LLAMA, f"<|python_tag|>{one}")[1] == [("add", '{"a": 1}')]
    text, calls = every_cut(LLAMA, f"{one}; {one}")
    assert (text, len(calls)) == ("", 2)


@pytest.mark.parametrize(
    "answer",
    [
        'Here: {"name": "add", "parameters": {}}',
        '{"answer": {"name": "add"}}',
        '{"name": "unknown", "parameters": {"a": 1}}',
        '{"name": "Ada", "age": 36}',
        "{",
        "{}",
        "\n plain",
    ],
)
def test_json_that_is_no_call_stays_text(answer: str) -> None:
    """An answer in JSON is one, whatever its keys are called."""
    assert every_cut(LLAMA, answer) == (answer, [])


@given(CALLS, st.booleans(), st.data())
def test_any_arguments_come_back_whole(
    calls: list[tuple[str, Any]], ascii_only: bool, data: st.DataObject
) -> None:
    """Whatever the arguments are, and wherever the stream is cut, they are what was written."""
    for form in (HERMES, LLAMA):
        if form is HERMES:
            answer = "\n".join(hermes(n, a, ensure_ascii=ascii_only) for n, a in calls)
        else:
            answer = "; ".join(json.dumps({"name": n, "parameters": a}) for n, a in calls)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=5)))
        bounds = [0, *cuts, len(answer)]
        pieces = [answer[a:b] for a, b in itertools.pairwise(bounds)]
        text, found = read(form, pieces)
        assert text == ""
        assert [(name, json.loads(a)) for name, a in found] == calls
