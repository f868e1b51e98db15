"""The two answer shapes of the OpenAI API, as plain dictionaries; it knows no stream and no engine.

`ChatShape` makes `chat.completion` objects and chunks, `TextShape` those of `text_completion`. Both
put the tier that is really served into every object. Shapes follow the OpenAI API reference and the
response models of the `openai` Python package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from gateway import metric_names as names

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
        """Return the `usage` object."""
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
class FinishedChoice:
    """One whole answer, for a response that is not streamed."""

    index: int
    text: str
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    echoed: int = 0  # characters of the prompt in front of the answer


class Delta(NamedTuple):
    """What one chunk of one choice adds. `text_offset` is where its text begins in the answer.

    One is made for every token; a tuple is made in a third of a frozen dataclass's time.
    """

    choice: int
    text: str
    text_offset: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None


class Shape(Protocol):
    """How one route says the same things; values only, so one object serves all requests."""

    @property
    def id_prefix(self) -> str:
        """What its ids begin with."""
        ...

    @property
    def operation(self) -> str:
        """The route's name in telemetry."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the choice of a stream's first chunk, if the shape has one."""
        ...

    def delta(self, delta: Delta) -> dict[str, Any]:
        """Return the choice of a further chunk."""
        ...

    def chunk(self, head: Heading, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a chunk around choices."""
        ...

    def body(
        self, head: Heading, choices: Sequence[FinishedChoice], usage: Usage
    ) -> dict[str, Any]:
        """Return the whole answer."""
        ...


@dataclass(frozen=True, slots=True)
class ChatShape:
    """`/v1/chat/completions`."""

    id_prefix: str = "chatcmpl-"
    operation: str = names.OPERATION_CHAT

    def opening(self, index: int) -> dict[str, Any]:
        """Return the chunk that names the role; it has no content and starts no clock."""
        return _choice(index, "delta", {"role": "assistant", "content": ""}, None, None)

    def delta(self, delta: Delta) -> dict[str, Any]:
        """Return a chunk's choice; one that only ends the answer has an empty delta."""
        is_end = delta.finish_reason is not None and not delta.text
        content = {} if is_end else {"content": delta.text}
        return _choice(
            delta.choice, "delta", content, chat_logprobs(delta.logprobs), delta.finish_reason
        )

    def chunk(self, head: Heading, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a `chat.completion.chunk`."""
        return {**head.as_dict("chat.completion.chunk"), "choices": choices}

    def body(
        self, head: Heading, choices: Sequence[FinishedChoice], usage: Usage
    ) -> dict[str, Any]:
        """Return a `chat.completion`."""
        shown = [
            _choice(
                c.index,
                "message",
                {"role": "assistant", "content": c.text, "refusal": None},
                chat_logprobs(c.logprobs),
                c.finish_reason,
            )
            for c in choices
        ]
        head_fields = head.as_dict("chat.completion")
        return {**head_fields, "choices": shown, "usage": usage.as_dict()}


@dataclass(frozen=True, slots=True)
class TextShape:
    """`/v1/completions`."""

    id_prefix: str = "cmpl-"
    operation: str = names.OPERATION_COMPLETION

    def opening(self, index: int) -> None:
        """A completion has no opening chunk."""
        return

    def delta(self, delta: Delta) -> dict[str, Any]:
        """Return a chunk's choice."""
        shown = text_logprobs(delta.logprobs, delta.text_offset)
        return _choice(delta.choice, "text", delta.text, shown, delta.finish_reason)

    def chunk(self, head: Heading, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a `text_completion` that is part of a stream."""
        return {**head.as_dict("text_completion"), "choices": choices}

    def body(
        self, head: Heading, choices: Sequence[FinishedChoice], usage: Usage
    ) -> dict[str, Any]:
        """Return a whole `text_completion`."""
        shown = [
            _choice(c.index, "text", c.text, text_logprobs(c.logprobs, c.echoed), c.finish_reason)
            for c in choices
        ]
        head_fields = head.as_dict("text_completion")
        return {**head_fields, "choices": shown, "usage": usage.as_dict()}


def _choice(
    index: int, key: str, content: Any, logprobs: Any, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, key: content, "logprobs": logprobs, "finish_reason": finish_reason}


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
