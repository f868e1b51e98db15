"""From a simulated request to the order that the core sees; the true length stays behind (L26).

`max_tokens` is what the trace says, else one cap for everyone, and less where the context window
ends sooner. Only a request that can never fit shows its true length, and the core refuses that one
before any policy sees it. The lengths of its conversation's earlier answers go with the order, as
in service.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.executor import Capacity
from engine.core.request import RequestOrder, SamplingParams
from engine.sim.executor import EOS
from engine.sim.trace import PREFIX_BLOCK_TOKENS, TraceRow
from engine.sim.workload import SimRequest

FIRST_PREFIX_TOKEN = 1 << 31  # token ids of prefix blocks, 32 bits and apart from everyone's own


def output_cap(rows: Sequence[TraceRow]) -> int:
    """Return the `max_tokens` a trace asks for: its longest answer, up to the next power of two."""
    longest = max(row.num_output_tokens for row in rows)
    return 1 << (longest - 1).bit_length()


class OrderMaker:
    """Makes the orders of one run, each when it arrives: prompts are long and most are short-lived.

    Prompts are zeros where nobody has prefixes. Else equal prefix blocks have equal tokens, and
    what comes after them is the request's own.
    """

    __slots__ = ("_cap", "_count", "_has_prefixes", "_limit", "_samplings", "_zeros")

    def __init__(
        self, capacity: Capacity, max_output_tokens: int, *, has_prefixes: bool = False
    ) -> None:
        self._limit = min(capacity.max_model_len, capacity.num_blocks * capacity.block_size)
        self._cap = max_output_tokens
        self._has_prefixes = has_prefixes
        self._count = 0
        self._zeros = (0,) * self._limit
        self._samplings: dict[int, SamplingParams] = {}

    def order(self, request: SimRequest) -> RequestOrder:
        """Return the order for this request."""
        room = self._limit - request.num_prompt_tokens
        fits = request.num_output_tokens <= room
        wanted = self._cap if request.max_tokens is None else request.max_tokens
        max_tokens = min(wanted, room) if fits else request.num_output_tokens
        sampling = self._samplings.get(max_tokens)
        if sampling is None:
            sampling = SamplingParams(max_tokens=max_tokens, stop_token_ids=(EOS,))
            self._samplings[max_tokens] = sampling
        tier = request.tier
        return RequestOrder(
            id=request.id,
            prompt=self._prompt(request),
            sampling=sampling,
            arrival_ns=request.arrival_ns,
            tenant=request.tenant,
            tier=tier.name,
            cache_salt=request.tenant,
            weight=tier.weight,
            slo=tier.slo,
            previous_outputs=request.previous_outputs,
        )

    def _prompt(self, request: SimRequest) -> tuple[int, ...]:
        count = request.num_prompt_tokens
        if not self._has_prefixes:
            return self._zeros[:count] if count <= self._limit else (0,) * count
        tokens: list[int] = []
        for block in request.prefix_block_ids:
            if len(tokens) >= count:
                break
            tokens += [FIRST_PREFIX_TOKEN + block] * PREFIX_BLOCK_TOKENS
        del tokens[count:]
        self._count += 1
        tokens += [self._count] * (count - len(tokens))
        return tuple(tokens)
