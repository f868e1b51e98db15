"""What reports and searches keep of a simulated point: its fields, and distributions as counts.

Small values, so that a grid of thousands of points fits into memory; the requests themselves go
to files. It knows points and records, and no grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.core.clock import NS_PER_MS
from engine.sim.choices import PolicyChoice
from engine.sim.point import PointSpec, run_point
from engine.sim.record_file import write_records
from engine.sim.records import RequestRecord
from engine.sim.statistics import Histogram, Interval, interval, mean, quantile
from engine.sim.summary import ENDED

ALL = "(all)"  # stands where a tier's name would, for what belongs to the whole point


@dataclass(frozen=True, slots=True)
class Job:
    """A point to run under a label, and where its records go (nowhere for None)."""

    label: str
    spec: PointSpec
    records: Path | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """One point: policy (by its label), rate and seed. Maps by tier go from rank 0 on.

    `ttft` counts times to the first token, `lateness` each request's worst token (0 when never
    late), both of all requests offered: those that got no token are in neither's bins.
    `ttft_p50_ms` is the median over all tiers, infinite where half got no token;
    `normalised_mean_ms` the mean of (finish - arrival) / output tokens of those that ended by
    themselves, infinite where none did, and `unserved` how many did not.
    """

    label: str
    rate: float
    seed: int
    point: Mapping[str, Any]
    objectives: Mapping[str, float]
    ttft: Mapping[str, Histogram]
    lateness: Mapping[str, Histogram]
    ttft_p50_ms: float
    normalised_mean_ms: float
    unserved: int
    attainment_by_tenant: Mapping[str, float]

    def tier(self, name: str) -> Mapping[str, Any]:
        """Return what the point says of a tier."""
        found: Mapping[str, Any] = self.point["tiers"][name]
        return found

    def number(self, tier: str, *path: str) -> float | None:
        """Return a number of a tier (or of the whole point, for tier `ALL`), None where unknown."""
        value: Any = self.point if tier == ALL else self.tier(tier)
        for key in path:
            value = None if value is None else value.get(key)
        return None if value is None else float(value)


def job_of(choice: PolicyChoice, base: PointSpec, rate: float, seed: int) -> Job:
    """Return the job of a policy at a rate with a seed; `base` holds everything else."""
    changes: dict[str, Any] = {}
    if choice.predictor is not None:
        changes["predictor"] = choice.predictor
    if choice.num_kv_tokens is not None:
        changes["num_kv_tokens"] = choice.num_kv_tokens
    if choice.num_host_kv_tokens is not None:
        changes["num_host_kv_tokens"] = choice.num_host_kv_tokens
    spec = replace(
        base, policy=choice.name, policy_options=choice.options, rate=rate, seed=seed, **changes
    )
    return Job(choice.label, spec)


def run_job(job: Job) -> Tally:
    """Run a point, write its records where the job says, and return what is kept of it."""
    result = run_point(job.spec)
    if job.records is not None:
        write_records(job.records, result.records)
    return tally(job.label, job.spec, result.point, result.records)


def tally(
    label: str, spec: PointSpec, point: Mapping[str, Any], records: Sequence[RequestRecord]
) -> Tally:
    """Return what is kept of a point."""
    tiers = sorted(spec.tiers, key=lambda tier: tier.slo.rank)
    ttft, lateness = {}, {}
    for tier in tiers:
        mine = [r for r in records if r.tier == tier.name]
        ttft[tier.name] = Histogram.of([_ttft_ms(r) for r in mine], len(mine))
        late = [r.worst_lateness_ns / NS_PER_MS for r in mine if r.first_token_ns is not None]
        lateness[tier.name] = Histogram.of(late, len(mine))
    served = [
        (r.finished_ns - r.arrival_ns) / NS_PER_MS / r.output
        for r in records
        if r.finished_ns is not None and r.finish_reason in ENDED
    ]
    by_tenant: dict[str, list[float]] = {}
    for record in records:
        by_tenant.setdefault(record.tenant, []).append(float(record.met))
    return Tally(
        label=label,
        rate=spec.rate,
        seed=spec.seed,
        point={**point, "policy": label},
        objectives={tier.name: tier.objective for tier in tiers},
        ttft=ttft,
        lateness=lateness,
        ttft_p50_ms=quantile(sorted(map(_ttft_ms, records)), 0.5),
        normalised_mean_ms=mean(served) if served else math.inf,
        unserved=len(records) - len(served),
        attainment_by_tenant={name: mean(met) for name, met in sorted(by_tenant.items())},
    )


def _ttft_ms(record: RequestRecord) -> float:
    if record.first_token_ns is None:
        return math.inf
    return (record.first_token_ns - record.arrival_ns) / NS_PER_MS


class Tallies:
    """The tallies of a grid, by policy, rate and seed."""

    __slots__ = ("_cells", "labels", "objectives", "rates", "rows", "seeds")

    def __init__(self, rows: Sequence[Tally]) -> None:
        if not rows:
            raise ValueError("no tallies")
        self.rows = tuple(rows)
        self.labels = tuple(dict.fromkeys(row.label for row in rows))
        self.rates = tuple(sorted({row.rate for row in rows}))
        self.seeds = tuple(sorted({row.seed for row in rows}))
        self.objectives: Mapping[str, float] = rows[0].objectives
        self._cells: dict[tuple[str, float], list[Tally]] = {}
        for row in rows:
            self._cells.setdefault((row.label, row.rate), []).append(row)

    def cell(self, label: str, rate: float) -> Sequence[Tally]:
        """Return the tallies of all seeds at one rate."""
        return self._cells.get((label, rate), [])

    def interval(
        self, label: str, rate: float, tier: str, *path: str, is_log: bool = False
    ) -> Interval | None:
        """Return mean and interval of a number over the seeds, None where a seed lacks it.

        A seed whose quantile is null (infinite) makes the mean infinite, which is null again.
        With `is_log` they are those of the logarithms: a geometric mean.
        """
        values = [row.number(tier, *path) for row in self.cell(label, rate)]
        known = [value for value in values if value is not None and (value > 0 or not is_log)]
        if not known or len(known) < len(values):
            return None
        if not is_log:
            return interval(known)
        found = interval([math.log(value) for value in known])
        low, high = (None if v is None else math.exp(v) for v in (found.low, found.high))
        return Interval(math.exp(found.mean), low, high, found.count)
