"""Times one answer at the door: arrival, first token, gaps; it judges lateness, it reads no clock.

TTFT starts at the first byte of the request and ends when the first token with content is handed to
the socket. A token is late by the tier's TBT mode: `gap` counts from the token before it, `stream`
from the first token (scheduling notes, section 1). Where tokens are held back (gateway/pacing.py)
their time is that at which they leave. All times are nanoseconds of one clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappush, heapreplace

from engine.core.request import Slo, TbtMode


class Stopwatch:
    """The times of one answer; tokens that come together share one moment.

    `gaps` counts the tokens after the first, `late` those of them that came too late. With several
    choices in one answer each choice has its own stopwatch. `keeps` is how many of the longest
    waits are kept (`longest`).
    """

    __slots__ = (
        "_keeps",
        "_slo",
        "arrival_ns",
        "first_ns",
        "gaps",
        "last_ns",
        "late",
        "longest",
        "num_prompt_tokens",
        "worst_gap_ns",
    )

    def __init__(
        self, arrival_ns: int, num_prompt_tokens: int, slo: Slo, *, keeps: int = 1
    ) -> None:
        self._slo = slo
        self._keeps = keeps
        # A heap of the promises that the latest tokens would have needed, the least in front: a
        # token is in time where its own is not above `tbt_ns`.
        self.longest: list[int] = []
        self.arrival_ns = arrival_ns
        self.num_prompt_tokens = num_prompt_tokens
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.gaps = 0
        self.late = 0
        self.worst_gap_ns = 0

    def tokens(self, num_tokens: int, now_ns: int) -> int | None:
        """Note that `num_tokens` were handed over now; return the gap before them, if any."""
        if num_tokens <= 0:
            return None
        if self.first_ns is None or self.last_ns is None:
            self.first_ns = self.last_ns = now_ns
            self._count(num_tokens - 1, 0, now_ns)
            return None
        gap = now_ns - self.last_ns
        self._count(num_tokens, gap, now_ns)
        self.last_ns = now_ns
        return gap

    def _count(self, num_tokens: int, gap_ns: int, now_ns: int) -> None:
        """Judge tokens that came at one moment: only the first of them waited."""
        assert self.first_ns is not None
        self.worst_gap_ns = max(self.worst_gap_ns, gap_ns)
        for _ in range(num_tokens):
            self.gaps += 1
            if self._slo.tbt_mode is TbtMode.STREAM:
                needed_ns = -((self.first_ns - now_ns) // self.gaps)
            else:
                needed_ns, gap_ns = gap_ns, 0
            self.late += needed_ns > self._slo.tbt_ns
            if len(self.longest) < self._keeps:
                heappush(self.longest, needed_ns)
            elif needed_ns > self.longest[0]:
                heapreplace(self.longest, needed_ns)

    def overdue_ns(self, now_ns: int) -> int | None:
        """Return the TBT that a token coming now would need; None before one is late.

        What was waited for in vain when an answer ended is in no gap: there was no next token.
        """
        if self.first_ns is None or self.last_ns is None:
            return None
        if self._slo.tbt_mode is TbtMode.STREAM:
            needed_ns = -((self.first_ns - now_ns) // (self.gaps + 1))
        else:
            needed_ns = now_ns - self.last_ns
        return needed_ns if needed_ns > self._slo.tbt_ns else None

    @property
    def num_tokens(self) -> int:
        """Tokens handed over."""
        return self.gaps + (self.first_ns is not None)

    @property
    def ttft_ns(self) -> int | None:
        """Time to the first token; None where none came."""
        return None if self.first_ns is None else self.first_ns - self.arrival_ns

    def ttft_met_at(self, first_ns: int | None) -> bool:
        """True where a first token at `first_ns` was in time; an answer without one missed it."""
        due = self._slo.first_token_due_ns(self.arrival_ns, self.num_prompt_tokens)
        return first_ns is not None and first_ns <= due


def needed_tbt_ns(
    watches: Sequence[Stopwatch], late_share: int, in_vain: Sequence[int] = ()
) -> int | None:
    """Return the least TBT with which one gap in `late_share` at most would have been late.

    Of all gaps of an answer's choices together, with what was waited for `in_vain`; None where
    there was none.
    """
    gaps = sum(watch.gaps for watch in watches) + len(in_vain)
    if gaps == 0:
        return None
    kept = (ns for watch in watches for ns in watch.longest)
    longest = sorted([*kept, *in_vain], reverse=True)
    return longest[min(gaps // late_share, len(longest) - 1)]
