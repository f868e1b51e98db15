"""What an answer is made of, and how a route says it: values and two protocols; it knows no bytes.

A `Shape` (gateway/dialects/) says whole answers, and makes a `Script` for each stream. Every route
has the same deltas, choices, calls and usage; only the words differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from gateway.errors import ApiError
from gateway.limits.values import Denial, Grant

LOWEST_LOGPROB = -9999.0  # what the API says instead of minus infinity, which JSON lacks


class TokenText(Protocol):
    """One token as the API shows it; its bytes need not be whole characters."""

    @property
    def text(self) -> str:
        """The text, with U+FFFD where the bytes are part of a character."""
        ...

    @property
    def bytes(self) -> tuple[int, ...]:
        """The bytes."""
        ...


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One position of an answer: the token drawn, and the likeliest ones."""

    token: TokenText
    logprob: float
    top: tuple[tuple[TokenText, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """The token counts of one HTTP answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Return the `usage` object of the OpenAI API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


@dataclass(frozen=True, slots=True)
class Heading:
    """What all objects of one answer have in common. `created` is Unix time in seconds."""

    id: str
    created: int
    model: str
    service_tier: str
    fingerprint: str

    def as_dict(self, kind: str) -> dict[str, Any]:
        """Return the fields of an object of that kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "service_tier": self.service_tier,
            "system_fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool; `arguments` is JSON as the model wrote it, not checked."""

    id: str
    name: str
    arguments: str


class CallDelta(NamedTuple):
    """What is new of one call; the first of a call has its id and name, the others only text.

    `number` counts the calls of one choice.
    """

    number: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class FinishedChoice:
    """One whole answer, for a response that is not streamed. `stop` is the stop string met."""

    index: int
    text: str
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    echoed: int = 0  # characters of the prompt in front of the answer
    calls: tuple[ToolCall, ...] = ()
    stop: str | None = None
    vector: bytes = b""  # an embedding: float32, little-endian


class Delta(NamedTuple):
    """What one chunk of one choice adds. `text_offset` is where its text begins in the answer.

    One is made for every token; a tuple is made in a third of a frozen dataclass's time.
    """

    choice: int
    text: str
    text_offset: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None
    call: CallDelta | None = None
    stop: str | None = None  # the stop string that ended the choice


class Script(Protocol):
    """Tells one stream of one answer, event after event; made by its `Shape`, used once."""

    def opening(self, usage: Usage) -> bytes:
        """Return what stands before the first text; `usage` knows the prompt only."""
        ...

    def deltas(self, deltas: Sequence[Delta]) -> bytes:
        """Return what these deltas add."""
        ...

    def ending(self, usage: Usage) -> bytes:
        """Return the end of a stream whose choices have all ended."""
        ...

    def failure(self, error: ApiError, usage: Usage) -> bytes:
        """Return the end of a stream that fails; it can be told from a good one."""
        ...


class Shape(Protocol):
    """How one route says the same things; values only."""

    @property
    def id_prefix(self) -> str:
        """What its ids begin with."""
        ...

    @property
    def call_prefix(self) -> str:
        """What the ids of its tool calls begin with."""
        ...

    @property
    def prompt_field(self) -> str:
        """The request's field that holds what is to be read, as faults name it."""
        ...

    @property
    def operation(self) -> str:
        """The route's name in telemetry."""
        ...

    def script(self, head: Heading, num_choices: int, usage_chunk: bool) -> Script:
        """Return the teller of one stream; `usage_chunk` where the caller asked for usage."""
        ...

    def body(
        self, head: Heading, choices: Sequence[FinishedChoice], usage: Usage
    ) -> dict[str, Any]:
        """Return the whole answer."""
        ...

    def limit_headers(self, verdict: Grant | Denial) -> dict[str, str]:
        """Return the rate-limit headers by the names that its clients read."""
        ...


def chat_logprobs(tokens: tuple[TokenLogprob, ...] | None) -> dict[str, Any] | None:
    """Return the `logprobs` object of a chat choice; None where none were asked for."""
    if tokens is None:
        return None
    content = [
        {
            **_chat_token(token.token, token.logprob),
            "top_logprobs": [_chat_token(text, logprob) for text, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_token(token: TokenText, logprob: float) -> dict[str, Any]:
    return {"token": token.text, "logprob": _finite(logprob), "bytes": list(token.bytes)}


def text_logprobs(tokens: tuple[TokenLogprob, ...] | None, offset: int) -> dict[str, Any] | None:
    """Return the `logprobs` object of a completion choice; `offset` in characters."""
    if tokens is None:
        return None
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token.text)
    return {
        "tokens": [token.token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": offsets,
    }


def _top(token: TokenLogprob) -> dict[str, float]:
    """Return the likeliest tokens of a position; the one drawn is always among them."""
    shown = {text.text: _finite(value) for text, value in token.top}
    shown.setdefault(token.token.text, _finite(token.logprob))
    return shown


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One entry of `/v1/models`."""

    id: str
    created: int
    max_model_len: int
    owned_by: str = field(default="tiergate")

    def as_dict(self) -> dict[str, Any]:
        """Return the `model` object."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": self.owned_by,
            "max_model_len": self.max_model_len,
        }
