"""What published schedulers ask before they start a prompt; it knows no order and no policy.

Room for the whole prompt above a watermark is the rule of the block managers of vLLM 0.x and of
Sarathi-Serve (https://github.com/microsoft/sarathi-serve), which SLAI inherits.
"""

from __future__ import annotations

import math

from engine.core.policy import Room, View
from engine.core.request import Request

WATERMARK = 0.01  # share of the pool kept free at admission, for the growth of those running


def watermark_blocks(view: View) -> int:
    """Return how many blocks admission leaves alone."""
    return math.ceil(view.capacity.num_blocks * WATERMARK)


def whole_history(request: Request, view: View) -> Room:
    """Blocks for all tokens there are (after an eviction the answer so far too), above the mark."""
    return Room(claim_tokens=request.num_tokens, spare_blocks=watermark_blocks(view))


def num_seats(view: View, max_running: int) -> int:
    """Return how many requests may be started and not ended: never more than a step has rows."""
    return min(max_running, view.capacity.max_batch_requests)
