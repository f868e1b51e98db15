"""How this server is asked: which route, which kind of prompt, what pins the length of an answer.

It writes bodies and reads none. Fields beyond OpenAI's own are only sent where the server took
them when it was tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engine.sim.workload import SimRequest
from gateway.replay.prompts import PromptMaker

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Form(StrEnum):
    """What a prompt is sent as."""

    TOKENS = "tokens"  # token ids: exactly as long as the trace says
    TEXT = "text"  # a text of about that length
    CHAT = "chat"  # the same as a message of a chat


class Pin(StrEnum):
    """What makes an answer as long as the trace says, beside `max_tokens`.

    Where both are known, `min_tokens` alone keeps end tokens from being drawn at all, so that
    every token has a text; `ignore_eos` draws them and goes on.
    """

    BOTH = "both"
    MIN_TOKENS = "min_tokens"
    IGNORE_EOS = "ignore_eos"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to ask. `usage`: the server is asked to count, chunk by chunk where it can.

    A text of w words is `words_offset + w * tokens_per_word` tokens to this server.
    """

    model: str
    form: Form
    pin: Pin
    usage: bool = True
    tokens_per_word: float = 1.0
    words_offset: float = 0.0

    @property
    def path(self) -> str:
        """The route."""
        return CHAT if self.form is Form.CHAT else COMPLETIONS

    def body(self, request: SimRequest, number: int, prompts: PromptMaker) -> bytes:
        """Return the JSON that asks for this request's answer."""
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.num_output_tokens,
            "temperature": 0,
            "stream": True,
        }
        if self.usage:
            fields["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        if self.pin in (Pin.BOTH, Pin.MIN_TOKENS):
            fields["min_tokens"] = request.num_output_tokens
        if self.pin in (Pin.BOTH, Pin.IGNORE_EOS):
            fields["ignore_eos"] = True
        if self.form is Form.TOKENS:
            return _with(fields, "prompt", prompts.tokens(request, number))
        text = prompts.text(self.num_words(request.num_prompt_tokens), request, number)
        if self.form is Form.TEXT:
            return _with(fields, "prompt", json.dumps(text).encode())
        return _with(fields, "messages", json.dumps([{"role": "user", "content": text}]).encode())

    def num_words(self, num_tokens: int) -> int:
        """Return how many words make a prompt of about so many tokens."""
        return max(1, round((num_tokens - self.words_offset) / self.tokens_per_word))


def _with(fields: dict[str, Any], name: str, value: bytes) -> bytes:
    """Return the fields as JSON with one more, which is JSON already and may be long."""
    return json.dumps(fields).encode()[:-1] + b', "' + name.encode() + b'": ' + value + b"}"


BodyMaker = Callable[[SimRequest, int], bytes]
