"""The folder of a comparison: tables for programs, a page for people; it runs no simulation.

Columns and fields are documented in docs/simulator.md and are stable. No time of day and no path
is written, so that equal runs give equal folders.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.sim.capacity import Capacity
from engine.sim.plot_files import write_plots
from engine.sim.report_page import Report, page
from engine.sim.safe_output import MARK
from engine.sim.statistics import jain
from engine.sim.tally import ALL, Tallies, Tally

FORMAT = "tiergate.compare.v1"
QUANTILES = ("p50", "p95", "p99")
KEY_COLUMNS = ("policy", "rate", "seed", "tier")

# Column -> path within a tier's fields.
TIER_COLUMNS: dict[str, tuple[str, ...]] = {
    "objective": ("objective",),
    "offered": ("offered",),
    "attainment": ("attainment",),
    **{
        f"{name}_{q}": (name, q)
        for name in ("ttft_ms", "lateness_ms", "normalised_latency_ms")
        for q in QUANTILES
    },
    "normalised_latency_ms_mean": ("normalised_latency_ms", "mean"),
}
# Column of the rows of tier `(all)` -> field of the point.
TOTAL_COLUMNS = (
    "goodput",
    "tokens_per_s",
    "loaded_tokens_per_s",
    "preemptions",
    "max_preemptions",
    "parks",
    "recompute_share",
    "swap_bytes",
    "longest_wait_ms",
    "refused",
    "unfinished",
    "simulated_s",
)
FAIRNESS_COLUMNS = ("tenants", "jain_index", "worst_tenant", "worst_tenant_attainment")


def write_report(folder: Path, report: Report, run: dict[str, Any]) -> None:
    """Write everything but the records, which are there; `run` says what was asked for."""
    tallies = report.tallies
    _write_csv(folder / "summary.csv", summary_rows(tallies))
    _write_csv(folder / "intervals.csv", interval_rows(tallies))
    with (folder / "points.jsonl").open("w", encoding="utf-8") as file:
        for row in tallies.rows:
            file.write(json.dumps(row.point) + "\n")
    capacities = [capacity_fields(one) for one in report.capacities]
    searched = "bisection" if report.capacity_is_searched else "grid"
    fields = {
        "format": FORMAT,
        **run,
        "capacity": {
            "criterion": report.criterion.text,
            "method": searched,
            "policies": capacities,
        },
    }
    text = json.dumps(fields, indent=2) + "\n"
    (folder / MARK).write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(page(report), encoding="utf-8")
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    write_plots(plots, report)


def capacity_fields(one: Capacity) -> dict[str, Any]:
    """Return a capacity as its documented JSON fields."""
    return {
        "policy": one.label,
        "capacity": one.rate,
        "at_least": one.at_least,
        "mean": round(one.interval.mean, 6),
        "low": _rounded(one.interval.low),
        "high": _rounded(one.interval.high),
        "by_seed": {str(seed): rate for seed, rate in one.by_seed.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def summary_rows(tallies: Tallies) -> Iterator[Sequence[object]]:
    """Yield the header and a line for each tier of each point, and one for the whole point."""
    yield (*KEY_COLUMNS, *TIER_COLUMNS, *TOTAL_COLUMNS, *FAIRNESS_COLUMNS)
    for row in tallies.rows:
        key = (row.label, _cell(row.rate), row.seed)
        blank = [""] * (len(TOTAL_COLUMNS) + len(FAIRNESS_COLUMNS))
        for tier in row.objectives:
            cells = [_cell(row.number(tier, *path)) for path in TIER_COLUMNS.values()]
            yield (*key, tier, *cells, *blank)
        yield (*key, ALL, *_whole(row), *_fairness(row))


def _whole(row: Tally) -> list[str]:
    """Return the cells of a whole point: what is of a tier only stays empty."""
    own: dict[str, float | None] = {
        "offered": row.number(ALL, "requests"),
        "attainment": row.number(ALL, "attainment"),
        "ttft_ms_p50": row.ttft_p50_ms,
        "normalised_latency_ms_mean": row.normalised_mean_ms,
    }
    cells = [_cell(own.get(column)) for column in TIER_COLUMNS]
    return cells + [_cell(row.number(ALL, column)) for column in TOTAL_COLUMNS]


def _fairness(row: Tally) -> list[str]:
    tenants = row.attainment_by_tenant
    worst = min(tenants, key=lambda name: (tenants[name], name))
    index = jain(list(tenants.values()))
    return [str(len(tenants)), _cell(index), worst, _cell(tenants[worst])]


def _cell(value: float | None) -> str:
    """Write a number in full but without noise; empty for what is unknown or infinite."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{round(value, 6):.12g}"


def interval_rows(tallies: Tallies) -> Iterator[Sequence[object]]:
    """Yield the header, and mean and 95 % interval over the seeds of every number."""
    yield ("policy", "rate", "tier", "metric", "mean", "low", "high", "seeds")
    for label in tallies.labels:
        for rate in tallies.rates:
            for tier, metric, path in _metrics(tallies):
                found = tallies.interval(label, rate, tier, *path)
                if found is not None:
                    numbers = [_cell(v) for v in (found.mean, found.low, found.high)]
                    yield (label, _cell(rate), tier, metric, *numbers, found.count)


def _metrics(tallies: Tallies) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for tier in tallies.objectives:
        for metric, path in TIER_COLUMNS.items():
            if metric not in ("objective", "offered"):
                yield tier, metric, path
    for metric in ("attainment", *TOTAL_COLUMNS):
        yield ALL, metric, (metric,)


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
