"""Who asks for what and when: a list of requests drawn from a trace by a seed; it knows no engine.

Arrivals, the choice of rows, tiers and tenants each have their own random stream: another rate,
another policy or other tier shares never change which request is which. With drawn arrivals
(`poisson`, `gamma`) the rows are shuffled by the seed and the first N are taken, from the start
again where there are fewer (https://github.com/agrimUT/SLAI shuffles likewise). With recorded
arrivals N consecutive rows are taken from a place the seed chooses, going round at the end.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.request import Slo
from engine.sim.arrivals import (
    ArrivalError,
    ArrivalProcess,
    draw_gaps,
    parse_arrivals,
    scale_times,
    times_from_gaps,
)
from engine.sim.trace import TraceError, TraceRow, load_trace, merge_traces

__all__ = [
    "ArrivalError",
    "SimRequest",
    "SimTier",
    "TraceError",
    "TraceRow",
    "Workload",
    "draw_workload",
    "load_trace",
    "merge_traces",
]


@dataclass(frozen=True, slots=True)
class SimTier:
    """A tier of the simulated traffic: its contract, its share of the requests, its objective."""

    name: str
    slo: Slo
    share: float
    objective: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request to come. Its output length is the simulator's secret (law L26).

    `previous_outputs` are its conversation's earlier answers, `asked_tokens` what was asked in each
    turn, `text` is what it asks where known, `max_tokens` the most it wants where the trace says.
    """

    id: str
    arrival_ns: int
    num_prompt_tokens: int
    num_output_tokens: int
    tier: SimTier
    tenant: str
    prefix_block_ids: tuple[int, ...] = ()
    previous_outputs: tuple[int, ...] = ()
    text: str = ""
    row: int = -1  # of the trace, from 0
    asked_tokens: tuple[int, ...] = ()
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival, and the tiers they belong to."""

    requests: tuple[SimRequest, ...]
    tiers: tuple[SimTier, ...]

    @property
    def has_prefixes(self) -> bool:
        """True where any request says what its prompt begins with."""
        return any(request.prefix_block_ids for request in self.requests)


def draw_workload(
    rows: Sequence[TraceRow],
    tiers: Sequence[SimTier],
    *,
    rate: float,
    requests: int,
    seed: int,
    arrivals: str = "poisson",
    tenants: int = 1,
) -> Workload:
    """Return `requests` requests at `rate` a second; tenants of the trace, else one of `tenants`.

    Raises ArrivalError for arrivals that are unknown, or recorded ones that the trace lacks.
    """
    if not rows or not tiers or requests < 1 or rate <= 0 or tenants < 1:
        raise ValueError("a workload needs rows, tiers, requests, tenants and a rate above 0")
    process = parse_arrivals(arrivals)
    chosen, times = _choose(rows, process, requests, rate, seed)
    tier_rng = random.Random(f"{seed}/tiers")
    tenant_rng = random.Random(f"{seed}/tenants")
    total = sum(tier.share for tier in tiers)
    made = []
    for number, (place, at_ns) in enumerate(zip(chosen, times, strict=True)):
        row = rows[place]
        tier = _pick_tier(tiers, tier_rng.random() * total)
        drawn = f"tenant-{tenant_rng.randrange(tenants)}"
        made.append(
            SimRequest(
                id=f"r{number:07d}",
                arrival_ns=at_ns,
                num_prompt_tokens=row.num_prompt_tokens,
                num_output_tokens=row.num_output_tokens,
                tier=tier,
                tenant=row.tenant or drawn,
                prefix_block_ids=row.prefix_block_ids,
                previous_outputs=row.previous_outputs,
                text=row.text,
                row=place,
                asked_tokens=row.asked_tokens,
                max_tokens=row.max_tokens,
            )
        )
    return Workload(tuple(made), tuple(tiers))


def _pick_tier(tiers: Sequence[SimTier], coin: float) -> SimTier:
    for tier in tiers:
        coin -= tier.share
        if coin < 0:
            return tier
    return tiers[-1]


def _choose(
    rows: Sequence[TraceRow], process: ArrivalProcess, count: int, rate: float, seed: int
) -> tuple[list[int], list[int]]:
    """Return the places of the rows and their arrival times, in order of arrival."""
    row_rng, time_rng = random.Random(f"{seed}/rows"), random.Random(f"{seed}/arrivals")
    if process.kind != "trace":
        order = list(range(len(rows)))
        row_rng.shuffle(order)
        gaps = draw_gaps(process, count, time_rng)
        chosen = [order[i % len(order)] for i in range(count)]
        return chosen, times_from_gaps(gaps, rate)
    recorded = [row.arrival_s for row in rows if row.arrival_s is not None]
    if len(recorded) < len(rows):
        raise ArrivalError("arrivals trace: the trace has no arrival_s or arrival_ms")
    start = row_rng.randrange(len(rows))
    lap_s = recorded[-1] * len(rows) / max(1, len(rows) - 1)  # one mean gap after the last
    timed = []
    for i in range(start, start + count):
        lap, index = divmod(i, len(rows))
        jitter = time_rng.random() * process.jitter_s
        timed.append((lap * lap_s + recorded[index] + jitter, i, index))
    timed.sort()
    first_s = timed[0][0]
    times = scale_times([at_s - first_s for at_s, _, _ in timed], rate)
    return [index for _, _, index in timed], times
