"""The OpenAI Responses API's words: whole responses, and streams of its numbered events.

Shapes follow the API reference and the response models of the `openai` Python package. A response
is a list of items: one message, and one item for each call. Nothing is stored: every response says
`store` false, whatever was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway import metric_names as names
from gateway.completion import Delta, FinishedChoice, Heading, TokenLogprob, Usage, chat_logprobs
from gateway.dialects.sse import event
from gateway.errors import ApiError
from gateway.limits.headers import openai_headers
from gateway.limits.values import Denial, Grant

COMPLETED, INCOMPLETE, IN_PROGRESS = "completed", "incomplete", "in_progress"


def response_usage(usage: Usage) -> dict[str, Any]:
    """Return the `usage` object of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def response_object(
    head: Heading,
    echo: Mapping[str, Any],
    status: str,
    output: Sequence[Mapping[str, Any]],
    usage: Usage | None,
) -> dict[str, Any]:
    """Return a response; `echo` are the fields that repeat the request, `usage` None until its end.

    One that was cut off says why in `incomplete_details`.
    """
    is_cut = status == INCOMPLETE
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "model": head.model,
        "output": list(output),
        "previous_response_id": None,
        "service_tier": head.service_tier,
        "store": False,
        "truncation": "disabled",
        **echo,
        "usage": None if usage is None else response_usage(usage),
    }


def status_of(finish_reason: str) -> str:
    """Return how a response ended."""
    return INCOMPLETE if finish_reason == "length" else COMPLETED


def _item_id(head: Heading, prefix: str, number: int) -> str:
    return f"{prefix}_{head.id.rpartition('_')[2]}{number:02d}"


def _text_part(text: str, logprobs: Sequence[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _message_item(item_id: str, status: str, parts: Sequence[Any]) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": list(parts),
    }


def _call_item(
    item_id: str, status: str, call_id: str, name: str, arguments: str
) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def _logprobs(tokens: tuple[TokenLogprob, ...] | None) -> list[Any]:
    shown = chat_logprobs(tokens)
    return [] if shown is None else list(shown["content"])


class ResponseScript:
    """One stream: the response, its items one after the other, the whole response."""

    __slots__ = (
        "_call",
        "_echo",
        "_head",
        "_is_open",
        "_logprobs",
        "_number",
        "_output",
        "_parts",
        "_status",
    )

    def __init__(self, head: Heading, echo: Mapping[str, Any]) -> None:
        self._head = head
        self._echo = echo
        self._number = 0  # of the next event
        self._output: list[dict[str, Any]] = []  # items that are over
        self._is_open = False
        self._call: tuple[str, str] | None = None  # id and name, where the open item is a call
        self._parts: list[str] = []  # of the open item's text
        self._logprobs: list[Any] = []
        self._status = COMPLETED

    def opening(self, usage: Usage) -> bytes:
        """Return the response without output, twice: created and in progress."""
        empty = response_object(self._head, self._echo, IN_PROGRESS, [], None)
        created = self._event("response.created", response=empty)
        return created + self._event("response.in_progress", response=empty)

    def deltas(self, deltas: Sequence[Delta]) -> bytes:
        """Return what is new of the items."""
        told: list[bytes] = []
        for delta in deltas:
            if delta.finish_reason is not None:
                self._status = status_of(delta.finish_reason)
            if delta.call is not None:
                if delta.call.name:
                    told.append(self._begin((delta.call.id, delta.call.name)))
                if delta.call.arguments:
                    told.append(self._grow(delta.call.arguments, None))
            elif delta.text:
                if not self._is_open or self._call is not None:
                    told.append(self._begin(None))
                told.append(self._grow(delta.text, delta.logprobs))
            else:
                self._logprobs += _logprobs(delta.logprobs)
        return b"".join(told)

    def ending(self, usage: Usage) -> bytes:
        """Return the end of the last item, and the whole response."""
        closed = self._close(self._status)
        whole = response_object(self._head, self._echo, self._status, self._output, usage)
        return closed + self._event(f"response.{self._status}", response=whole)

    def failure(self, error: ApiError, usage: Usage) -> bytes:
        """Return the error as an event, and the response as one that failed."""
        told = self._event("error", code=error.spec.code, message=error.message, param=error.param)
        self._close(INCOMPLETE)
        whole = response_object(self._head, self._echo, "failed", self._output, usage)
        whole["error"] = {"code": "server_error", "message": error.message}
        return told + self._event("response.failed", response=whole)

    @property
    def _place(self) -> dict[str, Any]:
        """Where the open item is in the response."""
        prefix = "msg" if self._call is None else "fc"
        index = len(self._output)
        return {"item_id": _item_id(self._head, prefix, index), "output_index": index}

    def _item(self, status: str) -> dict[str, Any]:
        """Return the open item as it is now."""
        item_id, text = self._place["item_id"], "".join(self._parts)
        if self._call is not None:
            return _call_item(item_id, status, *self._call, text)
        return _message_item(item_id, status, [_text_part(text, self._logprobs)])

    def _begin(self, call: tuple[str, str] | None) -> bytes:
        closed = self._close(COMPLETED)
        self._is_open, self._call, self._parts = True, call, []
        place, item = self._place, self._item(IN_PROGRESS)
        if call is None:
            item["content"] = []
        told = self._event(
            "response.output_item.added", output_index=place["output_index"], item=item
        )
        if call is None:
            part = _text_part("", [])
            told += self._event("response.content_part.added", **place, content_index=0, part=part)
        return closed + told

    def _grow(self, text: str, logprobs: tuple[TokenLogprob, ...] | None) -> bytes:
        self._parts.append(text)
        if self._call is not None:
            kind = "response.function_call_arguments.delta"
            return self._event(kind, **self._place, delta=text)
        shown = _logprobs(logprobs)
        self._logprobs += shown
        return self._event(
            "response.output_text.delta", **self._place, content_index=0, delta=text, logprobs=shown
        )

    def _close(self, status: str) -> bytes:
        if not self._is_open:
            return b""
        place, item, text = self._place, self._item(status), "".join(self._parts)
        if self._call is not None:
            kind = "response.function_call_arguments.done"
            told = self._event(kind, **place, name=self._call[1], arguments=text)
        else:
            (part,) = item["content"]
            spot = {**place, "content_index": 0}
            kind = "response.output_text.done"
            told = self._event(kind, **spot, text=text, logprobs=part["logprobs"])
            told += self._event("response.content_part.done", **spot, part=part)
        told += self._event(
            "response.output_item.done", output_index=place["output_index"], item=item
        )
        self._is_open = False
        self._output.append(item)
        self._logprobs = []
        return told

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, **fields, "sequence_number": number}, kind)


@dataclass(frozen=True, slots=True)
class ResponseShape:
    """`/v1/responses`, for one request: `echo` are the fields of it that are repeated."""

    echo: Mapping[str, Any] = field(repr=False)
    id_prefix: str = "resp_"
    call_prefix: str = "call_"
    prompt_field: str = "input"
    operation: str = names.OPERATION_CHAT

    def script(self, head: Heading, num_choices: int, usage_chunk: bool) -> ResponseScript:
        """Return the teller of one stream; its usage is always told."""
        return ResponseScript(head, self.echo)

    def limit_headers(self, verdict: Grant | Denial) -> dict[str, str]:
        """Return `x-ratelimit-*`."""
        return openai_headers(verdict)

    def body(
        self, head: Heading, choices: Sequence[FinishedChoice], usage: Usage
    ) -> dict[str, Any]:
        """Return a whole response."""
        (choice,) = choices
        status = status_of(choice.finish_reason)
        output: list[dict[str, Any]] = []
        if choice.text:
            part = _text_part(choice.text, _logprobs(choice.logprobs))
            is_last = not choice.calls
            item_id = _item_id(head, "msg", 0)
            output.append(_message_item(item_id, status if is_last else COMPLETED, [part]))
        for call in choice.calls:
            item_id = _item_id(head, "fc", len(output))
            is_last = call is choice.calls[-1]
            state = status if is_last else COMPLETED
            output.append(_call_item(item_id, state, call.id, call.name, call.arguments))
        return response_object(head, self.echo, status, output, usage)
