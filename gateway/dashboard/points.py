"""The points of the live charts, as JSON has them: a dot a request, a sample a second; draws none.

A dot says what share of its promise a request took, so that tiers with different promises stand in
one chart with one line at 100 %. Times are Unix ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Reversible, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, pairwise
from typing import Any

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.stats import Snapshot
from tenants.slo import SloRecord
from tenants.values import TierRecord

SPAN_S = 300
MOST_DOTS = 20_000
SUMMARY_S = 60

Dot = list[Any]  # [Unix ms of its end, tier, TTFT share, TBT share, met]
Sample = dict[str, Any]


def in_order(tiers: Iterable[TierRecord]) -> tuple[str, ...]:
    """Return the tiers' names by rank: the place there is a tier's colour on every page."""
    return tuple(tier.name for tier in sorted(tiers, key=lambda tier: (tier.rank, tier.name)))


def tier_lines(tiers: Iterable[TierRecord], chart: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chart whose lines are named like tiers, each with its tier's `place`."""
    places = {name: place for place, name in enumerate(in_order(tiers))}
    lines = [line | {"place": places.get(line["label"], len(places))} for line in chart["lines"]]
    return {**chart, "lines": lines}


def newest_dots(latest: Reversible[SloRecord], num: int) -> list[Dot]:
    """Return the dots of the last `num` requests, the oldest first.

    `latest` are in the order of their ends. Requests without a token have no dot: they are counted.
    """
    found: list[Dot] = []
    for record in islice(reversed(latest), min(num, MOST_DOTS)):
        if record.ttft_ns is None:
            continue
        at_ms = record.arrival.timestamp() * 1000 + record.total_ns / NS_PER_MS
        tbt = record.needed_tbt_ns
        found.append(
            [
                round(at_ms, 1),
                record.tier,
                _percent(record.ttft_ns, record.ttft_due_ns),
                None if tbt is None else _percent(tbt, record.tbt_ns),
                record.met,
            ]
        )
    found.reverse()
    return found


def _percent(part: int, whole: int) -> float:
    return round(100 * part / max(whole, 1), 1)


def samples_of(history: Sequence[tuple[int, Snapshot]], now_ns: int, now: datetime) -> list[Sample]:
    """Return the engine's samples as rates and levels, each against the one before it."""
    found = []
    for (before_ns, before), (at_ns, snapshot) in pairwise(history):
        seconds = (at_ns - before_ns) / NS_PER_S
        if seconds <= 0 or snapshot.submitted_total < before.submitted_total:
            continue
        found.append(
            {
                "t": round(now.timestamp() * 1000 - (now_ns - at_ns) / NS_PER_MS),
                "out": _rate(before, snapshot, "output_tokens_total", seconds),
                "computed": _rate(before, snapshot, "computed_tokens_total", seconds),
                "waiting": dict(snapshot.waiting_by_tier),
                "running": snapshot.running,
                "parked": snapshot.parked,
                "kv": _share(snapshot.num_blocks - snapshot.free_blocks, snapshot.num_blocks),
                "host": _share(
                    snapshot.num_host_blocks - snapshot.free_host_blocks, snapshot.num_host_blocks
                ),
            }
        )
    return found


def _rate(before: Snapshot, now: Snapshot, total: str, seconds: float) -> float:
    gained: int = getattr(now, total) - getattr(before, total)
    return round(gained / seconds, 1)


def _share(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """One tier's dots of the last minute; shares in per cent of the promise."""

    tier: str
    num: int
    median: float | None
    high: float | None  # the 95th of a hundred
    worst: float | None
    late: int


def summaries(dots: Iterable[Dot], tiers: Sequence[str], column: int) -> list[Summary]:
    """Return a summary of each tier for the column 2 (TTFT) or 3 (TBT) of dots."""
    by_tier: Mapping[str, list[float]] = {tier: [] for tier in tiers}
    for dot in dots:
        if dot[column] is not None and dot[1] in by_tier:
            by_tier[dot[1]].append(float(dot[column]))
    found = []
    for tier, values in by_tier.items():
        values.sort()
        late = sum(value > 100 for value in values)
        found.append(
            Summary(tier, len(values), _at(values, 0.5), _at(values, 0.95), _at(values, 1.0), late)
        )
    return found


def _at(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    return values[min(len(values) - 1, int(share * len(values)))]
