"""Run random schedules of forced parks with a late, faulty copier: nothing may leak, hang or lie.

`python -m benchmarks.swap.random_schedules --schedules 1000000`. Schedule n is drawn from the seed
`--seed` + n alone, so that any that fails is run again by itself with `--schedules 1 --seed N`. All
cores, and memory for the counts only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from benchmarks.scheduling.points import RESULTS, engine_digest, machine
from engine.sim.grid import Grid, default_jobs
from engine.sim.schedules import Schedule

PIECE = 500  # schedules that a worker runs before it tells
SHOWN_EVERY_S = 10.0
MOST_FAILURES = 20  # told of by seed; more are counted
MAXIMA = "most_"  # counts with such a name are the largest of all schedules
# What a broken book shows as, where no law is asserted; the seed must not be lost with it.
BROKEN = (AssertionError, LookupError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Piece:
    """The counts of some schedules, and which of them broke a law."""

    counts: dict[str, int]
    failures: tuple[tuple[int, str], ...]


def run_piece(seeds: tuple[int, int]) -> Piece:
    """Run the schedules of the seeds [first, second)."""
    counts, failures = Counter[str](), []
    for seed in range(*seeds):
        try:
            add(counts, Schedule(seed).run())
        except BROKEN as error:
            failures.append((seed, repr(error)))
    return Piece(dict(counts), tuple(failures))


def add(counts: Counter[str], more: dict[str, int]) -> None:
    """Add counts up; of a maximum keep the larger."""
    for name, value in more.items():
        if name.startswith(MAXIMA):
            counts[name] = max(counts[name], value)
        else:
            counts[name] += value


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Run all schedules and return the result."""
    first, last = asked.seed, asked.seed + asked.schedules
    pieces = [(at, min(at + PIECE, last)) for at in range(first, last, PIECE)]
    counts, failures = Counter[str](), list[tuple[int, str]]()
    began = shown = time.monotonic()

    def take(_: int, piece: Piece) -> None:
        nonlocal shown
        add(counts, piece.counts)
        failures.extend(piece.failures)
        now = time.monotonic()
        if now - shown >= SHOWN_EVERY_S:
            shown = now
            done = counts["schedules"] + len(failures)
            print(
                f"{done} of {asked.schedules}, {done / (now - began):.0f} a second,"
                f" {len(failures)} failed",
                file=sys.stderr,
                flush=True,
            )

    with Grid(run_piece, min(asked.jobs, len(pieces))) as grid:
        grid.run(pieces, take)
    seconds = time.monotonic() - began
    failures.sort()
    return {
        "machine": machine(),
        "engine": engine_digest(),
        "schedules": asked.schedules,
        "first_seed": first,
        "jobs": asked.jobs,
        "seconds": round(seconds, 1),
        "schedules_per_s": round(asked.schedules / seconds, 1),
        "failed": len(failures),
        "failures": [{"seed": seed, "law": text} for seed, text in failures[:MOST_FAILURES]],
        "counts": dict(sorted(counts.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schedules", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument("--jobs", type=int, default=default_jobs())
    parser.add_argument("--dry-run", action="store_true", help="print, write no result")
    asked = parser.parse_args()
    if asked.schedules < 1 or asked.jobs < 1:
        parser.error("--schedules and --jobs must be at least 1")
    result = run(asked)
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if not asked.dry_run:
        (RESULTS / "swap_random_schedules.json").write_text(text)
    sys.exit(1 if result["failed"] else 0)


if __name__ == "__main__":
    main()
