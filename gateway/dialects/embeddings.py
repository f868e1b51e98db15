"""Embeddings of the OpenAI API: what a client sends, and the list of vectors it gets.

Follows the OpenAI API reference and the models of the `openai` Python package, which asks for
base64 unless it is told otherwise.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from gateway import metric_names as names
from gateway.completion import FinishedChoice, Heading, Script, Usage
from gateway.limits.headers import openai_headers
from gateway.limits.values import Denial, Grant
from gateway.schemas import MAX_TOKENS_FIELD, CompletionBody, InputModel, Prompt, prompts_of
from gateway.wishes import MOST_PATIENCE

MAX_INPUTS = 256  # in one request

Encoding = Literal["float", "base64"]


class EmbeddingBody(InputModel):
    """`POST /v1/embeddings`."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    input: Any = Field(None)
    encoding_format: Encoding | None = None
    dimensions: int | None = Field(None, ge=1, le=MAX_TOKENS_FIELD)
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    patience: int | None = Field(None, ge=0, le=MOST_PATIENCE)

    @property
    def encoding(self) -> Encoding:
        """How vectors are written."""
        return self.encoding_format or "float"

    @property
    def prompts(self) -> list[Prompt]:
        """The inputs, each a text or token ids; raises ApiError."""
        return prompts_of(self.input, "input", MAX_INPUTS)

    def check(self) -> None:
        """Refuse what no single field can show."""
        _ = self.prompts

    def as_completion(self) -> CompletionBody:
        """Return the completion whose prompts are to be embedded: one without an answer."""
        return CompletionBody.model_validate(
            {
                "model": self.model,
                "prompt": self.input,
                "max_tokens": 1,
                "temperature": 0.0,
                "ignore_eos": True,
                "service_tier": self.service_tier,
                "priority": self.priority,
                "patience": self.patience,
            }
        )


@dataclass(frozen=True, slots=True)
class EmbeddingShape:
    """`/v1/embeddings`, which has no streams."""

    encoding: Encoding
    id_prefix: str = "embd-"
    call_prefix: str = ""
    prompt_field: str = "input"
    operation: str = names.OPERATION_EMBEDDINGS

    def script(self, head: Heading, num_choices: int, usage_chunk: bool) -> Script:
        """Nobody can ask for a stream of embeddings."""
        raise AssertionError("embeddings are not streamed")

    def limit_headers(self, verdict: Grant | Denial) -> dict[str, str]:
        """Return `x-ratelimit-*`."""
        return openai_headers(verdict)

    def body(
        self, head: Heading, choices: Sequence[FinishedChoice], usage: Usage
    ) -> dict[str, Any]:
        """Return the list, in the order of the inputs."""
        data = [
            {"object": "embedding", "index": c.index, "embedding": self._written(c.vector)}
            for c in choices
        ]
        return {
            "object": "list",
            "data": data,
            "model": head.model,
            "service_tier": head.service_tier,
            "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens},
        }

    def _written(self, vector: bytes) -> str | list[float]:
        if self.encoding == "base64":
            return base64.b64encode(vector).decode()
        numbers = array("f", vector)
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()
