"""SLAI: a decode may wait until its last schedulable time, and prompts use the steps it skips.

After section 6 of https://arxiv.org/abs/2508.01002 and its authors' code
(https://github.com/agrimUT/SLAI). When the step that made a request's newest token ends,

    LST = end of that step + TBT - offset * mean time of all steps so far

is written down once and stays while the request is held back. It is critical from that instant on
(`now >= LST`). A step holds, within 512 tokens: critical decodes, prompts under way in the order in
which they were begun, new prompts, and then the other decodes by LST as far as tokens and the limit
of 128 decodes reach. Only the last are ever held back, so nothing idles.

The four published variants: `spf` (shortest prompt first), `priority` (strict requests before the
others) and `dynamic` (offset 5 while less than 96 % of the blocks are in use, else 10; fixed: 10).
With all three on it is the flagship with priority. Nothing ages: long prompts starve under load.

What a source leaves open, or this engine does otherwise:

* The mean includes the step that has just ended, and use is measured after the finished gave their
  blocks back, both as in the authors' code.
* "Strict" is a flag of the authors' requests; here the tier's rank says it, lower ranks first.
* Out of blocks, the authors' critical decode evicts the prompt begun last, and where there is none
  itself, never another decode. `keep_rank` puts prompts behind decodes in that order. Where only
  decodes are left, one of those without a block falls: not the one that asked, which is the most
  urgent, but the one among them with the latest LST. A lone one waits in place for a block.
* A decode that is not critical never evicts here; it waits in place (in the authors' code it can
  only evict itself, as no paused prompt is left in the list at that point).
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.policies.admission import num_seats, whole_history
from engine.core.policy import Rank, Room, SchedulingPolicy, StepLimits, View
from engine.core.prompt_plan import PromptOrder, PromptPlan
from engine.core.request import Request, Status

OFFSET_LOW = 5.0  # mean step times, while memory is at hand
OFFSET_HIGH = 10.0


class Slai(SchedulingPolicy):
    """Last schedulable times; the defaults are the flagship with priority."""

    __slots__ = (
        "_dynamic",
        "_limits",
        "_max_running",
        "_mean_step_ns",
        "_memory_limit",
        "_num_steps",
        "_offset_high",
        "_offset_low",
        "_priority",
        "_shortest_first",
    )

    name = "slai"
    ranks_move = False

    def __init__(
        self,
        *,
        shortest_first: bool = True,
        priority: bool = True,
        dynamic: bool = True,
        offset_low: float = OFFSET_LOW,
        offset_high: float = OFFSET_HIGH,
        memory_limit: float = 0.96,
        token_budget: int = 512,
        max_running: int = 128,
        decode_limit: int = 128,
    ) -> None:
        self._shortest_first = shortest_first
        self._priority = priority
        self._dynamic = dynamic
        self._offset_low = offset_low
        self._offset_high = offset_high
        self._memory_limit = memory_limit
        self._max_running = max_running
        self._limits = (token_budget, decode_limit)
        self._mean_step_ns = 0.0
        self._num_steps = 0

    def limits(self, view: View) -> StepLimits:
        """The same in every step."""
        token_budget, decode_limit = self._limits
        return StepLimits(
            max_tokens=token_budget,
            max_decodes=decode_limit,
            max_running=num_seats(view, self._max_running),
        )

    def due(self, request: Request, view: View) -> bool:
        """Critical, ties included; a request nobody wrote a time for cannot wait."""
        return not request.note or view.now_ns >= request.note[0]

    @property
    def prompt_plan(self) -> PromptPlan:
        """By class where that is on; by arrival, or by length."""
        order = PromptOrder.SHORTEST if self._shortest_first else PromptOrder.ARRIVAL
        return PromptPlan(order, by_class=bool(self._priority))

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """Prompts under way, first begun first; then new ones: strict first, shortest first."""
        order = request.order
        if request.status is Status.RUNNING:
            return (0, request.timeline[-1].at_ns, 0, order.arrival_ns, request.id)
        strict = order.slo.rank if self._priority else 0
        length = request.num_tokens if self._shortest_first else 0
        return (1, strict, length, order.arrival_ns, request.id)

    def keep_rank(self, request: Request, view: View) -> Rank:
        """Decodes by LST, then prompts, the one begun last at the very back.

        While blocks are short, decodes that ask for one stand behind those that do not.
        """
        order = request.order
        if not request.is_decoding:
            began_ns = request.timeline[-1].at_ns
            waits = request.status is Status.WAITING
            return (2 if waits else 1, 0, began_ns, order.arrival_ns, request.id)
        lst_ns = request.note[0] if request.note else 0
        is_short = view.free_blocks < len(view.decoding)
        asks = is_short and request.num_computed % view.capacity.block_size == 0
        return (0, 1 if asks else 0, lst_ns, order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """All of its tokens, above the watermark."""
        return whole_history(request, view)

    def observe(self, requests: Sequence[Request], elapsed_ns: int, view: View) -> None:
        """Take the step into the mean, then write down the LST of everyone who got a token."""
        self._num_steps += 1
        self._mean_step_ns += (elapsed_ns - self._mean_step_ns) / self._num_steps
        margin_ns = self._offset(view) * self._mean_step_ns
        for request in requests:
            if request.is_decoding and request.last_token_ns is not None:
                slack_ns = request.order.slo.tbt_ns - margin_ns
                request.note = (request.last_token_ns + int(slack_ns),)

    def _offset(self, view: View) -> float:
        if self._dynamic and view.device_use < self._memory_limit:
            return self._offset_low
        return self._offset_high
