"""Makes a trace's requests shorter, so that they fit a small model; it knows no time and no tier.

Nothing is left out: which request is which stays as it was, for every rate, policy and server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.sim.trace import MOST_TOKENS, TraceRow


class LengthsError(ValueError):
    """Lengths cannot be changed like that; one sentence names the flag."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompts and answers times `scale`, rounded, at least one token; then cut at the limits."""

    scale: float = 1.0
    max_prompt_tokens: int | None = None
    max_answer_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1000:
            raise LengthsError(f"scale must be above 0 and at most 1000, not {self.scale:g}")
        for name in ("max_prompt_tokens", "max_answer_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LengthsError(f"{name.replace('_', ' ')} must be at least 1, not {value}")

    @property
    def is_as_recorded(self) -> bool:
        """True where nothing is changed."""
        return self == AS_RECORDED

    def apply(self, rows: Sequence[TraceRow]) -> Sequence[TraceRow]:
        """Return the rows with their new lengths; raises LengthsError."""
        if self.is_as_recorded:
            return rows
        if self.scale != 1 and any(row.prefix_block_ids for row in rows):
            raise LengthsError(
                "scale: this trace names prefix blocks of 512 tokens, which cannot be scaled"
            )
        return tuple(
            replace(
                row,
                num_prompt_tokens=self._length(row.num_prompt_tokens, self.max_prompt_tokens),
                num_output_tokens=self._length(row.num_output_tokens, self.max_answer_tokens),
                previous_outputs=tuple(
                    [self._length(n, self.max_answer_tokens) for n in row.previous_outputs]
                ),
            )
            for row in rows
        )

    def _length(self, tokens: int, most: int | None) -> int:
        scaled = max(1, math.floor(tokens * self.scale + 0.5))
        return min(scaled, MOST_TOKENS if most is None else most)

    @property
    def text(self) -> str:
        """What is changed, in words."""
        parts = [f"times {self.scale:g}"] if self.scale != 1 else []
        if self.max_prompt_tokens is not None:
            parts.append(f"prompts cut at {self.max_prompt_tokens:,}")
        if self.max_answer_tokens is not None:
            parts.append(f"answers cut at {self.max_answer_tokens:,}")
        return ", ".join(parts) or "as recorded"


AS_RECORDED = Lengths()
