"""What a client may send to the Anthropic Messages routes, and the same as the body of a chat.

Every part that is read here has its equal in a chat completion: the conversation is translated, and
from then on it is one. What has no equal and changes the answer is refused (images, a server's own
tools, the beginning of an answer); what only describes the request (`metadata`, `cache_control`) is
taken and ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, StringConstraints

from gateway.errors import ApiError, Problem, bad_value
from gateway.schemas import (
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOKENS_FIELD,
    MAX_TOOLS,
    CalledFunction,
    CallMade,
    ChatBody,
    ContentPart,
    FunctionTool,
    InputModel,
    JsonSchemaFormat,
    Message,
    NamedFunction,
    ResponseFormat,
    StopText,
    Tool,
    ToolChoice,
    ToolName,
    field_names,
)
from gateway.tools import is_deep

MAX_BLOCKS = 4096  # in one message
Word = Annotated[str, StringConstraints(max_length=64)]
CallId = Annotated[str, StringConstraints(max_length=256)]


class TextBlock(InputModel):
    """A part of a text."""

    type: Word
    text: str | None = None


class Block(InputModel):
    """A part of a turn: a text, a call that the model made, or what such a call came to."""

    type: Word
    text: str | None = None
    id: CallId | None = None
    name: ToolName | None = None
    input: dict[str, Any] | None = None
    tool_use_id: CallId | None = None
    content: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS)] | None = None
    is_error: bool | None = None


class Turn(InputModel):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=MAX_BLOCKS)]


class OfferedTool(InputModel):
    """A tool that the client runs."""

    type: Word | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class Choice(InputModel):
    """Whether tools must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(InputModel):
    """The schema that the answer must satisfy."""

    type: Literal["json_schema"]
    definition: dict[str, Any] = Field(alias="schema")


class OutputConfig(InputModel):
    """How the answer must be."""

    format: OutputFormat | None = None


class Prompted(InputModel):
    """What an answer, and the counting of a prompt, are both asked with."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS)] | None = None
    tools: list[OfferedTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Choice | None = None

    def check(self) -> None:
        """Refuse what no single field can show."""
        if self.messages[-1].role == "assistant":
            raise bad_value(
                "messages", "The last message cannot be the assistant's: no answer can be begun."
            )
        choice = self.tool_choice
        if choice is not None and choice.type == "tool" and choice.name is None:
            raise _missing("tool_choice.name")

    def chat(self, **more: Any) -> ChatBody:
        """Return the same as the body of a chat completion; raises ApiError."""
        choice = self.tool_choice
        messages = [] if self.system is None else [_system(self.system)]
        for number, turn in enumerate(self.messages):
            messages += _turned(f"messages.{number}", turn)
        return ChatBody.model_construct(
            model=self.model,
            messages=_merged(messages),
            tools=None if self.tools is None else list(_tools(self.tools)),
            tool_choice=None if choice is None else _chosen(choice),
            parallel_tool_calls=not (choice is not None and choice.disable_parallel_tool_use),
            **more,
        )


class CountBody(Prompted):
    """`POST /v1/messages/count_tokens`."""


class MessagesBody(Prompted):
    """`POST /v1/messages`."""

    max_tokens: int = Field(ge=0, le=MAX_TOKENS_FIELD)
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    temperature: float | None = Field(None, ge=0.0, le=1.0)
    top_p: float | None = Field(None, ge=0.0, le=1.0)
    top_k: int | None = Field(None, ge=0, le=MAX_TOKENS_FIELD)
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    output_config: OutputConfig | None = None

    def as_chat(self) -> ChatBody:
        """Return the same as the body of a chat completion; raises ApiError."""
        wanted = None if self.output_config is None else self.output_config.format
        held_to = None
        if wanted is not None:
            schema = JsonSchemaFormat.model_construct(name="answer", definition=wanted.definition)
            held_to = ResponseFormat.model_construct(type="json_schema", json_schema=schema)
        return self.chat(
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stream=self.stream,
            service_tier="default" if self.service_tier == "standard_only" else "auto",
            response_format=held_to,
        )


KNOWN = field_names(MessagesBody, Turn, Block, OfferedTool, Choice, OutputConfig, OutputFormat)


def _system(system: str | list[TextBlock]) -> Message:
    if isinstance(system, str):
        return _message("system", system)
    parts = [_text(f"system.{number}", block) for number, block in enumerate(system)]
    return _message("system", parts)


def _turned(place: str, turn: Turn) -> list[Message]:
    """Return one turn as messages of a chat: results of calls come apart from what was said."""
    if isinstance(turn.content, str):
        return [_message(turn.role, turn.content)]
    results: list[Message] = []
    parts: list[ContentPart] = []
    calls: list[CallMade] = []
    for number, block in enumerate(turn.content):
        where = f"{place}.content.{number}"
        if block.type in ("thinking", "redacted_thinking") and turn.role == "assistant":
            continue  # another model's; this one's template has no place for it
        if block.type == "tool_use" and turn.role == "assistant":
            calls.append(_call(where, block))
        elif block.type == "tool_result" and turn.role == "user":
            results.append(_result(where, block))
        else:
            parts.append(_text(where, block))
    if parts or calls or not results:
        results.append(_message(turn.role, parts or "", tool_calls=calls or None))
    return results


def _text(place: str, block: Block | TextBlock) -> ContentPart:
    if block.type != "text":
        raise ApiError(
            Problem.UNSUPPORTED, "This kind of content cannot be read here.", param=f"{place}.type"
        )
    if block.text is None:
        raise _missing(f"{place}.text")
    return ContentPart.model_construct(type="text", text=block.text)


def _call(place: str, block: Block) -> CallMade:
    for field in ("id", "name", "input"):
        if getattr(block, field) is None:
            raise _missing(f"{place}.{field}")
    if is_deep(block.input):
        raise bad_value(f"{place}.input", "The arguments of a call are nested too deep.")
    arguments = orjson.dumps(block.input).decode()
    function = CalledFunction.model_construct(name=block.name, arguments=arguments)
    return CallMade.model_construct(id=block.id, function=function)


def _result(place: str, block: Block) -> Message:
    if block.tool_use_id is None:
        raise _missing(f"{place}.tool_use_id")
    content = block.content or ""
    if not isinstance(content, str):
        content = "\n".join(
            _text(f"{place}.content.{number}", part).text or ""
            for number, part in enumerate(content)
        )
    if block.is_error:
        content = f"Error: {content}"
    return _message("tool", content, tool_call_id=block.tool_use_id)


def _message(role: str, content: str | list[ContentPart], **more: Any) -> Message:
    return Message.model_construct(role=role, content=content, **more)


def _merged(messages: Iterable[Message]) -> list[Message]:
    """Return the messages with neighbours of one role as one turn, as the Messages API has it."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is None or last.role != message.role or message.role == "tool":
            merged.append(message)
            continue
        calls = [*(last.tool_calls or ()), *(message.tool_calls or ())]
        content = [*_parts(last), *_parts(message)]
        merged[-1] = _message(last.role, content, tool_calls=calls or None)
    return merged


def _parts(message: Message) -> list[ContentPart]:
    if isinstance(message.content, list):
        return message.content
    return (
        [ContentPart.model_construct(type="text", text=message.content)] if message.content else []
    )


def _tools(offered: Iterable[OfferedTool]) -> Iterable[Tool]:
    for number, tool in enumerate(offered):
        if tool.type not in (None, "custom"):
            raise ApiError(
                Problem.UNSUPPORTED,
                "Only tools that the client runs can be called.",
                param=f"tools.{number}.type",
            )
        if tool.input_schema is None:
            raise _missing(f"tools.{number}.input_schema")
        function = FunctionTool.model_construct(
            name=tool.name, description=tool.description, parameters=tool.input_schema
        )
        yield Tool.model_construct(type="function", function=function)


def _chosen(choice: Choice) -> str | ToolChoice:
    if choice.type == "tool":
        function = NamedFunction.model_construct(name=choice.name)
        return ToolChoice.model_construct(type="function", function=function)
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _missing(param: str) -> ApiError:
    return ApiError(Problem.MISSING, f"'{param}' is required.", param=param)
