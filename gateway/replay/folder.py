"""The folder of a measurement: the simulator's own files, and one of the client's beside them."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.core.clock import NS_PER_MS
from engine.sim.capacity import EverySlo, capacities_of
from engine.sim.choices import PolicyChoice
from engine.sim.comparison import Comparison, digest, promise, record_name, run_fields
from engine.sim.measured import UNSEEN_COLUMNS
from engine.sim.record_file import write_records
from engine.sim.report import write_report
from engine.sim.report_page import Report
from engine.sim.tally import Tallies
from engine.sim.trace import TraceRow
from gateway.replay.evidence import doubts
from gateway.replay.run import Replay, ReplaySpec

CLIENT_COLUMNS = (
    "id",
    "scheduled_ms",
    "begun_ms",
    "sent_ms",
    "ended_ms",
    "status",
    "counted_by",
    "prompt_tokens_by_server",
    "output_tokens_by_server",
    "detail",
)


def write_folder(
    folder: Path, spec: ReplaySpec, rows: Sequence[TraceRow], found: Replay, version: str
) -> Report:
    """Fill an empty folder as `tiergate compare` does; returns what the page shows."""
    choice = PolicyChoice(spec.label, spec.label)
    name = record_name(choice.slug, spec.base)
    for sub in ("records", "client"):
        (folder / sub).mkdir()
    write_records(folder / "records" / name, found.records, unseen=UNSEEN_COLUMNS)
    write_client(folder / "client" / name, found)
    tallies = Tallies([found.tally])
    criterion = EverySlo()
    report = Report(
        title=f"Measured: {spec.address.origin}",
        facts=measured_facts(spec, rows, found.measured, len(found.records), version),
        tiers=spec.base.tiers,
        tallies=tallies,
        capacities=capacities_of(tallies, criterion),
        criterion=criterion,
        capacity_is_searched=False,
    )
    asked = Comparison(spec.base, [choice], [spec.base.rate], [spec.base.seed], version=version)
    run = run_fields(asked, rows) | {
        "profile": None,
        "predictor": None,
        "requests": len(found.records),
        "measured": {spec.label: found.measured},
    }
    write_report(folder, report, run)
    return report


def measured_facts(
    spec: ReplaySpec,
    rows: Sequence[TraceRow],
    measured: dict[str, Any],
    requests: int,
    version: str,
) -> list[tuple[str, str]]:
    """Return the head of a page of one measurement."""
    base = spec.base
    return [
        *server_facts(measured, requests),
        ("trace", f"{Path(base.trace).name}, {len(rows):,} rows, sha256 {digest(base.trace)[:16]}"),
        ("requests", f"{requests:,}"),
        ("seed", str(base.seed)),
        ("arrivals", base.arrivals),
        ("versions", version),
        *[(f"tier {tier.name}", promise(tier)) for tier in base.tiers],
    ]


def server_facts(measured: Mapping[str, Any], requests: int) -> list[tuple[str, str]]:
    """Return what a page says of a measurement: the server, the client, and every doubt."""
    client = measured["client"]
    server = f", {measured['server']}" if measured["server"] else ""
    lag, loop = client["lag_ms"], client["loop_delay_ms"]
    return [
        ("measured at", f"{measured['url']}{server}, model {measured['model']}"),
        ("measured on", f"{measured['started']}, {measured['wall_s']:g} s of wall time"),
        (
            "client",
            f"turned to requests {lag['p50']} ms after their time at the median, {lag['p99']} at "
            f"the 99th percentile; its loop {loop['p99']} ms late; {client['cpu_share']:.0%} of a "
            f"core; {client['most_open']} of at most {client['bound']} connections",
        ),
        *[("doubt", line) for line in doubts(measured, requests)],
    ]


def write_client(path: Path, found: Replay) -> None:
    """Write what the client did for each request, in order of arrival; times in ms of the run."""

    def ms(at_ns: int | None) -> str:
        return "" if at_ns is None else f"{(at_ns - found.origin_ns) / NS_PER_MS:.3f}"

    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CLIENT_COLUMNS)
        for one in sorted(found.seen, key=lambda one: one.request.id):
            writer.writerow(
                (
                    one.request.id,
                    f"{one.request.arrival_ns / NS_PER_MS:.3f}",
                    ms(one.begun_ns),
                    ms(one.sent_ns),
                    ms(one.ended_ns),
                    one.status or "",
                    one.counted_by.value,
                    _blank(one.num_prompt_tokens),
                    _blank(one.num_output_tokens),
                    one.detail,
                )
            )


def _blank(value: int | None) -> object:
    return "" if value is None else value
