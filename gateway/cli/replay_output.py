"""How `tiergate replay` shows its run and its result; it runs nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gateway.cli.output import note

if TYPE_CHECKING:
    from gateway.replay.run import Progress, Replay

EVERY_NS = 500_000_000  # a terminal must not cost the client its punctuality


@contextmanager
def progress_line(total: int) -> Iterator[Progress]:
    """Yield what hears of ended requests; shows one line on stderr where someone looks."""
    from engine.core.clock import MonotonicClock

    clock = MonotonicClock()
    shown_ns = 0
    is_shown = False

    def heard(ended: int, of: int) -> None:
        nonlocal shown_ns, is_shown
        now_ns = clock.now_ns()
        if sys.stderr.isatty() and now_ns - shown_ns > EVERY_NS:
            shown_ns, is_shown = now_ns, True
            print(f"\r{ended} of {of} requests have ended", end="", file=sys.stderr, flush=True)

    try:
        yield heard
    finally:
        if is_shown:
            note("")


def show_replay(found: Replay) -> None:
    """Print a measured point: a table with a line for each tier, totals, and the client's own."""
    from rich.markup import escape

    from gateway.cli.sim_output import console, tier_table

    tally, measured = found.tally, found.measured
    out = console()
    out.print(
        f"[bold]{escape(tally.label)}[/] at {tally.rate:g} requests/s: "
        f"{tally.point['requests']} requests, seed {tally.seed}, "
        f"{escape(measured['url'])}, model {escape(measured['model'])}"
    )
    out.print(tier_table(tally))
    for line in _totals(tally.point, measured):
        out.print(escape(line))


def _totals(point: Mapping[str, Any], measured: Mapping[str, Any]) -> Iterator[str]:
    client = measured["client"]
    yield (
        f"goodput {point['goodput'] or 0:.3f} requests/s, {point['tokens_per_s'] or 0:.0f} output "
        f"tokens/s in {measured['wall_s']:.0f} seconds"
    )
    outcomes = ", ".join(f"{n} {name}" for name, n in sorted(measured["outcomes"].items()))
    yield f"ended: {outcomes}; all but stop and length are misses"
    for detail, count in measured["details"].items():
        yield f"  {count} x {detail}"
    yield (
        f"client: {client['lag_ms']['p99'] or 0:.1f} ms behind its schedule and "
        f"{client['loop_delay_ms']['p99'] or 0:.1f} ms in reading, both at the 99th percentile; "
        f"{client['cpu_share']:.0%} of a core, {client['most_open']} connections at most"
    )
