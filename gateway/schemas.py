"""What a client may send, and how a fault in it is told; pydantic begins and ends in this file.

Compatibility mode: fields of the OpenAI API that have no meaning here (`user`, `metadata`, `store`,
...), and unknown ones, are accepted and ignored, so that SDKs that send every parameter work
unchanged. A field that is known is checked strictly: no number in a string, no silent
rounding. A null means the default. Fault messages name the field and the rule, never the value that
was sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gateway.errors import ApiError, Problem, bad_value
from gateway.wishes import MOST_PATIENCE, Wishes, patience_of

MAX_CHOICES = 8  # of one prompt
MAX_PROMPTS = 64  # in one completions request
MAX_STOPS = 16
MAX_STOP_LENGTH = 256  # characters
MAX_LOGIT_BIAS = 1024  # entries
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_CALLS = 128  # in one message
MAX_TOKENS_FIELD = 2**31 - 1
MIN_REPETITION_PENALTY = 0.01  # logits are divided by it, and must stay finite

StopText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS_FIELD)]
Prompt = str | list[int]


class InputModel(BaseModel):
    """The rules every input shares."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)


class StreamOptions(InputModel):
    """How a stream is sent."""

    include_usage: bool | None = None


class SamplingBody(InputModel):
    """The fields that both inference routes share; None stands for the default."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS_FIELD)
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS_FIELD)
    ignore_eos: bool | None = None
    temperature: float | None = Field(None, ge=0.0, le=2.0)
    top_p: float | None = Field(None, ge=0.0, le=1.0)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS_FIELD)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    repetition_penalty: float | None = Field(None, ge=MIN_REPETITION_PENALTY, le=2.0)
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = Field(
        None, max_length=MAX_LOGIT_BIAS
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOPS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    # Of vLLM, where lower is sooner; here only later. And our own, which cannot be misread.
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    patience: int | None = Field(None, ge=0, le=MOST_PATIENCE)

    @property
    def wishes(self) -> Wishes:
        """What the caller is content to wait for beyond its tier."""
        return patience_of(self.priority, self.patience)

    @property
    def num_choices(self) -> int:
        """Answers per prompt."""
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage_chunk(self) -> bool:
        """True where the caller asked for a last chunk with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True


class ContentPart(InputModel):
    """One part of a message; only text can be read."""

    type: Annotated[str, StringConstraints(max_length=64)]
    text: str | None = None
    refusal: str | None = None


class CalledFunction(InputModel):
    """What an earlier answer called."""

    name: ToolName
    arguments: str = ""


class CallMade(InputModel):
    """One call in an earlier answer."""

    id: Annotated[str, StringConstraints(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(InputModel):
    """One turn of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[CallMade] | None = Field(None, max_length=MAX_CALLS)
    tool_call_id: Annotated[str, StringConstraints(max_length=256)] | None = None


class FunctionTool(InputModel):
    """A function that the model may call; without parameters it takes none."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(InputModel):
    """One tool; only functions are known."""

    type: Annotated[str, StringConstraints(max_length=64)]
    function: FunctionTool | None = None


class NamedFunction(InputModel):
    """A function by its name."""

    name: ToolName


class NamedTool(InputModel):
    """A tool by its name."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(InputModel):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(max_length=MAX_TOOLS)


class ToolChoice(InputModel):
    """The one tool that must be called, or the ones that may be."""

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchemaFormat(InputModel):
    """The schema an answer must satisfy; it is followed whether `strict` or not."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    description: str | None = None
    definition: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(InputModel):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS_FIELD)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = Field(None, max_length=MAX_TOOLS)
    function_call: Any = None

    @property
    def output_limit(self) -> int | None:
        """The caller's limit; the newer name wins where both are sent."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report per token, None for no log probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must satisfy, None where it may be any text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object" or wanted.json_schema is None:
            return {"type": "object"}
        return wanted.json_schema.definition

    def check(self) -> None:
        """Refuse what no single field can show."""
        wanted = self.response_format
        if wanted is not None and wanted.type == "json_schema" and wanted.json_schema is None:
            param = "response_format.json_schema"
            raise ApiError(Problem.MISSING, f"'{param}' is required.", param=param)
        if self.answer_schema is not None and self.ignore_eos:
            raise bad_value("ignore_eos", "'ignore_eos' cannot be used with a response format.")
        if self.top_logprobs and not self.logprobs:
            raise bad_value("top_logprobs", "'top_logprobs' needs 'logprobs': true.")
        if self.functions and self.function_call != "none":
            raise ApiError(
                Problem.UNSUPPORTED, "Send 'tools' in place of 'functions'.", param="functions"
            )


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: Any = Field(None)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=0, le=MAX_CHOICES)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def output_limit(self) -> int | None:
        """The caller's limit."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report per token, None for no log probabilities at all."""
        return self.logprobs

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts, each a text or token ids; checked here because of the four forms."""
        return prompts_of(self.prompt, "prompt", MAX_PROMPTS)

    def check(self) -> None:
        """Refuse what no single field can show."""
        if self.best_of and self.best_of != self.num_choices:
            raise ApiError(
                Problem.UNSUPPORTED, "'best_of' is only supported equal to 'n'.", param="best_of"
            )


def _is_token_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        # bool is an int to Python, not to JSON.
        and all(type(item) is int and 0 <= item <= MAX_TOKENS_FIELD for item in value)
    )


def prompts_of(value: Any, field: str, most: int) -> list[Prompt]:
    """Return the prompts in one of the four forms of `field`; raises ApiError."""
    if value is None:
        raise ApiError(Problem.MISSING, f"'{field}' is required.", param=field)
    if isinstance(value, str) or _is_token_list(value):
        return [value]
    good = isinstance(value, list) and bool(value)
    if good and len(value) > most:
        raise bad_value(field, f"At most {most} prompts can be sent at once.")
    if not good or not all(isinstance(item, str) or _is_token_list(item) for item in value):
        forms = "a string, a list of strings, token ids, or lists of token ids"
        raise bad_value(field, f"'{field}' must be {forms}.")
    return list(value)


class CheckedBody(Protocol):
    """What `parse_body` makes."""

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """Return the body of a decoded JSON object; raises ValidationError."""
        ...

    def check(self) -> None:
        """Refuse what no single field can show; raises ApiError."""
        ...


BodyT = TypeVar("BodyT", bound=CheckedBody)


def parse_body(raw: bytes, body_type: type[BodyT], known: frozenset[str] | None = None) -> BodyT:
    """Return the checked body; raises `ApiError` for JSON or values that cannot be taken.

    `known` are the names of fields that a fault may name, those of the OpenAI routes by default.
    """
    try:
        decoded = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ApiError(Problem.BAD_JSON, "The request body is not valid JSON.") from None
    if not isinstance(decoded, dict):
        raise ApiError(Problem.BAD_JSON, "The request body must be a JSON object.")
    try:
        body = body_type.model_validate(decoded)
    except ValidationError as error:
        raise first_fault(error, KNOWN_FIELDS if known is None else known) from None
    body.check()
    return body


def first_fault(error: ValidationError, known: frozenset[str]) -> ApiError:
    """Return the first fault in our own words: the field and the rule, never what was sent."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    # Of a field's forms the one that was sent breaks more than the rule of its type, or it within.
    place = faults[0]["loc"][:-1]
    forms = [fault for fault in faults if place and fault["loc"][: len(place)] == place]
    fault = max(forms or faults[:1], key=lambda f: (f["type"][-5:] != "_type", len(f["loc"])))
    param = _param(fault["loc"], known)
    if fault["type"] == "missing":
        return ApiError(Problem.MISSING, f"'{param}' is required.", param=param)
    rule = str(fault["msg"])
    return bad_value(param, f"Invalid value for '{param}': {rule[:1].lower()}{rule[1:]}.")


def _param(loc: tuple[int | str, ...], known: frozenset[str]) -> str | None:
    """Return a path like `messages.0.role`, without union tags and keys the client made up."""
    path: list[str] = []
    for part in loc:
        if isinstance(part, int):
            path.append(str(part))
        elif part in known:
            path.append(part)
        else:
            break
    return ".".join(path) or None


def field_names(*models: type[InputModel]) -> frozenset[str]:
    """Return the names that these models' fields have in JSON."""
    return frozenset(
        field.alias or name for model in models for name, field in model.model_fields.items()
    )


KNOWN_FIELDS = field_names(
    ChatBody,
    CompletionBody,
    Message,
    ContentPart,
    CallMade,
    CalledFunction,
    StreamOptions,
    ResponseFormat,
    JsonSchemaFormat,
    Tool,
    FunctionTool,
    ToolChoice,
    AllowedTools,
    NamedTool,
)


def inlined_schema(body: type[InputModel]) -> dict[str, Any]:
    """Return a body's JSON schema with nothing left to look up elsewhere."""
    schema = body.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(value: Any) -> Any:
        if isinstance(value, list):
            return [inline(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inline(definitions[value["$ref"].rpartition("/")[2]])
        return {key: inline(item) for key, item in value.items()}

    return dict(inline(schema))
