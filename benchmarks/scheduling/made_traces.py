"""Traces that the benchmarks make from the public data, as files that the simulator reads.

It knows files of rows and of lengths, and no policy. Equal rows give equal bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path

from engine.sim.trace import TraceRow, load_trace, merge_traces


def write_trace(path: Path, rows: Iterable[TraceRow]) -> str:
    """Write rows as a gzipped trace; returns its path as text. Arrival times and tenants if any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = list(rows)
    timed = kept[0].arrival_s is not None
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        names = ("input_tokens", "output_tokens", "tenant")
        writer.writerow((*names, "arrival_s") if timed else names)
        for row in kept:
            cells = (row.num_prompt_tokens, row.num_output_tokens, row.tenant)
            writer.writerow((*cells, f"{row.arrival_s:.4f}") if timed else cells)
    return str(path)


def alpaca(source: Path) -> list[TraceRow]:
    """Return prompt and answer lengths of the Alpaca rows (JSON lines with in_tok and out_tok)."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        fields = [json.loads(line) for line in lines]
    return [TraceRow(max(1, f["in_tok"]), max(1, f["out_tok"])) for f in fields]


def first_turns(source: Path, most_tokens: int) -> list[TraceRow]:
    """Return the first turns of the ShareGPT lengths that fit into a context."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        rows = [
            TraceRow(int(row["input_tokens"]), int(row["output_tokens"]))
            for row in csv.DictReader(lines)
            if row["turn_est"] == "0"
        ]
    return [row for row in rows if row.num_prompt_tokens + row.num_output_tokens <= most_tokens]


def neighbours(**sources: Path) -> tuple[TraceRow, ...]:
    """Return timed traces as one, each a tenant of its keyword's name."""
    return merge_traces({name: load_trace(path) for name, path in sources.items()})
