"""Tells text from calls of tools in an answer while it arrives; it knows no token and no API.

A call shows as soon as its name is certain, and its arguments as they come, character by character:
whoever reads a stream sees them grow. What looked like a call and is none is given out as the text
it is. Of a call that was cut off what came is kept: the finish reason says that it was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import Any, TypeAlias

from engine.model.chat_template import ToolForm
from gateway.completion import CallDelta

OPEN, CLOSE, PYTHON_TAG = "<tool_call>", "</tool_call>", "<|python_tag|>"
# Bounds on what is looked at again with every piece, so that none costs more than another.
MOST_HEAD = 512  # characters in front of a call's arguments
MOST_HELD = 256  # spaces that may be those in front of a call
Part: TypeAlias = "str | CallDelta"

# The keys in front of the arguments, in the order in which models write them.
_HEAD = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"(?:name|function)"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:'
)
_FIRST_KEY = re.compile(r'\s*\{\s*"(?:name|type|function|arguments|parameters|id)"\s*:')


class _Stage(Enum):
    HEAD = auto()  # up to the colon behind "arguments"
    VALUE = auto()  # behind it, nothing of the value yet
    ARGUMENTS = auto()  # within the object that they are
    REST = auto()  # behind them, up to the call's own end
    DONE = auto()
    BROKEN = auto()  # no call


class CallText:
    """One JSON object that should be a call. `names` None takes a call of any name."""

    def __init__(self, index: int, call_id: str, names: Collection[str] | None) -> None:
        self._index = index
        self._id = call_id
        self._names = names
        self._raw: list[str] = []
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._name = ""
        self._said = False
        self.stage = _Stage.HEAD

    @property
    def raw(self) -> str:
        """All that was taken."""
        return "".join(self._raw)

    @property
    def was_said(self) -> bool:
        """True once a part of it was given out: it can no longer turn out to be text."""
        return self._said

    def push(self, text: str) -> tuple[list[Part], str]:
        """Return the new parts of the call, and what is behind its end, or its being no call."""
        parts: list[Part] = []
        shown: list[str] = []
        for position, character in enumerate(text):
            self._raw.append(character)
            self._scan(character)
            self._step(character, parts, shown)
            if self.stage in (_Stage.DONE, _Stage.BROKEN):
                return self._with(parts, shown), text[position + 1 :]
        return self._with(parts, shown), ""

    def end(self) -> list[Part]:
        """The answer is over: return the call if it is whole in another order of keys."""
        return [] if self._said else self._whole()

    def _with(self, parts: list[Part], shown: list[str]) -> list[Part]:
        if shown:
            parts.append(CallDelta(self._index, self._id, "", "".join(shown)))
        return parts

    def _scan(self, character: str) -> None:
        """Follow strings and braces."""
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1

    def _step(self, character: str, parts: list[Part], shown: list[str]) -> None:
        if self.stage is _Stage.HEAD:
            self._head(character, parts)
        elif self.stage is _Stage.VALUE and not character.isspace():
            if character == "{":
                self.stage = _Stage.ARGUMENTS
                self._said = True
                parts.append(CallDelta(self._index, self._id, self._name, ""))
                shown.append(character)
            else:
                self.stage = _Stage.HEAD  # arguments as a string: told when they are whole
                self._name = ""
        elif self.stage is _Stage.ARGUMENTS:
            shown.append(character)
            if self._depth == 1 and character == "}" and not self._in_string:
                self.stage = _Stage.REST
        elif self.stage is _Stage.REST and self._depth == 0:
            self.stage = _Stage.DONE

    def _head(self, character: str, parts: list[Part]) -> None:
        if self._depth == 0:
            if character == "}" and not self._in_string:
                parts += self._whole()
                self.stage = _Stage.DONE if self._said else _Stage.BROKEN
            elif not character.isspace():
                self.stage = _Stage.BROKEN
        elif (
            character == ":"
            and self._depth == 1
            and not self._in_string
            and len(self._raw) <= MOST_HEAD  # what is longer is read when it is whole
        ):
            raw = self.raw
            match = _HEAD.fullmatch(raw)
            if match is not None:
                self._name = _unquoted(match[1])
                is_known = bool(self._name) and (self._names is None or self._name in self._names)
                self.stage = _Stage.VALUE if is_known else _Stage.BROKEN
            elif not _FIRST_KEY.match(raw):
                self.stage = _Stage.BROKEN

    def _whole(self) -> list[Part]:
        """Return the call of a whole object, nothing where it is none."""
        try:
            value: Any = json.loads(self.raw)
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        name = value.get("name", value.get("function"))
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if not isinstance(name, str) or not name or not isinstance(arguments, str):
            return []
        if self._names is not None and name not in self._names:
            return []
        self._said = True
        return [CallDelta(self._index, self._id, name, arguments)]


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return ""


class ToolReader:
    """One answer of a model that may call tools; `make_id` names each call."""

    def __init__(self, form: ToolForm, names: Collection[str], make_id: Callable[[], str]) -> None:
        self._form = form
        self._names = names if form is ToolForm.LLAMA else None
        self._make_id = make_id
        self._call: CallText | None = None
        self._held = ""  # text that may be the beginning of a call, or the space before one
        self._is_closing = False  # behind a call, before its closing mark
        self._skips_space = False  # behind a call, before any other text
        self._is_plain = False  # no call can come any more
        self.num_calls = 0

    def push(self, text: str) -> list[Part]:
        """Take the answer's next text; return what is certain with it."""
        parts: list[Part] = []
        rest = text
        while rest:
            if self._is_plain:
                parts.append(rest)
                break
            if self._call is not None:
                rest = self._in_call(self._call, rest, parts)
            elif self._form is ToolForm.LLAMA:
                rest = self._before_object(rest, parts)
            else:
                rest = self._in_text(rest, parts)
        return _joined(parts)

    def end(self) -> list[Part]:
        """The answer is over: return what was held back."""
        parts: list[Part] = []
        call, self._call = self._call, None
        if call is not None:
            self._is_plain = True
            found = call.end()
            parts += found
            self.num_calls += call.was_said and bool(found)
            if not call.was_said:
                parts.append(self._mark() + call.raw)
        elif not self._is_closing:
            parts.append(self._held.lstrip() if self._skips_space else self._held)
        self._held = ""
        return _joined(parts)

    def _mark(self) -> str:
        return OPEN if self._form is ToolForm.HERMES else ""

    def _begin(self) -> None:
        self._call = CallText(self.num_calls, self._make_id(), self._names)

    def _in_call(self, call: CallText, text: str, parts: list[Part]) -> str:
        was_said = call.was_said
        found, rest = call.push(text)
        parts += found
        self.num_calls += call.was_said and not was_said
        if call.stage is _Stage.DONE:
            self._call = None
            self._is_closing = self._skips_space = self._form is ToolForm.HERMES
        elif call.stage is _Stage.BROKEN:
            self._call = None
            self._is_plain = self._form is ToolForm.LLAMA
            parts.append(self._mark() + call.raw)
        return rest

    def _before_object(self, text: str, parts: list[Part]) -> str:
        """Llama: a call, if the first thing said, or said behind another call, is an object."""
        whole = self._held + text
        between = " \t\r\n;," if self.num_calls else " \t\r\n"
        said = whole.lstrip(between)
        if not self.num_calls and said.startswith(PYTHON_TAG):
            said = said[len(PYTHON_TAG) :].lstrip(between)
            whole = said or PYTHON_TAG
        self._held = ""
        if said.startswith("{"):
            self._begin()
            return said
        if not said or (not self.num_calls and PYTHON_TAG.startswith(said)):
            self._held = whole
            return ""
        self._is_plain = True
        return whole if not self.num_calls else said

    def _in_text(self, text: str, parts: list[Part]) -> str:
        """Hermes: text up to the mark that opens a call."""
        whole = self._held + text
        self._held = ""
        if self._is_closing:
            said = whole.lstrip()
            if said.startswith(CLOSE):
                self._is_closing = False
                return said[len(CLOSE) :]
            if CLOSE.startswith(said):
                self._held = whole
                return ""
            self._is_closing = False
            whole = said
        if self._skips_space:
            whole = whole.lstrip()
        before, mark, rest = whole.partition(OPEN)
        if mark:
            parts.append(before.rstrip())
            self._begin()
            return rest
        keep = min(_possible_start(whole), MOST_HELD)
        sure = whole[: len(whole) - keep]
        self._skips_space = self._skips_space and not sure
        parts.append(sure)
        self._held = whole[len(whole) - keep :]
        return ""


def _possible_start(text: str) -> int:
    """Return how many characters at the end may be spaces before a mark, or a part of it."""
    for length in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if OPEN.startswith(text[-length:]):
            break
    else:
        length = 0
    head = text[: len(text) - length]
    return length + len(head) - len(head.rstrip())


def _joined(parts: list[Part]) -> list[Part]:
    """Return the parts with neighbouring texts as one, and no empty ones."""
    joined: list[Part] = []
    for part in parts:
        if part == "":
            continue
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined
