"""How long a decode can wait: until its token is due, and how long its promise lets it be away.

It knows one request's promise and its tokens' times. Two kinds of absence keep a promise. In
stream mode tokens that came early are a bank, spent by pausing. In gap mode one token in a hundred
may be late (see scheduling notes, section 1), by however much: a request that has had a hundred
tokens on time owns one such pause. Where the door paces a stream, in either mode, only what it
still holds back is spent: a pace is there for the client to see an even stream.
"""

from __future__ import annotations

from engine.core.request import Request, TbtMode

TOKENS_PER_LATE_ONE = 100
BANK_LEFT_NS = 2_000_000_000  # of a bank this much is left alone: the way back takes time
NEVER_NS = 1 << 62


def due_ns(request: Request) -> int:
    """Return when the next token of a decoding request is due."""
    slo = request.order.slo
    if request.first_token_ns is None:
        return NEVER_NS
    if slo.tbt_mode is TbtMode.GAP:
        return request.shown_ns + slo.tbt_ns
    return request.first_token_ns + len(request.output) * slo.tbt_ns


def owns_late_token(request: Request) -> bool:
    """True where one more late token would still be at most one in a hundred of those so far."""
    return (request.late_tokens + 1) * TOKENS_PER_LATE_ONE <= len(request.output)


def absence_ns(request: Request, now_ns: int, longest_ns: int) -> int:
    """Return how long a decoding request may be away from now on and keep its promise.

    A pause paid with a late token has no length of its own; none is longer than `longest_ns`.
    """
    slo = request.order.slo
    left_ns = due_ns(request) - now_ns
    if slo.pace_ns:
        left_ns = min(left_ns, request.shown_ns + slo.tbt_ns - now_ns)
    elif slo.tbt_mode is TbtMode.GAP:
        return longest_ns if owns_late_token(request) else 0
    return min(max(0, left_ns - BANK_LEFT_NS), longest_ns)
