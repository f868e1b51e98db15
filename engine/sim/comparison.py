"""A comparison from beginning to end: check it, run the grid, find capacities, fill a folder.

The commands and the benchmarks are thin hands on this file. It knows no command line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from engine.core.clock import NS_PER_MS
from engine.core.latency_profile import load_profile
from engine.sim.capacity import (
    START_RATE,
    TOLERANCE,
    Capacity,
    Criterion,
    EverySlo,
    Key,
    capacities_of,
    find_capacities,
)
from engine.sim.choices import PolicyChoice
from engine.sim.grid import Grid, default_jobs
from engine.sim.point import PointSpec, Scene
from engine.sim.report import capacity_fields, write_report
from engine.sim.report_page import Report
from engine.sim.tally import Job, Tallies, Tally, job_of, run_job
from engine.sim.trace import TraceRow, load_trace
from engine.sim.workload import SimTier

CAPACITY_FORMAT = "tiergate.capacity.v1"
HIGHEST_RATE = 1e6
MOST_REQUESTS = 10_000_000
MOST_POINTS = 100_000

# Hears of each point as it ends: what it was, how many are done, how many there are (0: unknown).
Progress: TypeAlias = Callable[[Tally, int, int], None]


class PointError(ValueError):
    """A point cannot be simulated as asked; one sentence names the field."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to compare: `base` holds all that the points share. `search` bisects for capacities."""

    base: PointSpec
    choices: Sequence[PolicyChoice]
    rates: Sequence[float]
    seeds: Sequence[int]
    criterion: Criterion = EverySlo()  # noqa: RUF009 - a value without state
    search: bool = False
    tolerance: float = TOLERANCE
    jobs: int | None = None
    title: str = "Scheduling policies compared"
    version: str = ""

    def jobs_of(self) -> list[Job]:
        """Return the points of the grid: by policy, then rate, then seed."""
        return [
            job_of(choice, self.base, rate, seed)
            for choice in self.choices
            for rate in self.rates
            for seed in self.seeds
        ]


def check(spec: PointSpec, rows: Sequence[TraceRow]) -> None:
    """Raise PointError, or another ValueError of one sentence, unless this point can be run."""
    if not 0 < spec.rate <= HIGHEST_RATE:
        raise PointError(f"rate must be above 0 and at most {HIGHEST_RATE:g}, not {spec.rate:g}")
    if not 1 <= spec.requests <= MOST_REQUESTS:
        raise PointError(f"requests must be 1 to {MOST_REQUESTS}, not {spec.requests}")
    if not 1 <= spec.tenants <= MOST_REQUESTS:
        raise PointError(f"tenants must be 1 to {MOST_REQUESTS}, not {spec.tenants}")
    profile = load_profile(spec.profile)
    if spec.num_kv_tokens is not None and spec.num_kv_tokens < profile.block_size:
        raise PointError(
            f"kv tokens must be at least one block of {profile.block_size}, "
            f"not {spec.num_kv_tokens}"
        )
    if spec.num_host_kv_tokens is not None and spec.num_host_kv_tokens < 0:
        raise PointError(f"host tokens must not be negative, not {spec.num_host_kv_tokens}")
    if spec.horizon_s is not None and not 0 < spec.horizon_s < math.inf:
        raise PointError(f"horizon must be above 0 seconds, not {spec.horizon_s:g}")
    for field in ("max_model_len", "max_output_tokens"):
        value = getattr(spec, field)
        if value is not None and value < 1:
            raise PointError(f"{field} must be at least 1, not {value}")
    # Everything that a run builds, built once and thrown away.
    Scene(spec, rows).core()


def check_all(
    base: PointSpec, choices: Sequence[PolicyChoice], rates: Sequence[float], seeds: Sequence[int]
) -> Sequence[TraceRow]:
    """Check every policy at every rate before anything runs; returns the trace's rows."""
    rows = load_trace(base.trace)
    if not choices or not rates or not seeds:
        raise PointError("name at least one policy, one rate and one seed")
    if len(choices) * len(rates) * len(seeds) > MOST_POINTS:
        raise PointError(f"that is more than {MOST_POINTS} points")
    for rate in rates:
        if not 0 < rate <= HIGHEST_RATE:
            raise PointError(f"rate must be above 0 and at most {HIGHEST_RATE:g}, not {rate:g}")
    for choice in choices:
        check(job_of(choice, base, rates[0], seeds[0]).spec, rows)
    return rows


def compare(
    comparison: Comparison, folder: Path, rows: Sequence[TraceRow], progress: Progress
) -> Report:
    """Run a checked comparison and fill `folder`, an empty one; returns what the page shows."""
    records = folder / "records"
    records.mkdir()
    slugs = {choice.label: choice.slug for choice in comparison.choices}
    jobs = [
        dataclasses.replace(job, records=records / record_name(slugs[job.label], job.spec))
        for job in comparison.jobs_of()
    ]
    with Grid(run_job, comparison.jobs) as grid:
        done = _Counter(progress, len(jobs))
        tallies = Tallies(grid.run(jobs, done.take))
        if comparison.search:
            capacities = _search(comparison, grid, _Counter(progress, 0))
        else:
            capacities = capacities_of(tallies, comparison.criterion)
    report = Report(
        title=comparison.title,
        facts=facts(comparison, rows),
        tiers=comparison.base.tiers,
        tallies=tallies,
        capacities=capacities,
        criterion=comparison.criterion,
        capacity_is_searched=comparison.search,
    )
    write_report(folder, report, run_fields(comparison, rows))
    return report


def capacity_report(
    comparison: Comparison, rows: Sequence[TraceRow], capacities: Sequence[Capacity]
) -> dict[str, Any]:
    """Return capacities and what was asked for as the documented fields of a JSON file."""
    asked = run_fields(comparison, rows)
    del asked["rates"]
    return {
        "format": CAPACITY_FORMAT,
        "criterion": comparison.criterion.text,
        "tolerance": comparison.tolerance,
        "policies": [capacity_fields(one) for one in capacities],
        "run": asked,
    }


def record_name(slug: str, spec: PointSpec) -> str:
    """Return the name of a point's file of records."""
    return f"{slug}_{spec.rate:g}_{spec.seed}.csv.gz"


def search(
    comparison: Comparison,
    progress: Progress,
    *,
    start: float = START_RATE,
    lowest: float,
    highest: float,
) -> list[Capacity]:
    """Return the capacities of a checked comparison; its rates are not used."""
    with Grid(run_job, comparison.jobs) as grid:
        return _search(comparison, grid, _Counter(progress, 0), start, lowest, highest)


def _search(
    comparison: Comparison,
    grid: Grid[Job, Tally],
    done: _Counter,
    start: float = START_RATE,
    lowest: float = 1e-3,
    highest: float = 1e4,
) -> list[Capacity]:
    by_label = {choice.label: choice for choice in comparison.choices}

    def evaluate(keys: Sequence[Key]) -> list[Tally]:
        jobs = [job_of(by_label[label], comparison.base, rate, seed) for label, rate, seed in keys]
        return grid.run(jobs, done.take)

    return find_capacities(
        [choice.label for choice in comparison.choices],
        comparison.seeds,
        comparison.criterion,
        evaluate,
        tolerance=comparison.tolerance,
        start=start,
        lowest=lowest,
        highest=highest,
        width=comparison.jobs or default_jobs(),
    )


class _Counter:
    """Counts points as they end and passes them on."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def take(self, index: int, tally: Tally) -> None:
        """One more has ended."""
        self._done += 1
        self._progress(tally, self._done, self._total)


def facts(comparison: Comparison, rows: Sequence[TraceRow]) -> list[tuple[str, str]]:
    """Return the head of a page: what was run, in words."""
    base = comparison.base
    profile = load_profile(base.profile)
    kv = profile.num_kv_tokens if base.num_kv_tokens is None else base.num_kv_tokens
    host = base.num_host_kv_tokens
    host = profile.num_host_kv_tokens if host is None else host
    versions = f"{comparison.version}, Python {platform.python_version()}".removeprefix(", ")
    return [
        ("trace", f"{Path(base.trace).name}, {len(rows):,} rows, sha256 {digest(base.trace)[:16]}"),
        ("profile", profile.name),
        *([] if base.lengths.is_as_recorded else [("lengths", base.lengths.text)]),
        ("requests a point", f"{base.requests:,}"),
        ("seeds", ", ".join(map(str, comparison.seeds))),
        ("arrivals", base.arrivals),
        ("length predictor", base.predictor),
        ("KV cache", f"{kv:,} tokens on the device, {host:,} on the host"),
        ("tenants", "those of the trace" if rows[0].tenant else str(base.tenants)),
        ("laws", "asserted after every step" if base.check_laws else "not checked in this run"),
        ("versions", versions),
        *[(f"tier {tier.name}", promise(tier)) for tier in base.tiers],
    ]


def promise(tier: SimTier) -> str:
    """Return what a tier promises, in words."""
    slo = tier.slo
    per_1k = slo.ttft_ns_per_1k_prompt_tokens / NS_PER_MS
    return (
        f"rank {slo.rank}, {100 * tier.share:g} % of the requests; TTFT {slo.ttft_ns / NS_PER_MS:g}"
        + (f" + {per_1k:g} per 1,000 prompt tokens" if per_1k else "")
        + f" ms; {slo.tbt_ns / NS_PER_MS:g} ms between tokens ({slo.tbt_mode.value}); "
        f"objective {100 * tier.objective:g} %"
    )


def run_fields(comparison: Comparison, rows: Sequence[TraceRow]) -> dict[str, Any]:
    """Return what was asked for as the documented fields of `run.json`."""
    base = comparison.base
    return {
        "version": comparison.version,
        "trace": {
            "name": Path(base.trace).name,
            "sha256": digest(base.trace),
            "rows": len(rows),
        },
        "lengths": dataclasses.asdict(base.lengths),
        "profile": Path(base.profile).name,
        "policies": [dataclasses.asdict(choice) for choice in comparison.choices],
        "rates": list(comparison.rates),
        "seeds": list(comparison.seeds),
        "requests": base.requests,
        "arrivals": base.arrivals,
        "predictor": base.predictor,
        "tenants": base.tenants,
        "num_kv_tokens": base.num_kv_tokens,
        "num_host_kv_tokens": base.num_host_kv_tokens,
        "max_model_len": base.max_model_len,
        "max_output_tokens": base.max_output_tokens,
        "check_laws": base.check_laws,
        "tiers": [tier_fields(tier) for tier in base.tiers],
    }


def tier_fields(tier: SimTier) -> dict[str, Any]:
    """Return a tier as the fields of a tier file."""
    slo = tier.slo
    return {
        "name": tier.name,
        "rank": slo.rank,
        "ttft_ms": slo.ttft_ns / NS_PER_MS,
        "ttft_ms_per_1k_prompt_tokens": slo.ttft_ns_per_1k_prompt_tokens / NS_PER_MS,
        "tbt_ms": slo.tbt_ns / NS_PER_MS,
        "tbt_mode": slo.tbt_mode.value,
        "objective": tier.objective,
        "share": tier.share,
        "weight": tier.weight,
    }


def digest(path: str) -> str:
    """Return the SHA-256 of a file: which trace it was, whatever its name."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
