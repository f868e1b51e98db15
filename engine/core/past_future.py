"""The most context that a set of requests will need at once, if their lengths are as predicted.

It knows lengths and no blocks, tiers or time. From "Past-Future Scheduler for LLM Serving under
SLA Guarantees" (ASPLOS 2025, https://arxiv.org/abs/2507.10150): all grow by one token per step and
leave in the order of what remains, so memory peaks just before one of them leaves. Handed in is a
high quantile of what remains, where the paper draws it from the history.
"""

from __future__ import annotations

from collections.abc import Iterable


def future_peak(groups: Iterable[tuple[float, int, float]]) -> float:
    """Return the peak in tokens of groups `(remaining tokens, requests, their context together)`.

    With the requests sorted by what remains, r_1 >= r_2 >= ..., and contexts c_i, it is the
    largest of `i * r_i + c_1 + ... + c_i`. A group stands for requests that all have as much left.
    """
    count, held, peak = 0, 0.0, 0.0
    for remaining, num_requests, context in sorted(groups, reverse=True):
        count += num_requests
        held += context
        peak = max(peak, count * remaining + held)
    return peak


def blocks_at(peak_tokens: float, num_requests: int, block_size: int) -> int:
    """Return the blocks that so many tokens of so many requests fill: the last ones half, each."""
    return int(peak_tokens / block_size + num_requests / 2) + 1
