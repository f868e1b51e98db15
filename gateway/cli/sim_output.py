"""How the simulator's commands show a point, a comparison and a capacity; it runs nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from engine.sim.capacity import Capacity
    from engine.sim.comparison import Progress
    from engine.sim.report_page import Report
    from engine.sim.tally import Tally

WIDTH_IN_A_PIPE = 120


def version_text() -> str:
    """Return the version that a report names."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"tiergate {version('tiergate')}"
    except PackageNotFoundError:
        return "tiergate, not installed"


def console() -> Console:
    """Return the console for results: as wide as a table where nobody looks."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_IN_A_PIPE
    return Console(width=width, highlight=False)


def table(*columns: str, left: int = 1) -> Table:
    """Return an empty table; all but the first columns are right-aligned."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        made.add_column(name, justify="left" if index < left else "right", no_wrap=index > 0)
    return made


def per_cent(value: float | None) -> str:
    """Return a share in per cent."""
    return "-" if value is None else f"{100 * value:.2f} %"


def duration(value: float | None) -> str:
    """Return milliseconds in the unit that fits; `never` for what is null in a point."""
    if value is None:
        return "never"
    if value < 1000:
        return f"{value:.1f} ms"
    return f"{value / 1000:.2f} s"


def show_point(tally: Tally, profile: str) -> None:
    """Print one point: a table with a line for each tier, and the totals."""
    from rich.markup import escape

    point = tally.point
    out = console()
    out.print(
        f"[bold]{escape(tally.label)}[/] at {tally.rate:g} requests/s: "
        f"{point['requests']} requests, seed {tally.seed}, {escape(profile)}"
    )
    out.print(tier_table(tally))
    for line in totals(point):
        out.print(line)


def tier_table(tally: Tally) -> Table:
    """Return a point's table with a line for each tier."""
    from rich.markup import escape

    made = table(
        "tier", "offered", "in time", "objective", "TTFT p50", "p95", "p99",
        "lateness p99", "normalised p50",
    )  # fmt: skip
    for name, objective in tally.objectives.items():
        tier = tally.tier(name)
        share = tier["attainment"]
        met = share is not None and share >= objective - 1e-6
        colour = "green" if met else "red"
        ttft = tier["ttft_ms"]
        made.add_row(
            escape(name),
            str(tier["offered"]),
            f"[{colour}]{per_cent(share)}[/]",
            per_cent(objective),
            *[duration(ttft[q]) if tier["offered"] else "-" for q in ("p50", "p95", "p99")],
            duration(tier["lateness_ms"]["p99"]),
            duration(tier["normalised_latency_ms"]["p50"]) if tier["offered"] else "-",
        )
    return made


def totals(point: Mapping[str, Any]) -> Iterator[str]:
    """Yield the totals of a point as lines."""
    yield (
        f"goodput {point['goodput'] or 0:.3f} requests/s, {point['tokens_per_s'] or 0:.0f} output "
        f"tokens/s in {point['simulated_s']:.0f} simulated seconds and {point['steps']} steps"
    )
    yield (
        f"{point['preemptions']} preemptions (at most {point['max_preemptions']} of one request), "
        f"{point['parks']} parks, {point['swap_bytes'] / 1e9:.2f} GB swapped, "
        f"{per_cent(point['recompute_share'])} recomputed"
    )
    if point["refused"] or point["unfinished"]:
        yield f"{point['refused']} refused, {point['unfinished']} unfinished: all of them misses"


def show_comparison(report: Report) -> None:
    """Print attainment by policy and rate, and each policy's capacity."""
    from rich.markup import escape

    tallies = report.tallies
    names = "/".join(tier.name for tier in report.by_rank)
    out = console()
    # As many rates side by side as the terminal has room for.
    label_width = max(map(len, tallies.labels))
    room = out.width - label_width - len("  capacity  ")
    fit = max(1, room // (len("100.0/") * len(report.tiers) + 2))
    for first in range(0, len(tallies.rates), fit):
        rates = tallies.rates[first : first + fit]
        is_last = first + fit >= len(tallies.rates)
        heads = [f"{rate:g}" for rate in rates] + ["capacity"] * is_last
        made = table("in time, %", *heads)
        for label, capacity in zip(tallies.labels, report.capacities, strict=True):
            cells = [_attainment(report, label, rate) for rate in rates]
            made.add_row(escape(label), *cells, *[_capacity(capacity)] * is_last)
        out.print(made)
    out.print(f"[dim]{escape(names)}; capacity: {escape(report.criterion.text)}[/]")


def _attainment(report: Report, label: str, rate: float) -> str:
    names = [tier.name for tier in report.by_rank]
    if not report.tallies.cell(label, rate):
        return "-"
    met = all(_meets(report, label, rate, name) for name in names)
    text = "/".join(_short(report, label, rate, name) for name in names)
    return f"[{'green' if met else 'red'}]{text}[/]"


def _meets(report: Report, label: str, rate: float, tier: str) -> bool:
    found = report.tallies.interval(label, rate, tier, "attainment")
    return found is None or found.mean >= report.tallies.objectives[tier] - 1e-6


def _short(report: Report, label: str, rate: float, tier: str) -> str:
    found = report.tallies.interval(label, rate, tier, "attainment")
    return "-" if found is None else f"{100 * found.mean:.1f}"


def _capacity(one: Capacity) -> str:
    return f"{'>= ' if one.at_least else ''}{one.rate:.3g}"


def show_capacities(capacities: Sequence[Capacity], criterion: str) -> None:
    """Print each policy's capacity with its interval and what each seed alone gave."""
    from rich.markup import escape

    made = table("policy", "capacity", "95 % interval", "single seeds")
    for one in capacities:
        low, high = one.interval.low, one.interval.high
        span = "-" if low is None or high is None else f"{max(low, 0):.3g} to {high:.3g}"
        seeds = " ".join(f"{rate:.3g}" for rate in one.by_seed.values())
        made.add_row(escape(one.label), _capacity(one), span, seeds)
    out = console()
    out.print(made)
    out.print(f"[dim]requests per second at which {escape(criterion)}[/]")


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """Yield what hears of finished points; shows a bar on stderr where someone looks."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[last]}"),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=None, last="")

        def heard(tally: Tally, done: int, total: int) -> None:
            from rich.markup import escape

            last = escape(f"{tally.label} at {tally.rate:g}, seed {tally.seed}")
            bar.update(task, completed=done, total=total or None, last=last)

        yield heard
