"""RAD: steps that fill whole matrix tiles, prompts before decodes, and nothing but throughput.

After Algorithm 1 of https://arxiv.org/abs/2508.01002 (section 4). A step is one of two kinds:

    decode mode     when b_col requests decode, or no prompt is left: one token of each decode
    prefill mode    else: the next b_lcm tokens of the oldest prompt, and no decode

so a decode step holds just b_col tokens while there are prompts, and no more than b_col requests
ever decode: a prompt ends only in prefill mode. Latency plays no part; decodes wait for as long as
it takes to fill the tile. It is the reference for the token rate that a device can reach
(Theorems 1 and 2), not a policy for users who wait.

`cycle` is the paper's N: that many prompts are begun, then everyone runs to the end before the next
are; infinite means no cycles. What the paper leaves open, and what was chosen:

* Tile sizes depend on the device: both default to the profile's tile, or 128 tokens where the
  profile shows none (the step that fits the authors' own measurements). On a device that pays a
  fixed price per step, larger ones cost less per token.
* Prompts are multiples of b_lcm in the paper. Here the last chunk of a prompt is its remainder,
  alone in its step: the rest of that tile is lost, as it would be with padding.
* Memory holds b_col requests of any size in the paper. Here a prompt needs blocks for all of it
  above a watermark, and while the oldest has none, every decode runs; the latest arrival is
  evicted when decodes run out of blocks, and comes back as the old prompt it is.
* While a cycle drains, whoever was evicted waits for the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.core.latency_model import LatencyModel
from engine.core.policies.admission import num_seats, whole_history
from engine.core.policy import Rank, Room, SchedulingPolicy, StepLimits, View
from engine.core.request import Request

DEFAULT_TILE = 128
DECODE_MODE = StepLimits(max_prefills=0)
COUNTED = (1,)  # the note of a request that was counted in a cycle


class Rad(SchedulingPolicy):
    """Decode mode and prefill mode, by the number of decodes."""

    __slots__ = ("_cycle", "_num_begun", "_tile_columns", "_tile_lcm")

    name = "rad"
    ranks_move = False

    def __init__(
        self, *, tile_columns: int, tile_lcm: int | None = None, cycle: float = math.inf
    ) -> None:
        self._tile_columns = tile_columns
        self._tile_lcm = tile_lcm or tile_columns
        self._cycle = cycle
        self._num_begun = 0  # in this cycle

    def limits(self, view: View) -> StepLimits:
        """Full decodes, or one chunk of one prompt."""
        columns = num_seats(view, self._tile_columns)
        if not view.num_running:
            self._num_begun = 0
        may_begin = view.num_waiting > 0 and self._num_begun < self._cycle
        if len(view.decoding) >= columns or not (view.prefilling or may_begin):
            return DECODE_MODE
        return StepLimits(
            max_tokens=self._tile_lcm,
            max_decodes=0,
            max_prefills=1,
            max_running=columns if may_begin else view.num_running,
        )

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """The oldest."""
        return (request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """All of its tokens, above the watermark."""
        return whole_history(request, view)

    def observe(self, requests: Sequence[Request], elapsed_ns: int, view: View) -> None:
        """Count whoever began in this step towards its cycle, once."""
        for request in requests:
            if not request.note:
                request.note = COUNTED
                self._num_begun += 1


def default_tile(model: LatencyModel) -> int:
    """Return the tile that the profile shows, or the usual one."""
    tile = model.profile.tile_tokens
    return tile if tile > 1 else DEFAULT_TILE
