"""What tools a request may call, and how an answer is held to calling them; it reads no answer.

`tool_choice` as in the OpenAI API: `none` keeps the tools from the model, `auto` leaves it to the
model, `required` and a name are enforced with a grammar: the answer is calls, and each call's
arguments satisfy its tool's schema. How calls are written is the model's own way
(engine/model/chat_template.py).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.grammar import MAX_DEPTH, GrammarKind, packed, schema_in_lark
from engine.model.chat_template import ToolForm
from gateway.errors import ApiError, Problem, bad_value
from gateway.schemas import ChatBody, FunctionTool
from gateway.tool_reader import CLOSE, OPEN, ToolReader

NEXT = "\n"  # between two calls
MOST_CALLS = 16  # that an answer may be made to have, should it not want to end
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How one answer's calls are read. `id_prefix` begins each call's id."""

    form: ToolForm
    names: frozenset[str]
    id_prefix: str

    def reader(self) -> ToolReader:
        """Return the reader of one choice."""
        return ToolReader(self.form, self.names, self._new_id)

    def _new_id(self) -> str:
        return self.id_prefix + secrets.token_hex(12)


@dataclass(frozen=True, slots=True)
class WantedTools:
    """The tools of one request: those that may be called, and whether one must be, once or more."""

    functions: tuple[FunctionTool, ...] = ()
    must_call: bool = False
    only_one: bool = False

    @classmethod
    def of(cls, body: ChatBody) -> WantedTools:
        """Return the tools of a body, none where none may be called; raises ApiError."""
        choice = body.tool_choice or "auto"
        if choice == "none":
            return cls()
        functions = _functions(body)
        if not functions:
            if choice != "auto":
                raise bad_value("tool_choice", "'tool_choice' needs 'tools'.")
            return cls()
        if body.ignore_eos and choice != "auto":
            raise bad_value("ignore_eos", "'ignore_eos' cannot be used with such a 'tool_choice'.")
        one = body.parallel_tool_calls is False
        if isinstance(choice, str):
            return cls(functions, choice == "required", one)
        if choice.type == "function":
            if choice.function is None:
                raise _missing("tool_choice.function")
            return cls(_named(functions, [choice.function.name]), True, True)
        allowed = choice.allowed_tools
        if allowed is None:
            raise _missing("tool_choice.allowed_tools")
        names = [tool.function.name for tool in allowed.tools]
        return cls(_named(functions, names), allowed.mode == "required", one)

    @property
    def definitions(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates take them, None where there are none."""
        if not self.functions:
            return None
        return [
            {"type": "function", "function": function.model_dump(exclude={"strict"})}
            for function in map(_with_parameters, self.functions)
        ]

    def use(self, form: ToolForm | None, id_prefix: str) -> ToolUse | None:
        """Return how the calls are read; raises ApiError where the model takes no tools."""
        if not self.functions:
            return None
        if form is None:
            raise _unsupported("This model's chat template takes no tools.")
        if form is ToolForm.OTHER:
            raise _unsupported("This model calls tools in a way that this server cannot read.")
        return ToolUse(form, frozenset(f.name for f in self.functions), id_prefix)

    def grammar(self, form: ToolForm, answer: dict[str, Any] | None) -> str:
        """Return what holds the answer to calls, where it must call, else to `answer` or calls.

        Raises GrammarError for a schema that cannot be followed.
        """
        assert self.must_call or answer is not None
        lines = [f"start: {'calls' if self.must_call else 'answer | calls'}"]
        if form is ToolForm.HERMES:
            before, after = OPEN + "\n", "\n" + CLOSE
            more = 0 if self.only_one else MOST_CALLS - 1
            again = f" ({_quoted(after + NEXT + before)} call){{0,{more}}}" if more else ""
            lines.append(f"calls: {_quoted(before)} call{again} {_quoted(after)}")
        else:
            # Templates of this family refuse a conversation with several calls in one answer.
            lines.append("calls: call")
        lines.append(f"call: {schema_in_lark(self._call_schema(form))}")
        if not self.must_call and answer is not None:
            lines.append(f"answer: {schema_in_lark(answer)}")
        return packed(GrammarKind.LARK, "\n".join(lines))

    def _call_schema(self, form: ToolForm) -> dict[str, Any]:
        """Return the schema of one call: of which tool it is says its name, a constant."""
        key = "arguments" if form is ToolForm.HERMES else "parameters"
        definitions: dict[str, Any] = {}
        calls = []
        for number, function in enumerate(self.functions):
            place = f"t{number}"
            schema = _NO_ARGUMENTS if function.parameters is None else function.parameters
            plain = {name: value for name, value in schema.items() if name != "x-guidance"}
            definitions[place] = {"type": "object", **_moved(plain, f"#/$defs/{place}")}
            calls.append(
                {
                    "type": "object",
                    "properties": {
                        "name": {"const": function.name},
                        key: {"$ref": f"#/$defs/{place}"},
                    },
                    "required": ["name", key],
                    "additionalProperties": False,
                }
            )
        return {"anyOf": calls, "$defs": definitions}


def _functions(body: ChatBody) -> tuple[FunctionTool, ...]:
    found: list[FunctionTool] = []
    for number, tool in enumerate(body.tools or ()):
        if tool.type != "function":
            raise ApiError(
                Problem.UNSUPPORTED,
                "Only tools of type 'function' can be called.",
                param=f"tools.{number}.type",
            )
        if tool.function is None:
            raise _missing(f"tools.{number}.function")
        if is_deep(tool.function.parameters):
            param = f"tools.{number}.function.parameters"
            raise bad_value(param, f"'{param}' is nested deeper than {MAX_DEPTH} levels.")
        found.append(tool.function)
    if len({function.name for function in found}) < len(found):
        raise bad_value("tools", "Two tools have the same name.")
    return tuple(found)


def is_deep(value: Any) -> bool:
    """True for JSON nested deeper than templates and grammars are given; no recursion here."""
    rest: list[tuple[int, Any]] = [(0, value)]
    while rest:
        depth, value = rest.pop()
        if depth > MAX_DEPTH:
            return True
        if isinstance(value, dict):
            rest += [(depth + 1, child) for child in value.values()]
        elif isinstance(value, list):
            rest += [(depth + 1, child) for child in value]
    return False


def _named(functions: Sequence[FunctionTool], names: Sequence[str]) -> tuple[FunctionTool, ...]:
    """Return the functions of these names; raises ApiError where one is missing."""
    if not names or not {function.name for function in functions}.issuperset(names):
        raise bad_value("tool_choice", "'tool_choice' names a tool that is not among 'tools'.")
    return tuple(function for function in functions if function.name in names)


def _with_parameters(function: FunctionTool) -> FunctionTool:
    """Return the function as templates expect it: many read its parameters without asking."""
    changed = {
        "description": function.description or "",
        "parameters": _NO_ARGUMENTS if function.parameters is None else function.parameters,
    }
    return function.model_copy(update=changed)


def _moved(schema: Any, place: str) -> Any:
    """Return a schema that stands at `place` of another: references within it lead there."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }


def _quoted(text: str) -> str:
    """Return a text as a string of the LARK grammar."""
    return json.dumps(text)


def _missing(param: str) -> ApiError:
    return ApiError(Problem.MISSING, f"'{param}' is required.", param=param)


def _unsupported(message: str) -> ApiError:
    return ApiError(Problem.UNSUPPORTED, message, param="tools")
