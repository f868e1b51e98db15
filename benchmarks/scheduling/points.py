"""What the scheduling benchmarks share: points kept as they end, tables, and what a result says.

Every point that ends is appended to `build/scheduling/NAME.jsonl`, under a key made of all that
it depends on except the code: an interrupted run goes on where it was, and `--fresh hybrid` runs
again what another hybrid would change (`--fresh all`: everything).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.sim.choices import parse_choice
from engine.sim.comparison import digest
from engine.sim.grid import Grid, default_jobs
from engine.sim.point import PointSpec
from engine.sim.statistics import Histogram, interval, mean
from engine.sim.tally import Job, Tallies, Tally, job_of, run_job

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
WORK = ROOT / "build" / "scheduling"
RESULTS = ROOT / "benchmarks" / "results"


def parser(doc: str | None, *, requests: int, seeds: int) -> argparse.ArgumentParser:
    """Return a parser with the flags that all of these scripts have."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--data", type=Path, default=DATA, help="folder with traces/ and prompts/")
    made.add_argument("--requests", type=int, default=requests, help="a point")
    made.add_argument("--seeds", type=int, default=seeds, help="5 means 1 to 5")
    made.add_argument("--jobs", type=int, default=default_jobs())
    made.add_argument("--work", type=Path, default=WORK, help="where points are kept")
    made.add_argument(
        "--fresh", default="", metavar="NAMES", help="policies to run again: hybrid,slai or all"
    )
    made.add_argument("--dry-run", action="store_true", help="print, write no result")
    return made


def data_file(folder: Path, name: str) -> Path:
    """Return a file of the data folder; ends the program with one line where it is absent."""
    path = folder / name
    if not path.is_file():
        sys.exit(f"{path} is not there: name the folder of the public traces with --data")
    return path


class Store:
    """The points of one benchmark, kept in a file as they end."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        asked.work.mkdir(parents=True, exist_ok=True)
        self.path = asked.work / f"{name}.jsonl"
        self._jobs = asked.jobs
        self._known: dict[str, Tally] = {}
        self._digests: dict[str, str] = {}
        self._engine = engine_digest()
        self._engines: dict[str, set[str]] = {}  # of the known points, by policy
        fresh = set(filter(None, asked.fresh.split(",")))
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:  # cut off by an interruption
                continue
            if "all" not in fresh and row["name"] not in fresh:
                self._known[row["key"]] = _tally_of(row["tally"])
                self._engines.setdefault(row["name"], set()).add(row["engine"])
                kept.append(line)
        if len(kept) < len(lines):
            self.path.write_text("".join(line + "\n" for line in kept))

    def run(self, jobs: Sequence[Job]) -> list[Tally]:
        """Return the tallies of these jobs, running those that are not known yet."""
        keys = [self._key(job) for job in jobs]
        todo = [i for i, key in enumerate(keys) if key not in self._known]
        began, done = time.monotonic(), 0
        with self.path.open("a") as file:

            def keep(index: int, tally: Tally) -> None:
                nonlocal done
                done += 1
                job, key = jobs[todo[index]], keys[todo[index]]
                self._known[key] = tally
                name = job.spec.policy
                self._engines.setdefault(name, set()).add(self._engine)
                row: dict[str, Any] = {"key": key, "name": name, "engine": self._engine}
                row["tally"] = dataclasses.asdict(tally)
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(
                    f"{done}/{len(todo)} {time.monotonic() - began:5.0f} s  {line(tally)}",
                    file=sys.stderr,
                    flush=True,
                )

            if todo:
                with Grid(run_job, min(self._jobs, len(todo))) as grid:
                    grid.run([jobs[i] for i in todo], keep)
        return [self._known[key] for key in keys]

    def engines(self) -> dict[str, list[str]]:
        """Return which source (digest of engine/core and engine/sim) ran each policy's points."""
        return {name: sorted(some) for name, some in sorted(self._engines.items())}

    def _key(self, job: Job) -> str:
        fields = dataclasses.asdict(job.spec)
        if job.spec.trace not in self._digests:
            self._digests[job.spec.trace] = digest(job.spec.trace)
        fields["trace"] = self._digests[job.spec.trace]
        if job.spec.profile.endswith(".json"):
            fields["profile"] = digest(job.spec.profile)
        text = json.dumps([job.label, fields], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def _tally_of(fields: dict[str, Any]) -> Tally:
    for name in ("ttft", "lateness"):
        fields[name] = {
            tier: Histogram(one["offered"], tuple((i, n) for i, n in one["bins"]))
            for tier, one in fields[name].items()
        }
    return Tally(**fields)


def jobs_of(
    base: PointSpec, rates: Mapping[str, Sequence[float]], seeds: Iterable[int]
) -> list[Job]:
    """Return the points of each policy (by label) at its rates: seed by seed, rate by rate.

    In that order, so that what is there after an interruption is a table of fewer seeds.
    """
    choices = {label: parse_choice(label) for label in rates}
    every = sorted({rate for some in rates.values() for rate in some})
    return [
        job_of(choice, base, rate, seed)
        for seed in seeds
        for rate in every
        for label, choice in choices.items()
        if rate in rates[label]
    ]


def by_policy(tallies: Sequence[Tally], labels: Sequence[str]) -> Tallies:
    """Return the tallies in the order of a comparison: by policy, rate, seed."""
    place = {label: i for i, label in enumerate(labels)}
    return Tallies(sorted(tallies, key=lambda t: (place[t.label], t.rate, t.seed)))


def row_of(cell: Sequence[Tally]) -> dict[str, Any]:
    """Return one policy at one rate as a row of a result: means over seeds, with 95 % intervals."""
    first = cell[0]
    row: dict[str, Any] = {"policy": first.label, "rate": first.rate, "seeds": len(cell)}
    for tier in first.objectives:
        shares = [t.number(tier, "attainment") or 0.0 for t in cell]
        found = interval(shares)
        row[tier] = {
            "attainment": round(found.mean, 4),
            "low": rounded(found.low, 4),
            "high": rounded(found.high, 4),
            "ttft_p50_s": _seconds(cell, tier, "p50"),
            "ttft_p99_s": _seconds(cell, tier, "p99"),
        }
    row["median_ttft_ms"] = rounded(mean([t.ttft_p50_ms for t in cell]), 1)
    row["normalised_ms"] = rounded(mean([t.normalised_mean_ms for t in cell]), 2)
    for name in ("goodput", "loaded_tokens_per_s", "recompute_share"):
        row[name] = round(mean([float(t.point[name]) for t in cell]), 4)
    for name in ("preemptions", "parks", "unfinished", "refused"):
        row[name] = round(mean([float(t.point[name]) for t in cell]), 1)
    row["swap_gb"] = round(mean([t.point["swap_bytes"] / 1e9 for t in cell]), 2)
    row["jain"] = round(mean([t.point["tenants"]["jain"] for t in cell]), 4)
    row["worst_tenant"] = round(mean([t.point["tenants"]["worst_attainment"] for t in cell]), 4)
    return row


def _seconds(cell: Sequence[Tally], tier: str, quantile: str) -> float | None:
    values = [t.number(tier, "ttft_ms", quantile) for t in cell]
    known = [v for v in values if v is not None]
    return round(mean(known) / 1000, 3) if len(known) == len(cell) else None


def rows_of(tallies: Tallies) -> list[dict[str, Any]]:
    """Return every policy at every rate it was run at."""
    cells = [(label, rate) for label in tallies.labels for rate in tallies.rates]
    return [row_of(cell) for one in cells if (cell := tallies.cell(*one))]


def rounded(value: float | None, digits: int) -> float | None:
    """Round what is known and finite; None for the rest."""
    return None if value is None or abs(value) == float("inf") else round(value, digits)


def line(tally: Tally) -> str:
    """Return one point in a line."""
    shares = " ".join(
        f"{tier} {tally.number(tier, 'attainment') or 0:.3f}" for tier in tally.objectives
    )
    return f"{tally.label} {tally.rate:g}/s seed {tally.seed}: {shares}"


def print_grid(tallies: Tallies) -> None:
    """Print attainment of the tiers, policy by rate."""
    width = max(map(len, tallies.labels)) + 2
    tiers = list(tallies.objectives)
    print(f"attainment {' / '.join(tiers)}, mean over seeds")
    print(" " * width + "".join(f"{rate:>12.3g}" for rate in tallies.rates))
    for label in tallies.labels:
        cells = []
        for rate in tallies.rates:
            cell = tallies.cell(label, rate)
            found = (
                [mean([t.number(tier, "attainment") or 0.0 for t in cell]) for tier in tiers]
                if cell
                else []
            )
            cells.append("/".join(f"{share:.3f}" for share in found))
        print(f"{label:<{width}}" + "".join(f"{text:>12}" for text in cells))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns."""
    text = [list(columns)] + [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in text) for i in range(len(columns))]
    for row in text:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def head(base: PointSpec, seeds: Iterable[int]) -> dict[str, Any]:
    """Return what every result begins with: machine, versions, what was simulated."""
    return {
        "machine": machine(),
        "run": {
            "trace": Path(base.trace).name,
            "trace_sha256": digest(base.trace),
            "profile": Path(base.profile).stem if "/" in base.profile else base.profile,
            "requests": base.requests,
            "seeds": list(seeds),
            "arrivals": base.arrivals,
            "predictor": base.predictor,
        },
    }


def machine() -> dict[str, str]:
    """Return machine and versions; virtual time makes results independent of both."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    names = [one.partition(":")[2].strip() for one in lines if one.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def engine_digest() -> str:
    """Return a digest of all that decides what a point's result is, the data aside."""
    code = hashlib.sha256()
    for room in ("core", "sim"):
        for path in sorted((ROOT / "engine" / room).rglob("*")):
            if path.suffix in (".py", ".json"):
                code.update(path.read_bytes())
    return code.hexdigest()[:16]


def write_result(asked: argparse.Namespace, name: str, result: Mapping[str, Any]) -> None:
    """Write a result beside the others, or say that nothing was written."""
    if asked.dry_run:
        print("dry run: no result written", file=sys.stderr)
        return
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)


def service_rate(store: Store, base: PointSpec, label: str, seed: int = 1) -> float:
    """Return the requests a second that a policy gets done when all of them come at once.

    What it can keep up with in the long run, whatever is promised to anyone: counted between 0.2
    and 0.6 of the time it takes, while the device fills up no more and nothing drains yet.
    """
    at_once = dataclasses.replace(base, rate=1000.0)
    (whole,) = store.run(jobs_of(at_once, {label: [at_once.rate]}, [seed]))
    times = [share * float(whole.point["simulated_s"]) for share in (0.2, 0.6)]
    cut = [dataclasses.replace(at_once, horizon_s=time_s) for time_s in times]
    jobs = [job for spec in cut for job in jobs_of(spec, {label: [spec.rate]}, [seed])]
    done = [spec.requests - t.unserved for spec, t in zip(cut, store.run(jobs), strict=True)]
    return (done[1] - done[0]) / (times[1] - times[0])
