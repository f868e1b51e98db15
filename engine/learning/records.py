"""Reads files of prompts and answer lengths, for evaluation; it knows columns and no model.

JSON lines or CSV, plain or gzipped. Names of columns are read generously (COLUMNS); every other
column is ignored. What is needed: the length of the answer, and the prompt's text or its tokens.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.learning.cues import WORD
from engine.learning.question import Question, bounded

GZIP_MAGIC = b"\x1f\x8b"
MOST_TOKENS = 10_000_000  # a longer prompt or answer is a mistake in the file
USUAL_MAX_TOKENS = 16_384  # where the file does not say, and no answer is as long
NOT_SAID = 0

COLUMNS: dict[str, tuple[str, ...]] = {
    "length": ("output_tokens", "out_tok", "reply_tokens"),
    "prompt tokens": ("prompt_tokens", "input_tokens", "in_tok", "context_tokens"),
    "asked tokens": ("user_tokens",),
    "text": ("prompt", "instruction", "text"),
    "more text": ("input",),
    "tenant": ("tenant",),
    "conversation": ("conversation", "conv_est", "dialogue"),
    "turn": ("turn", "turn_est"),
    "max tokens": ("max_tokens",),
    "hour": ("hour",),
    "id": ("id",),
}


class RecordError(ValueError):
    """The file is of no use: one line that names the file, the row and what is wrong."""


@dataclass(frozen=True, slots=True)
class Record:
    """One finished request of a file; `turn` is None where the file tells of no conversations.

    `group` is what may not be divided between training and test: a conversation, or a prompt.
    """

    question: Question
    length: int
    group: str
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class RecordFile:
    """The records of a file; `column` is the model whose lengths were read, "" for the only one."""

    records: tuple[Record, ...]
    column: str


def load_records(
    path: str | Path, column: str | None = None, prompts: str | Path | None = None
) -> RecordFile:
    """Return the records of a file in its order; raises RecordError. Rows count from 1.

    `column` names the model where a file has lengths of several; without it the model with most
    lengths is taken. `prompts` is a second file that has the texts under the same `id`s.
    """
    rows = _rows(str(path))
    if prompts is not None:
        rows = _joined(rows, _rows(str(prompts)), str(path), str(prompts))
    names = {name for row in rows for name in row}
    column = _column(str(path), rows, names, column)
    records = [
        record
        for number, row in enumerate(rows, 1)
        if (record := _record(str(path), number, row, names, column)) is not None
    ]
    if len(records) < 2:
        raise RecordError(f"{path}: there are not two rows with a length")
    return RecordFile(tuple(_with_turns(_with_limits(records))), column)


def _rows(name: str) -> list[Mapping[str, Any]]:
    try:
        data = Path(name).read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise RecordError(f"{name}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise RecordError(f"{name}: a damaged gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{name}: not UTF-8 text") from error
    if text.lstrip()[:1] == "[":
        raise RecordError(f"{name}: it is one JSON array: there must be one object on each line")
    is_json = text.lstrip()[:1] == "{"
    rows = list(_json_rows(name, text) if is_json else _csv_rows(name, text))
    if not rows:
        raise RecordError(f"{name}: there is no row")
    return rows


def _json_rows(name: str, text: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{name}: line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise RecordError(f"{name}: line {number} is no JSON object")
        yield row


def _csv_rows(name: str, text: str) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield {key: value for key, value in row.items() if key is not None and value}
    except csv.Error as error:
        raise RecordError(f"{name}: line {reader.line_num}: {error}") from error


def _joined(
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    name: str,
    other_name: str,
) -> list[Mapping[str, Any]]:
    texts = {str(row["id"]): _text(row) for row in others if "id" in row}
    found: list[Mapping[str, Any]] = [
        {**row, "prompt": texts[key]} for row in rows if (key := str(row.get("id"))) in texts
    ]
    if not found:
        raise RecordError(f"{name}: no row has an `id` that is in {other_name}")
    return found


def _column(
    name: str, rows: Sequence[Mapping[str, Any]], names: set[str], column: str | None
) -> str:
    """Return the model whose lengths are to be read, "" where the rows have only one length."""
    lengths = [_first(row, "length") for row in rows]
    counts: dict[str, int] = {}  # of each model, its rows with a length
    for length in lengths:
        if isinstance(length, dict):
            for model, value in length.items():
                has_length = value is not None and value != ""
                counts[str(model)] = counts.get(str(model), 0) + has_length
    if counts and (column is None or column in counts):
        for number, length in enumerate(lengths, 1):
            if length is not None and not isinstance(length, dict):
                raise RecordError(
                    f"{name}: the length of row {number} is not of a model, as others are: there "
                    "must be objects {model: length} in all rows, or in none"
                )
    if column is not None:
        if column in counts or column in names:
            return column
        raise RecordError(f"{name}: there is no column or model {column!r:.60}")
    if counts:
        return max(counts, key=lambda model: (counts[model], model))
    if all(length is None for length in lengths):
        known = ", ".join(COLUMNS["length"])
        raise RecordError(
            f"{name}: no column tells how long answers were: there must be one of {known}, or one "
            "that is named with --model-column"
        )
    return ""


def _record(
    name: str, number: int, row: Mapping[str, Any], names: set[str], column: str
) -> Record | None:
    """Return the record of a row, None where the model in question did not answer it."""
    value = _first(row, "length")
    if isinstance(value, dict):
        value = value.get(column)
    elif column:
        value = row.get(column)
    if value is None or value == "":
        return None
    length = _count(name, number, "the length", value)
    text = _text(row)
    given = _first(row, "prompt tokens")
    if not text and given is None:
        known = ", ".join((*COLUMNS["text"][:2], *COLUMNS["prompt tokens"]))
        raise RecordError(f"{name}: row {number} has no prompt: there must be one of {known}")
    tokens = len(WORD.findall(text)) if given is None else _number(name, number, "prompt", given)
    most = _first(row, "max tokens")
    asked = _first(row, "asked tokens")
    question = Question(
        tenant=str(_first(row, "tenant") or ""),
        text=bounded(text),
        num_prompt_tokens=tokens,
        max_tokens=NOT_SAID if most is None else _limit(name, number, most, length),
        hour=_hour(name, number, _first(row, "hour")),
        asked_tokens=() if asked is None else (_number(name, number, "user_tokens", asked),),
    )
    talk, turn = _first(row, "conversation"), _first(row, "turn")
    if talk is None:
        return Record(question, max(1, length), group=" ".join(text.lower().split()) or str(number))
    place = 0 if turn is None else _number(name, number, "turn", turn)
    return Record(question, max(1, length), group=f"{question.tenant}\n{talk}", turn=place)


def _limit(name: str, number: int, value: Any, length: int) -> int:
    most = _number(name, number, "max_tokens", value)
    if max(1, length) > most:
        raise RecordError(
            f"{name}: the answer of row {number} has {length} tokens, more than its max_tokens "
            f"({most})"
        )
    return most


def _with_limits(records: Sequence[Record]) -> list[Record]:
    """Let answers whose limit is not said have one and the same: it must not tell their length."""
    usual = max(USUAL_MAX_TOKENS, 1 + max(record.length for record in records))
    return [
        record
        if record.question.max_tokens != NOT_SAID
        else replace(record, question=replace(record.question, max_tokens=usual))
        for record in records
    ]


def _with_turns(records: Sequence[Record]) -> Iterator[Record]:
    """Let every turn know the answers before it, in the order of the file."""
    told: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {}
    for record in records:
        if record.turn is None:
            yield record
            continue
        outputs, asked, context = told.get(record.group, ((), (), 0))
        question = record.question
        now = question.asked_tokens or (max(0, question.num_prompt_tokens - context),)
        question = replace(question, previous_outputs=outputs, asked_tokens=(*asked, *now))
        told[record.group] = (
            (*outputs, record.length)[-64:],
            question.asked_tokens[-64:],
            question.num_prompt_tokens + record.length,
        )
        yield replace(record, question=question, turn=len(outputs))


def _first(row: Mapping[str, Any], kind: str) -> Any:
    return next((row[name] for name in COLUMNS[kind] if row.get(name) not in (None, "")), None)


def _text(row: Mapping[str, Any]) -> str:
    text, more = _first(row, "text"), _first(row, "more text")
    return f"{text}\n{more}" if text and more else str(text or "")


def _count(name: str, number: int, what: str, value: Any) -> int:
    """Return a number of tokens; of an answer's text, its words and signs."""
    try:
        float(value)
    except ValueError:
        text = str(value)
        return max(1, len(WORD.findall(text.lower())) + sum(map(text.count, ".,;:!?()\n")))
    except (TypeError, OverflowError):
        pass  # said better below
    return _number(name, number, what, value)


def _number(name: str, number: int, what: str, value: Any) -> int:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = -1.0
    if not 0 <= found <= MOST_TOKENS or isinstance(value, bool) or found != int(found):
        raise RecordError(
            f"{name}: {what} of row {number} must be a whole number of tokens from 0 to "
            f"{MOST_TOKENS}, not {value!r:.40}"
        )
    return int(found)


def _hour(name: str, number: int, value: Any) -> float:
    try:
        found = float(value or 0.0)
    except (TypeError, ValueError, OverflowError):
        found = -1.0
    if not 0 <= found <= 24:
        raise RecordError(f"{name}: hour of row {number} must be from 0 to 24, not {value!r:.40}")
    return found
