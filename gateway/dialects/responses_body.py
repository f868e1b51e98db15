"""What a client may send to the OpenAI Responses API, and the same as the body of a chat.

This server keeps no response: what refers to a stored one (`previous_response_id`, `conversation`,
items by reference, stored prompts) or needs one (`background`) is refused; `store` is taken, and
the answer says that nothing was stored. The conversation comes whole with every request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from gateway.errors import ApiError, Problem, bad_value
from gateway.schemas import (
    MAX_MESSAGES,
    MAX_TOKENS_FIELD,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    AllowedTools,
    CalledFunction,
    CallMade,
    ChatBody,
    ContentPart,
    FunctionTool,
    InputModel,
    JsonSchemaFormat,
    Message,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolChoice,
    ToolName,
    field_names,
)
from gateway.tools import is_deep

MAX_PARTS = 4096  # in one item
MAX_METADATA = 16
LOGPROBS = "message.output_text.logprobs"
STORED = ("previous_response_id", "conversation", "prompt")
Word = Annotated[str, StringConstraints(max_length=64)]
ItemId = Annotated[str, StringConstraints(max_length=256)]
TEXTS = ("input_text", "output_text", "text")


class Part(InputModel):
    """A part of a message."""

    type: Word
    text: str | None = None
    refusal: str | None = None


Parts = Annotated[list[Part], Field(max_length=MAX_PARTS)]


class Item(InputModel):
    """A message, a call that the model made, or what such a call came to."""

    type: Word | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Parts | None = None
    call_id: ItemId | None = None
    name: ToolName | None = None
    arguments: str | None = None
    output: str | Parts | None = None


class OfferedTool(InputModel):
    """A tool that the client runs."""

    type: Word
    name: ToolName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolByName(InputModel):
    """A tool by its name."""

    type: Literal["function"]
    name: ToolName


class Choice(InputModel):
    """The one tool that must be called, or the ones that may be."""

    type: Literal["function", "allowed_tools"]
    name: ToolName | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ToolByName] | None = Field(None, max_length=MAX_TOOLS)


class TextFormat(InputModel):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    description: str | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(InputModel):
    """How the text must be."""

    format: TextFormat | None = None


class ResponsesBody(InputModel):
    """`POST /v1/responses`."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    input: str | Annotated[list[Item], Field(max_length=MAX_MESSAGES)] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS_FIELD)
    temperature: float | None = Field(None, ge=0.0, le=2.0)
    top_p: float | None = Field(None, ge=0.0, le=1.0)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    include: list[Word] | None = Field(None, max_length=MAX_METADATA)
    stream: bool | None = None
    text: TextConfig | None = None
    tools: list[OfferedTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    metadata: dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ] | None = Field(None, max_length=MAX_METADATA)  # fmt: skip
    store: bool | None = None
    background: bool | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None

    def check(self) -> None:
        """Refuse what no single field can show."""
        for name in STORED:
            if getattr(self, name) is not None:
                raise ApiError(
                    Problem.UNSUPPORTED,
                    f"Nothing is stored here, so '{name}' leads nowhere: send the whole "
                    "conversation as 'input'.",
                    param=name,
                )
        if self.background:
            raise ApiError(
                Problem.UNSUPPORTED,
                "Nothing is stored here: a response cannot be fetched later.",
                param="background",
            )
        for number, tool in enumerate(self.tools or ()):
            if is_deep(tool.parameters):
                param = f"tools.{number}.parameters"
                raise bad_value(param, f"'{param}' is nested too deep.")
        self._check_format()

    def _check_format(self) -> None:
        wanted = None if self.text is None else self.text.format
        if wanted is None:
            return
        if wanted.type == "json_schema":
            if wanted.definition is None:
                raise _missing("text.format.schema")
            if wanted.name is None:
                raise _missing("text.format.name")
        if is_deep(wanted.definition):
            raise bad_value("text.format.schema", "'text.format.schema' is nested too deep.")

    def as_chat(self, default_model: str) -> ChatBody:
        """Return the same as the body of a chat completion; raises ApiError."""
        return ChatBody.model_construct(
            model=self.model or default_model,
            messages=self._messages(),
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=self._wants_logprobs,
            top_logprobs=self.top_logprobs,
            stream=self.stream,
            service_tier=self.service_tier,
            response_format=self._format(),
            tools=None if self.tools is None else list(_tools(self.tools)),
            tool_choice=_chosen(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls,
        )

    def echo(self) -> dict[str, Any]:
        """Return the fields that the response repeats, with the defaults that held."""
        held = None if self.text is None else self.text.format
        shown = {"type": "text"} if held is None else held.model_dump(by_alias=True)
        if shown["type"] != "json_schema":
            shown = {"type": shown["type"]}
        choice = self.tool_choice
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": shown},
            "tool_choice": choice.model_dump(exclude_none=True)
            if isinstance(choice, Choice)
            else choice or "auto",
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
        }

    @property
    def _wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def _format(self) -> ResponseFormat | None:
        wanted = None if self.text is None else self.text.format
        if wanted is None:
            return None
        schema = None
        if wanted.type == "json_schema":
            schema = JsonSchemaFormat.model_construct(
                name=wanted.name, definition=wanted.definition
            )
        return ResponseFormat.model_construct(type=wanted.type, json_schema=schema)

    def _messages(self) -> list[Message]:
        """Return the conversation; one without any input is an empty turn of the user's."""
        messages = []
        if self.instructions is not None:
            messages.append(_message("system", self.instructions))
        if self.input is None or isinstance(self.input, str):
            return [*messages, _message("user", self.input or "")]
        for number, item in enumerate(self.input):
            _add(messages, f"input.{number}", item)
        return messages or [_message("user", "")]


KNOWN = field_names(
    ResponsesBody, Item, Part, OfferedTool, Choice, ToolByName, TextConfig, TextFormat
)


def _add(messages: list[Message], place: str, item: Item) -> None:
    """Add one item to the conversation; calls in a row are of one turn."""
    kind = item.type or "message"
    if kind == "reasoning":
        return  # another model's; this one's template has no place for it
    if kind == "message":
        messages.append(_said(place, item))
    elif kind == "function_call":
        last = messages[-1] if messages else None
        earlier: list[CallMade] = []
        content: Any = ""
        if last is not None and last.role == "assistant":
            messages.pop()
            earlier, content = list(last.tool_calls or ()), last.content
        calls = [*earlier, _call(place, item)]
        messages.append(_message("assistant", content, tool_calls=calls))
    elif kind == "function_call_output":
        if item.call_id is None:
            raise _missing(f"{place}.call_id")
        content = _content(f"{place}.output", item.output)
        messages.append(_message("tool", content, tool_call_id=item.call_id))
    else:
        raise ApiError(
            Problem.UNSUPPORTED,
            "Items of this type cannot be read here.",
            param=f"{place}.type",
        )


def _said(place: str, item: Item) -> Message:
    if item.role is None:
        raise _missing(f"{place}.role")
    if item.content is None:
        raise _missing(f"{place}.content")
    return _message(item.role, _content(f"{place}.content", item.content))


def _content(place: str, content: str | list[Part] | None) -> str | list[ContentPart]:
    if content is None or isinstance(content, str):
        return content or ""
    return [_text(f"{place}.{number}", part) for number, part in enumerate(content)]


def _text(place: str, part: Part) -> ContentPart:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in TEXTS and part.type != "refusal":
        raise ApiError(
            Problem.UNSUPPORTED, "This kind of content cannot be read here.", param=f"{place}.type"
        )
    if text is None:
        raise _missing(f"{place}.text")
    return ContentPart.model_construct(type="text", text=text)


def _call(place: str, item: Item) -> CallMade:
    for field in ("call_id", "name", "arguments"):
        if getattr(item, field) is None:
            raise _missing(f"{place}.{field}")
    function = CalledFunction.model_construct(name=item.name, arguments=item.arguments)
    return CallMade.model_construct(id=item.call_id, function=function)


def _message(role: str, content: str | list[ContentPart] | None, **more: Any) -> Message:
    return Message.model_construct(role=role, content=content, **more)


def _tools(offered: Iterable[OfferedTool]) -> Iterable[Tool]:
    for number, tool in enumerate(offered):
        if tool.type == "function" and tool.name is None:
            raise _missing(f"tools.{number}.name")
        function = FunctionTool.model_construct(
            name=tool.name, description=tool.description, parameters=tool.parameters
        )
        yield Tool.model_construct(type=tool.type, function=function)


def _chosen(choice: str | Choice | None) -> str | ToolChoice | None:
    if choice is None or isinstance(choice, str):
        return choice
    if choice.type == "function":
        if choice.name is None:
            raise _missing("tool_choice.name")
        function = NamedFunction.model_construct(name=choice.name)
        return ToolChoice.model_construct(type="function", function=function)
    if choice.tools is None or choice.mode is None:
        raise bad_value("tool_choice", "'allowed_tools' needs 'mode' and 'tools'.")
    tools = [
        NamedTool.model_construct(
            type="function", function=NamedFunction.model_construct(name=tool.name)
        )
        for tool in choice.tools
    ]
    allowed = AllowedTools.model_construct(mode=choice.mode, tools=tools)
    return ToolChoice.model_construct(type="allowed_tools", allowed_tools=allowed)


def _missing(param: str) -> ApiError:
    return ApiError(Problem.MISSING, f"'{param}' is required.", param=param)
