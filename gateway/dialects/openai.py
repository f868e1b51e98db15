"""Chat completions and completions of the OpenAI API: whole answers, and streams of chunks.

`ChatShape` makes `chat.completion` objects and chunks, `TextShape` those of `text_completion`. Both
put the tier that is really served into every object. Shapes follow the OpenAI API reference and the
response models of the `openai` Python package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway import metric_names as names
from gateway.completion import (
    CallDelta,
    Delta,
    FinishedChoice,
    Heading,
    Usage,
    chat_logprobs,
    text_logprobs,
)
from gateway.dialects.sse import MARK, Frame, event
from gateway.errors import ApiError
from gateway.limits.headers import openai_headers
from gateway.limits.values import Denial, Grant

DONE = b"data: [DONE]\n\n"


class ChunkShape(Protocol):
    """What a stream of chunks is made of."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the choice of a stream's first chunk, if the shape has one."""
        ...

    def delta(self, delta: Delta) -> dict[str, Any]:
        """Return the choice of a further chunk."""
        ...

    def chunk(self, head: Heading, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a chunk around choices."""
        ...


class ChunkScript:
    """A stream of chunks, the usage if asked for, `[DONE]`; one that fails has no `[DONE]`."""

    __slots__ = ("_frames", "_head", "_num_choices", "_shape", "_usage_chunk")

    def __init__(
        self, shape: ChunkShape, head: Heading, num_choices: int, usage_chunk: bool
    ) -> None:
        self._shape = shape
        self._head = head
        self._num_choices = num_choices
        self._usage_chunk = usage_chunk
        self._frames: dict[int, Frame] = {}

    def opening(self, usage: Usage) -> bytes:
        """Return each choice's first chunk, where the shape has one."""
        openings = map(self._shape.opening, range(self._num_choices))
        return b"".join(self._chunk([one]) for one in openings if one is not None)

    def deltas(self, deltas: Sequence[Delta]) -> bytes:
        """Return deltas as events. All but the text of a plain one is the same, so it is kept."""
        parts: list[bytes] = []
        for delta in deltas:
            if delta.logprobs is None and delta.finish_reason is None and delta.call is None:
                frame = self._frames.get(delta.choice)
                if frame is None:
                    frame = self._frames[delta.choice] = self._frame(delta.choice)
                parts.append(frame.around(delta.text))
            else:
                parts.append(self._chunk([self._shape.delta(delta)]))
        return b"".join(parts)

    def ending(self, usage: Usage) -> bytes:
        """Return the last chunk with the usage, if asked for, and `[DONE]`."""
        if not self._usage_chunk:
            return DONE
        chunk = self._shape.chunk(self._head, [])
        chunk["usage"] = usage.as_dict()
        return event(chunk) + DONE

    def failure(self, error: ApiError, usage: Usage) -> bytes:
        """Return the error as an event of the usual shape, and no `[DONE]`."""
        return event(error.body())

    def _frame(self, index: int) -> Frame:
        return Frame(self._chunk([self._shape.delta(Delta(index, MARK, 0))]))

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        chunk = self._shape.chunk(self._head, choices)
        if self._usage_chunk:
            chunk["usage"] = None
        return event(chunk)


@dataclass(frozen=True, slots=True)
class ChatShape:
    """`/v1/chat/completions`."""

    id_prefix: str = "chatcmpl-"
    call_prefix: str = "call_"
    prompt_field: str = "messages"
    operation: str = names.OPERATION_CHAT

    def script(self, head: Heading, num_choices: int, usage_chunk: bool) -> ChunkScript:
        """Return the teller of one stream."""
        return ChunkScript(self, head, num_choices, usage_chunk)

    def limit_headers(self, verdict: Grant | Denial) -> dict[str, str]:
        """Return `x-ratelimit-*`."""
        return openai_headers(verdict)

    def opening(self, index: int) -> dict[str, Any]:
        """Return the chunk that names the role; it has no content and starts no clock."""
        return _choice(index, "delta", {"role": "assistant", "content": ""}, None, None)

    def delta(self, delta: Delta) -> dict[str, Any]:
        """Return a chunk's choice; one that only ends the answer has an empty delta."""
        is_end = delta.finish_reason is not None and not delta.text
        content: dict[str, Any] = {} if is_end else {"content": delta.text}
        if delta.call is not None:
            content = {"tool_calls": [_call_delta(delta.call)]}
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
            _choice(c.index, "message", _message(c), chat_logprobs(c.logprobs), c.finish_reason)
            for c in choices
        ]
        head_fields = head.as_dict("chat.completion")
        return {**head_fields, "choices": shown, "usage": usage.as_dict()}


@dataclass(frozen=True, slots=True)
class TextShape:
    """`/v1/completions`."""

    id_prefix: str = "cmpl-"
    call_prefix: str = "call_"
    prompt_field: str = "prompt"
    operation: str = names.OPERATION_COMPLETION

    def script(self, head: Heading, num_choices: int, usage_chunk: bool) -> ChunkScript:
        """Return the teller of one stream."""
        return ChunkScript(self, head, num_choices, usage_chunk)

    def limit_headers(self, verdict: Grant | Denial) -> dict[str, str]:
        """Return `x-ratelimit-*`."""
        return openai_headers(verdict)

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


def _message(choice: FinishedChoice) -> dict[str, Any]:
    """Return the message; one that only calls tools has no content."""
    if not choice.calls:
        return {"role": "assistant", "content": choice.text, "refusal": None}
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in choice.calls
    ]
    content = choice.text or None
    return {"role": "assistant", "content": content, "refusal": None, "tool_calls": calls}


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if not call.name:
        return {"index": call.number, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.number, "id": call.id, "type": "function", "function": function}
