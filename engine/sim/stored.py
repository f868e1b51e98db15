"""Reads folders of comparisons and measurements again and lays them side by side; it runs nothing.

Only points of the very same workload belong on one page: trace, lengths, requests, arrivals,
tenants and tiers must be equal.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.clock import NS_PER_MS
from engine.sim.choices import PolicyChoice
from engine.sim.comparison import record_name
from engine.sim.point import PointSpec
from engine.sim.record_file import COLUMNS
from engine.sim.records import RequestRecord
from engine.sim.report import FORMAT
from engine.sim.safe_output import MARK
from engine.sim.tally import Tallies, Tally, tally
from engine.sim.tiers import parse_tiers
from engine.sim.workload import SimTier

# Fields of run.json that make a workload.
WORKLOAD = ("trace", "lengths", "requests", "arrivals", "tenants", "tiers")
# The others that a page is made of.
ABOUT = ("version", "profile", "predictor", "policies")


class StoredError(ValueError):
    """A folder cannot be read, or does not belong beside the others; one sentence says why."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One folder: what was asked for (`run.json`), its tiers and its points."""

    path: Path
    run: Mapping[str, Any]
    tiers: tuple[SimTier, ...]
    tallies: tuple[Tally, ...]

    @property
    def measured(self) -> Mapping[str, Mapping[str, Any]]:
        """What is known of each measured server, by label; nothing for simulated points."""
        found: Mapping[str, Mapping[str, Any]] = self.run.get("measured") or {}
        return found

    def records_of(self, row: Tally) -> Path:
        """Return the file with a point's requests."""
        return _records_path(self.path, row.label, self.tiers, row.rate, row.seed)


def load_run(path: Path) -> StoredRun:
    """Return what a folder holds; raises StoredError."""
    run = _json(path / MARK)
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise StoredError(f"{path}: {MARK} is not of the format {FORMAT}")
    missing = [field for field in (*WORKLOAD, *ABOUT) if field not in run]
    if missing:
        raise StoredError(f"{path}: field {missing[0]} is missing")
    try:
        tiers = parse_tiers(f"{path / MARK}: tiers", run["tiers"])
        lines = _text(path / "points.jsonl").split("\n")
        points = [json.loads(line) for line in lines if line]
        tallies = tuple(_tally(path, tiers, point) for point in points)
    except KeyError as error:
        raise StoredError(f"{path}: field {error.args[0]} is missing") from None
    except (TypeError, json.JSONDecodeError):
        raise StoredError(f"{path}: points.jsonl holds something else than points") from None
    if not tallies:
        raise StoredError(f"{path}: there is no point")
    return StoredRun(path, run, tiers, tallies)


def _tally(path: Path, tiers: tuple[SimTier, ...], point: dict[str, Any]) -> Tally:
    label, rate, seed = str(point["policy"]), float(point["rate"]), int(point["seed"])
    records = read_records(_records_path(path, label, tiers, rate, seed))
    if len(records) != point["requests"]:
        raise StoredError(f"{path}: the point {label} at {rate:g} has not its own records")
    return tally(label, _spec(label, tiers, rate, seed), point, records)


def _spec(label: str, tiers: tuple[SimTier, ...], rate: float, seed: int) -> PointSpec:
    return PointSpec("", label, rate, 1, seed, tiers=tiers)


def _records_path(
    path: Path, label: str, tiers: tuple[SimTier, ...], rate: float, seed: int
) -> Path:
    name = record_name(PolicyChoice(label, label).slug, _spec(label, tiers, rate, seed))
    return path / "records" / name


def side_by_side(runs: Sequence[StoredRun]) -> Tallies:
    """Return the points of all runs as one grid; raises StoredError where they do not match."""
    first = runs[0]
    for run in runs[1:]:
        for field in WORKLOAD:
            mine, theirs = run.run.get(field), first.run.get(field)
            if mine != theirs:
                raise StoredError(
                    f"{run.path} and {first.path} are not of one workload: {field} is "
                    f"{_short(mine)} in one and {_short(theirs)} in the other"
                )
    seen: dict[tuple[str, float, int], Path] = {}
    for run in runs:
        for row in run.tallies:
            key = row.label, row.rate, row.seed
            if key in seen:
                raise StoredError(
                    f"{row.label} at {row.rate:g} with seed {row.seed} is in {seen[key]} and in "
                    f"{run.path}: measure again with another --label"
                )
            seen[key] = run.path
    return Tallies([row for run in runs for row in run.tallies])


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_records(path: Path) -> tuple[RequestRecord, ...]:
    """Return the records of a file that `write_records` wrote; times to the microsecond."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise StoredError(f"{path}: column {min(missing)} is missing")
            return tuple(_records(path, reader))
    except OSError as error:
        raise StoredError(f"{path}: {error.strerror or error}") from None
    except (EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise StoredError(f"{path}: a damaged file: {error}") from None


def _records(path: Path, reader: csv.DictReader[str]) -> Iterator[RequestRecord]:
    for number, row in enumerate(reader, 1):
        try:
            yield _record(row)
        except (ValueError, TypeError):
            raise StoredError(f"{path}: row {number} is no record") from None


def _record(row: Mapping[str, str]) -> RequestRecord:
    return RequestRecord(
        id=row["id"],
        tenant=row["tenant"],
        tier=row["tier"],
        arrival_ns=_ns(row["arrival_ms"]) or 0,
        prompt=int(row["prompt_tokens"]),
        output=int(row["output_tokens"]),
        wanted=int(row["true_output_tokens"]),
        first_scheduled_ns=_ns(row["first_scheduled_ms"]),
        first_token_ns=_ns(row["first_token_ms"]),
        finished_ns=_ns(row["finished_ms"]),
        finish_reason=row["finish_reason"] or None,
        refusal=row["refusal"],
        late_tokens=int(row["late_tokens"]),
        worst_lateness_ns=_ns(row["worst_lateness_ms"]) or 0,
        preemptions=int(row["preemptions"] or 0),
        parks=int(row["parks"] or 0),
        predicted=float(row["predicted_tokens"] or 0),
        ttft_due_ns=_ns(row["first_token_due_ms"]) or 0,
        met_ttft=row["met_ttft"] == "1",
        met_tbt=row["met_tbt"] == "1",
        met=row["met"] == "1",
    )


def _ns(text: str) -> int | None:
    return round(float(text) * NS_PER_MS) if text else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StoredError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise StoredError(f"{path}: not UTF-8 text") from None


def _json(path: Path) -> object:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        if isinstance(error, StoredError):
            raise
        raise StoredError(f"{path}: not JSON: {error}") from None
