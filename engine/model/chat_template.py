"""Turns messages into the prompt text a model was trained on; it knows no tokens and no clock.

The template is the model's own Jinja source, rendered in a sandbox in the way transformers renders
it (https://huggingface.co/docs/transformers/main/en/chat_templating), so that models need no code
here. Messages arrive in the OpenAI API's shape and are brought into the one templates expect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Never

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ToolForm(StrEnum):
    """How a model writes the calls of tools; closed list.

    HERMES: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number, text before them
    (Hermes, Qwen 2.5 and 3). LLAMA: the whole answer is `{"name": ..., "parameters": {...}}`, or
    several with `;` between (Llama 3.1 and later). OTHER: in a way that is not known here.
    """

    HERMES = "hermes"
    LLAMA = "llama"
    OTHER = "other"


# Forms of other families that have a word in common with those that are known.
_FOREIGN = ("<function=", "<arg_key>", "[TOOL_CALLS]", "<|channel|>")
_LLAMA = re.compile(r'\{\\?"name\\?":.*\\?"parameters\\?":')


class ChatTemplateError(ValueError):
    """The messages cannot become a prompt: there is no template, or it refused or failed."""


class ChatTemplate:
    """One compiled template. `tool_form` is None where it takes no tools."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """`special_tokens` maps names such as `bos_token` to texts, as the template uses them.

        Raises `ChatTemplateError` where the source is not a valid template.
        """
        self._special_tokens = dict(special_tokens or {})
        # A template that never names the role would drop such a message, or refuse it.
        self._knows_developer = "'developer'" in source or '"developer"' in source
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            names = environment.parse(source).find_all(nodes.Name)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the chat template is not valid: {error}") from error
        # Some give the variable another value first: that it is read at all is what counts.
        takes_tools = any(name.name == "tools" and name.ctx == "load" for name in names)
        self.tool_form = _tool_form(source) if takes_tools else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        now: datetime,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the prompt's text.

        `now` is the time the template may print (`strftime_now`); `variables` reach the template
        as they are (for example `enable_thinking`). Raises `ChatTemplateError`.
        """
        if not messages:
            raise ChatTemplateError("there are no messages")
        context = {
            **self._special_tokens,
            "documents": None,
            **_plain(variables),
            "messages": [self._message(message) for message in messages],
            "tools": None if tools is None else _plain(tools),
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": now.strftime,
        }
        try:
            return self._template.render(context)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the chat template refused: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError) as error:
            raise ChatTemplateError(_failure(error)) from error
        except (TypeError, ValueError) as error:
            raise ChatTemplateError(_failure(error)) from error

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return one message as templates expect it; keys without a value are dropped."""
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError("every message is an object with a role")
        plain = {key: _plain(value) for key, value in message.items() if value is not None}
        if plain["role"] == "developer" and not self._knows_developer:
            plain["role"] = "system"
        if isinstance(plain.get("content"), list):
            plain["content"] = joined_text(plain["content"])
        for call in plain.get("tool_calls", ()):
            _open_arguments(call)
        return plain


def _tool_form(source: str) -> ToolForm:
    """Return how a template that takes tools tells its model to call them."""
    if not any(word in source for word in _FOREIGN):
        if "<tool_call>" in source:
            return ToolForm.HERMES
        if "<|python_tag|>" in source or _LLAMA.search(source):
            return ToolForm.LLAMA
    return ToolForm.OTHER


def joined_text(parts: Sequence[Any]) -> str:
    """Return the text of content parts, one per line; parts of other kinds are refused."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type", "text") in ("text", "refusal"):
            text = part.get(part.get("type", "text"))
            if not isinstance(text, str):
                raise ChatTemplateError("a text part of a message has no text")
            texts.append(text)
        else:
            raise ChatTemplateError("this model takes text only: a content part is not text")
    return "\n".join(texts)


def _open_arguments(call: Any) -> None:
    """Replace a tool call's JSON text by the object in it: templates write it out themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return  # a model may have written broken JSON: shown to it as it was
    if isinstance(arguments, dict):
        function["arguments"] = arguments


def _plain(value: Any) -> Any:
    """Return a deep copy made of JSON's types only: a template must get no object with methods."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enum's member, for example
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    raise ChatTemplateError(f"a value of type {type(value).__name__} cannot go to a chat template")


def _failure(error: Exception) -> str:
    return f"the chat template failed on these messages: {type(error).__name__}: {error}"


class _Namespace(jinja2.utils.Namespace):
    """A template's own variables; names with an underscore could pass for an object's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a template's name
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for training: here just its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja reads this very attribute

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body as a scope of its own: what is set inside stays inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own would escape for HTML
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["namespace"] = _Namespace
    del environment.globals["lipsum"]  # random text
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> Never:
    raise jinja2.TemplateError(message)
