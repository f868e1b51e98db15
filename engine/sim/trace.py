"""Reads recorded traces: who asked for how much and when; it knows no tier, rate or engine.

A trace is a CSV file, plain or gzipped, with a header line. Needed are `input_tokens` and
`output_tokens`; `arrival_s` or `arrival_ms`, `tenant`, `prefix_block_ids`, `max_tokens`, the
conversation (`conversation`, `conv_est` or `dialogue`) and what is asked (`text`) are read where
they are, every other column is ignored. The rows of one conversation are its turns, in the order of
the file: each knows how much was asked in every turn and how long the answers before it were, as
whoever asks would, and never its own (law L26).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.sim.text_file import read_text

MOST_TOKENS = 10_000_000  # a longer prompt or answer is a mistake in the file
MOST_SECONDS = 1e9
MOST_BLOCKS = 1 << 31
MOST_TURNS = 32  # earlier answers of a conversation that a row remembers
CONVERSATION_COLUMNS = ("conversation", "conv_est", "dialogue")
PREFIX_BLOCK_TOKENS = 512  # tokens of one block of `prefix_block_ids` (Mooncake's format)


class TraceError(ValueError):
    """The file is no trace: one line that names the file, the field and the row."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One recorded request: token counts, seconds since the trace began, blocks of its prefix.

    `previous_outputs` are the tokens of its conversation's earlier answers, the oldest first,
    `asked_tokens` those of what was asked in each of its turns, this one's last; () outside of one.
    `max_tokens` is what it asked for, None where the trace does not say.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    arrival_s: float | None = None
    tenant: str = ""
    prefix_block_ids: tuple[int, ...] = ()
    conversation: str = ""
    previous_outputs: tuple[int, ...] = ()
    text: str = ""
    asked_tokens: tuple[int, ...] = ()
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation so far: its answers, its askings, and the tokens that the next repeats."""

    outputs: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()
    num_tokens: int = 0


def load_trace(path: str | Path) -> tuple[TraceRow, ...]:
    """Return the rows of a trace file in its order; raises TraceError. Rows count from 1."""
    name = str(path)
    try:
        text = read_text(path)
    except ValueError as error:
        raise TraceError(f"trace {name}: {error}") from error
    rows = tuple(_rows(name, text))
    if not rows:
        raise TraceError(f"trace {name}: there is no row below the header")
    return rows


def merge_traces(traces: Mapping[str, Sequence[TraceRow]]) -> tuple[TraceRow, ...]:
    """Return several timed traces as one, in order of arrival, each a tenant of its own name.

    Raises TraceError where one has no arrival times.
    """
    merged = []
    for place, (tenant, rows) in enumerate(traces.items()):
        for number, row in enumerate(rows):
            if row.arrival_s is None:
                raise TraceError(f"trace {tenant}: there are no arrival times to merge by")
            talk = row.conversation and f"{tenant}/{row.conversation}"
            named = dataclasses.replace(row, tenant=tenant, conversation=talk)
            merged.append((row.arrival_s, place, number, named))
    return tuple([row for _, _, _, row in sorted(merged, key=lambda item: item[:3])])


def _rows(name: str, text: str) -> Iterator[TraceRow]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = set(reader.fieldnames or ())
        for column in ("input_tokens", "output_tokens"):
            if column not in columns:
                raise TraceError(f"trace {name}: column {column} is missing")
        if {"arrival_s", "arrival_ms"} <= columns:
            raise TraceError(f"trace {name}: both arrival_s and arrival_ms are there; keep one")
        clock = next((c for c in ("arrival_s", "arrival_ms") if c in columns), None)
        talk = next((c for c in CONVERSATION_COLUMNS if c in columns), None)
        said: dict[tuple[str, str], _Talk] = {}  # by tenant and conversation
        last_s = 0.0
        for number, fields in enumerate(reader, 1):
            row = _row(name, number, fields, clock)
            if talk is not None:
                row = _turn(row, (fields.get(talk) or "").strip(), said)
            if row.arrival_s is not None and clock is not None:
                if row.arrival_s < last_s:
                    raise _wrong(name, clock, number, "is earlier than the row before")
                last_s = row.arrival_s
            yield row
    except csv.Error as error:
        raise TraceError(f"trace {name}: line {reader.line_num}: {error}") from error


def _wrong(name: str, column: str, number: int, what: str) -> TraceError:
    return TraceError(f"trace {name}: {column} of row {number} {what}")


def _row(name: str, number: int, fields: dict[str, str | None], clock: str | None) -> TraceRow:
    ids = fields.get("prefix_block_ids") or ""
    try:
        prefix = tuple([int(i) for i in ids.split()])
    except ValueError:
        raise _wrong(name, "prefix_block_ids", number, "must be whole numbers") from None
    if prefix and not 0 <= min(prefix) <= max(prefix) < MOST_BLOCKS:
        raise _wrong(name, "prefix_block_ids", number, f"must be from 0 to {MOST_BLOCKS - 1}")
    arrival_s = None
    if clock is not None:
        arrival_s = _seconds(name, clock, number, fields.get(clock))
    prompt, output = (
        _length(name, column, number, fields.get(column))
        for column in ("input_tokens", "output_tokens")
    )
    most = None
    if fields.get("max_tokens"):
        most = _length(name, "max_tokens", number, fields.get("max_tokens"))
        if most < output:
            raise _wrong(name, "max_tokens", number, "is less than its output_tokens")
    return TraceRow(
        prompt,
        output,
        arrival_s,
        (fields.get("tenant") or "").strip(),
        prefix,
        text=fields.get("text") or "",
        max_tokens=most,
    )


def _turn(row: TraceRow, talk: str, said: dict[tuple[str, str], _Talk]) -> TraceRow:
    """Return the row with what its conversation has said so far, and note what it adds."""
    if not talk:
        return row
    before = said.get((row.tenant, talk), _Talk())
    # A prompt that does not repeat what was said is a new question by itself.
    asked = row.num_prompt_tokens - before.num_tokens
    asked_tokens = (*before.asked, asked if asked > 0 else row.num_prompt_tokens)
    said[row.tenant, talk] = _Talk(
        (*before.outputs, row.num_output_tokens)[-MOST_TURNS:],
        asked_tokens[-MOST_TURNS:],
        row.num_prompt_tokens + row.num_output_tokens,
    )
    return dataclasses.replace(
        row, conversation=talk, previous_outputs=before.outputs, asked_tokens=asked_tokens
    )


def _length(name: str, column: str, number: int, text: str | None) -> int:
    try:
        value = int(text or "")
    except ValueError:
        raise _wrong(name, column, number, f"must be a whole number, not {text!r:.40}") from None
    if not 1 <= value <= MOST_TOKENS:
        raise _wrong(name, column, number, f"must be 1 to {MOST_TOKENS}, not {value}")
    return value


def _seconds(name: str, column: str, number: int, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise _wrong(name, column, number, f"must be a number, not {text!r:.40}") from None
    if column == "arrival_ms":
        value /= 1000
    if not math.isfinite(value) or not 0 <= value <= MOST_SECONDS:
        raise _wrong(name, column, number, f"must be a time from 0, not {text!r:.40}")
    return value
