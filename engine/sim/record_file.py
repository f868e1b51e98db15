"""The records of one point as a gzipped CSV file; it knows the columns, and no policy.

Times are milliseconds since the simulation began. Empty means that it never happened. Equal
records give equal bytes: the archive carries no time and no name.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Collection, Iterable
from pathlib import Path

from engine.core.clock import NS_PER_MS
from engine.sim.records import RequestRecord

COLUMNS = (
    "id",
    "tenant",
    "tier",
    "arrival_ms",
    "prompt_tokens",
    "output_tokens",
    "true_output_tokens",
    "predicted_tokens",
    "first_scheduled_ms",
    "first_token_ms",
    "first_token_due_ms",
    "finished_ms",
    "finish_reason",
    "refusal",
    "late_tokens",
    "worst_lateness_ms",
    "preemptions",
    "parks",
    "met_ttft",
    "met_tbt",
    "met",
)


def write_records(
    path: Path, records: Iterable[RequestRecord], *, unseen: Collection[str] = ()
) -> None:
    """Write one line a request, in order of arrival; what could not be seen stays empty."""
    hidden = [COLUMNS.index(column) for column in unseen]
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for record in records:
            row = list(_row(record))
            for place in hidden:
                row[place] = ""
            writer.writerow(row)


def _row(record: RequestRecord) -> tuple[object, ...]:
    return (
        record.id,
        record.tenant,
        record.tier,
        _ms(record.arrival_ns),
        record.prompt,
        record.output,
        record.wanted,
        round(record.predicted, 1),
        _ms(record.first_scheduled_ns),
        _ms(record.first_token_ns),
        _ms(record.ttft_due_ns),
        _ms(record.finished_ns),
        record.finish_reason or "",
        record.refusal,
        record.late_tokens,
        _ms(record.worst_lateness_ns),
        record.preemptions,
        record.parks,
        int(record.met_ttft),
        int(record.met_tbt),
        int(record.met),
    )


def _ms(at_ns: int | None) -> str:
    return "" if at_ns is None else f"{at_ns / NS_PER_MS:.3f}"
