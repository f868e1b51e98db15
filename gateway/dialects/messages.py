"""The Anthropic Messages API's words: whole messages, and streams of its named events.

Shapes follow the Messages API reference and the response models of the `anthropic` Python package.
Text is one block, each call a block of its own; a block is closed when the next one begins. A
message's input tokens are those that were not read from the prefix cache, as that API counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway import metric_names as names
from gateway.completion import Delta, FinishedChoice, Heading, ToolCall, Usage
from gateway.dialects.errors import anthropic_body
from gateway.dialects.sse import MARK, Frame, event
from gateway.errors import ApiError
from gateway.limits.headers import anthropic_headers
from gateway.limits.values import Denial, Grant

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_SERVICE_TIERS = {"priority": "priority", "default": "standard", "flex": "batch"}


def stop_reason(finish_reason: str, stop: str | None) -> str:
    """Return why a message ended, in the Messages API's words."""
    return "stop_sequence" if stop is not None else _STOP_REASONS[finish_reason]


def message_usage(usage: Usage, service_tier: str) -> dict[str, Any]:
    """Return the `usage` object of a message."""
    return {
        **_token_counts(usage),
        "service_tier": _SERVICE_TIERS[service_tier],
    }


def _token_counts(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _message(head: Heading, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
    return {
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": message_usage(usage, head.service_tier),
    }


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": _opened(call.arguments)}


def _opened(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as an object; what was cut off in the middle is an empty one."""
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


class MessageScript:
    """One stream: the message, its blocks one after the other, how it ended."""

    __slots__ = ("_block", "_frame", "_head", "_is_open", "_stop", "_stop_reason")

    def __init__(self, head: Heading) -> None:
        self._head = head
        self._block = -1  # the latest block's number
        self._is_open = False
        self._frame: Frame | None = None  # of the open block, where it is a text
        self._stop_reason: str | None = None
        self._stop: str | None = None

    def opening(self, usage: Usage) -> bytes:
        """Return the message without content. What the cache gave is known at its end only."""
        return _named("message_start", message=_message(self._head, [], usage))

    def deltas(self, deltas: Sequence[Delta]) -> bytes:
        """Return what is new of the blocks."""
        parts: list[bytes] = []
        for delta in deltas:
            if delta.call is not None:
                if delta.call.name:
                    block = {"id": delta.call.id, "name": delta.call.name, "input": {}}
                    parts.append(self._open({"type": "tool_use", **block}))
                if delta.call.arguments:
                    change = {"type": "input_json_delta", "partial_json": delta.call.arguments}
                    parts.append(self._delta(change))
            if delta.text:
                if self._frame is None:
                    parts.append(self._open({"type": "text", "text": ""}))
                    self._frame = Frame(self._delta({"type": "text_delta", "text": MARK}))
                parts.append(self._frame.around(delta.text))
            if delta.finish_reason is not None:
                self._stop = delta.stop
                self._stop_reason = stop_reason(delta.finish_reason, delta.stop)
        return b"".join(parts)

    def ending(self, usage: Usage) -> bytes:
        """Return the end of the last block, of the message, and of the stream."""
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self._stop}
        last = _named("message_delta", delta=delta, usage=_token_counts(usage))
        return self._close() + last + _named("message_stop")

    def failure(self, error: ApiError, usage: Usage) -> bytes:
        """Return the error as an event, and no `message_stop`."""
        return event(anthropic_body(error), "error")

    def _open(self, block: dict[str, Any]) -> bytes:
        closed = self._close()
        self._block += 1
        self._is_open = True
        return closed + _named("content_block_start", index=self._block, content_block=block)

    def _close(self) -> bytes:
        if not self._is_open:
            return b""
        self._is_open = False
        self._frame = None
        return _named("content_block_stop", index=self._block)

    def _delta(self, change: dict[str, Any]) -> bytes:
        return _named("content_block_delta", index=self._block, delta=change)


def _named(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


@dataclass(frozen=True, slots=True)
class MessageShape:
    """`/v1/messages`; an answer has one choice."""

    id_prefix: str = "msg_"
    call_prefix: str = "toolu_"
    prompt_field: str = "messages"
    operation: str = names.OPERATION_CHAT

    def script(self, head: Heading, num_choices: int, usage_chunk: bool) -> MessageScript:
        """Return the teller of one stream; its usage is always told."""
        return MessageScript(head)

    def limit_headers(self, verdict: Grant | Denial) -> dict[str, str]:
        """Return `anthropic-ratelimit-*`."""
        return anthropic_headers(verdict)

    def body(
        self, head: Heading, choices: Sequence[FinishedChoice], usage: Usage
    ) -> dict[str, Any]:
        """Return a whole message."""
        (choice,) = choices
        content: list[dict[str, Any]] = []
        if choice.text:
            content.append({"type": "text", "text": choice.text})
        content += map(_tool_use, choice.calls)
        return {
            **_message(head, content, usage),
            "stop_reason": stop_reason(choice.finish_reason, choice.stop),
            "stop_sequence": choice.stop,
        }
