"""Reads the lines of a report on SLOs back from CSV, JSON or HTML, and checks their chain.

It shares no code with what wrote the file. What the lines say is checked elsewhere; of a page it
also checks the seal (the SHA-256 of all before it), and hands out which figures it shows of which
line.
"""

from __future__ import annotations

import base64
import binascii
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from tenants.errors import InvalidValue

_FIRST = "tiergate slo report 1"
_COUNTED = ("all", "ttft", "tbt", "availability")
OUTCOMES = ("completed", "disconnected", "refused", "limited", "invalid", "failed", "expired")
TALLIES = (
    *("offered", *OUTCOMES, "downgraded"),
    *(f"{what}_{name}" for name in _COUNTED for what in ("counted", "bad")),
    *("gaps", "late_gaps"),
)
FACTS = (
    *("id", "request_id", "key_id", "model", "operation", "tier_asked", "tier", "tier_version"),
    *("arrival", "outcome", "reason", "stream", "prompt_tokens", "output_tokens", "total_ns"),
    *("queue_ns", "ttft_ns", "ttft_due_ns", "gaps", "late_gaps", "tbt_ns", "tbt_mode"),
    *("needed_tbt_ns", "draw", "met", "ttft_met", "tbt_met", "available", "eased", "trace_id"),
)
PROMISES = ("ttft_ms", "ttft_ms_per_1k_prompt_tokens", "tbt_ms")
HASHED = (
    *("record", "rule", "since", "until", "tenant_id", "tenant", "organisation"),
    *("window", "objective", "measure", "promise", *FACTS, "changed_at", "target", *PROMISES),
    *(name for name in TALLIES if name not in FACTS),
    *("eased_count", "eased_met", "counted", "bad", "attainment", "allowed", "left", "left_share"),
    *("burn", "kept", "p50", "p90", "p95", "p99", "max", "requests", "unrecorded"),
)
_FACTS_BEGIN = '<script type="text/plain" id="tiergate-slo-facts">'
_FACTS_END = "</script>"
_SEAL = re.compile(r"<!-- tiergate slo seal ([0-9a-f]{64}) -->\n\Z")
_LONGEST_LINE = 1 << 20

Cells = dict[str, str]


class Differs(Exception):
    """The first difference, in one line."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a page shows of a field of a line: in which form, and the text."""

    line: int
    field: str
    form: str
    text: str


@dataclass(frozen=True, slots=True)
class ReportFile:
    """A file, and what is known of it before its lines are read."""

    path: Path
    form: str
    figures: tuple[Figure, ...] = ()
    facts: str = ""  # of a page, packed

    def lines(self) -> Iterator[tuple[str, Cells]]:
        """Yield (where, cells) of each line whose chain is right, and with it `chain`."""
        chain = hashlib.sha256(_FIRST.encode()).hexdigest()
        for where, line in self._read():
            unknown = [name for name in line if name not in HASHED and name != "chain"]
            if unknown:
                raise Differs(f"{where}: a report has no field {unknown[0]!r}")
            said = [chain] + [line.get(name, "") for name in HASHED]
            chain = hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()
            if line.get("chain") != chain:
                raise Differs(
                    f"{where}: its chain does not follow from it and from the line before"
                )
            yield where, line

    def _read(self) -> Iterator[tuple[str, Cells]]:
        if self.form == "html":
            yield from _from_page(self.facts)
            return
        try:
            with self.path.open(newline="", encoding="utf-8") as opened:
                yield from (_from_csv if self.form == "csv" else _from_json)(opened)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InvalidValue(f"{self.path} cannot be read: {error}") from None


def open_report(path: Path) -> ReportFile:
    """Return a file that may be a report; raises `InvalidValue` for what is none, and `Differs`."""
    try:
        with path.open(newline="", encoding="utf-8") as opened:
            start = opened.read(64)
            if not start.lstrip().lower().startswith("<!doctype html"):
                if start.startswith("{"):
                    return ReportFile(path, "json")
                if start.startswith("record,"):
                    return ReportFile(path, "csv")
                raise InvalidValue(f"{path} is no report of SLOs")
            text = start + opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{path} cannot be read: {error}") from None
    if _FACTS_BEGIN not in text:
        raise InvalidValue(f"{path} is no report of SLOs: it holds no facts")
    if text.count(_FACTS_BEGIN) != 1:
        raise Differs("the page holds facts more than once")
    seal = _SEAL.search(text)
    if seal is None:
        raise Differs("the page does not end with its seal: it was cut, or something was added")
    if hashlib.sha256(text[: seal.start()].encode()).hexdigest() != seal[1]:
        raise Differs("the page is not as it was written: its seal does not fit what it shows")
    shown, _, rest = text.partition(_FACTS_BEGIN)
    facts, end, after = rest.partition(_FACTS_END)
    if not end:
        raise Differs("the facts of the page do not end")
    reader = _Figures()
    reader.feed(shown + after)
    reader.close()
    return ReportFile(path, "html", tuple(reader.found), facts)


class _Figures(HTMLParser):
    """Collects the texts of `<data value="LINE:FIELD" data-as="FORM">`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[Figure] = []
        self._open: tuple[str, str] | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "data":
            said = dict(attrs)
            self._open, self._text = (said.get("value") or "", said.get("data-as") or ""), ""

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "data" and self._open is not None:
            number, _, name = self._open[0].partition(":")
            if not (number.isascii() and number.isdigit()) or name not in HASHED:
                raise Differs(f"the page shows a figure of no line: {self._open[0]!r}")
            self.found.append(Figure(int(number), name, self._open[1], self._text))
            self._open = None


def _from_csv(opened: io.TextIOBase) -> Iterator[tuple[str, Cells]]:
    reader = csv.DictReader(opened, strict=True)
    if tuple(reader.fieldnames or ()) != (*HASHED, "chain"):
        raise Differs("line 1: these are not the columns of a report")
    for cells in reader:
        where = f"line {reader.line_num}"
        if None in cells or None in cells.values():
            raise Differs(f"{where}: it has not as many cells as the first")
        yield where, {name: text for name, text in cells.items() if text}


def _from_json(opened: io.TextIOBase) -> Iterator[tuple[str, Cells]]:
    head = f'{{"format":"{_FIRST}","lines":[\n'
    if opened.readline(_LONGEST_LINE) != head:
        raise Differs(f"line 1: it must be {head!r}")
    number, is_open = 1, True
    while text := opened.readline(_LONGEST_LINE):
        number += 1
        if not is_open:
            if text == "]}\n" and not opened.read(1):
                return
            raise Differs(f"line {number}: the document goes on after its last line")
        is_open = text.endswith(",\n")
        yield f"line {number}", _object(f"line {number}", text[:-2] if is_open else text)
    raise Differs(f"line {number}: the document has no end")


def _from_page(facts: str) -> Iterator[tuple[str, Cells]]:
    try:
        packed = base64.b64decode("".join(facts.split()), validate=True)
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as opened:
            number = 0
            while raw := opened.readline(_LONGEST_LINE):
                number += 1
                yield f"fact {number}", _object(f"fact {number}", raw.decode())
    except (binascii.Error, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Differs(f"the facts of the page cannot be unpacked: {error}") from None


def _object(where: str, text: str) -> Cells:
    try:
        found = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        found = None
    # As pairs: a name given twice would be read in one way here and in another elsewhere.
    if not (isinstance(found, list) and text.lstrip().startswith("{")):
        raise Differs(f"{where}: it is no object of JSON")
    cells: Cells = {}
    for name, value in found:
        if name in cells:
            raise Differs(f"{where}: {name} is given twice")
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, int):
            value = str(value)
        if not isinstance(value, str) or not value:
            raise Differs(f"{where}: {name} is neither text, a whole number, true nor false")
        cells[name] = value
    return cells
