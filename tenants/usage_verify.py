"""Checks an export against the ledger: every line, every sum, the chain; it believes no cost.

It shares no code with what wrote the file, and the tables it reads are described here once more:
a mistake in one of the two is a difference, not an agreement. Costs are made anew from the tokens
of the raw rows and the prices of the tier versions. It ends at the first line that differs.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Integer,
    String,
    column,
    select,
    table,
)

from tenants.database import Database
from tenants.errors import InvalidValue

_FIRST = "tiergate usage export 1"
_BILLION = 1_000_000_000
_OWNER = ("organisation", "tenant", "tenant_id")
_HASHED = (
    *("record", "request_id", "arrival", "until"),
    *_OWNER,
    *("key_id", "tier_requested", "tier_served", "tier_version", "model"),
    *("requests", "prompt_tokens", "cached_tokens", "output_tokens", "cost_nano", "cost"),
    *("finish_reason", "stream"),
)
_SUMMED = ("requests", "prompt_tokens", "cached_tokens", "output_tokens", "cost_nano")
_BATCH = 500
_GROUP = (*_OWNER, "tier_served")

_USAGE = table(
    "usage",
    *(
        column(name, String)
        for name in (
            *("request_id", "tenant_id", "organisation_id", "key_id"),
            *("tier_requested", "tier_served", "model", "finish_reason"),
        )
    ),
    *(
        column(name, Integer)
        for name in ("tier_version", "prompt_tokens", "cached_tokens", "output_tokens")
    ),
    column("cost_nano", BigInteger),
    column("stream", Boolean),
    column("arrival", DateTime(timezone=True)),
)
_NAMES = {
    name: table(name, column("id", String), column("name", String))
    for name in ("tenants", "organisations")
}
_VERSIONS = table(
    "tier_versions",
    column("name", String),
    column("version", Integer),
    *(column(f"price_{kind}_nano", BigInteger) for kind in ("prompt", "cached", "output")),
)


class Differs(Exception):
    """The first difference, in one line."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A file of which every line was made again, and was the same.

    Whoever notes `chain`, that of the last line, knows the whole file by it.
    """

    lines: int
    requests: int
    cost_nano: int
    chain: str


async def verify_usage(database: Database, file: Path) -> Verified:
    """Make every line of the file again; raises `Differs`, `InvalidValue` for what is no export."""
    prices = await _prices(database)
    names = {kind: await _names(database, kind) for kind in _NAMES}
    lines = _chained(file)
    number, head = next(lines, (0, {}))
    if head.get("record") != "export":
        raise InvalidValue(f"{file} is no export of usage: it does not begin with what it holds")
    since, until, tenant_id = (head.get(name, "") for name in ("arrival", "until", "tenant_id"))
    total = dict.fromkeys(_SUMMED, 0)
    sums: dict[tuple[str, ...], dict[str, int]] = {}
    # Closed at the first difference: an open question would keep its connection.
    async with aclosing(_rows(database, _moment(since), _moment(until), tenant_id)) as rows:
        async for row in rows:
            number, line = next(lines, (number, {}))
            if line.get("record") != "usage" or line.get("request_id") != row["request_id"]:
                has = f"has request {line['request_id']}" if line.get("request_id") else "has none"
                raise Differs(
                    f"line {number}: the ledger has request {row['request_id']}, the file {has}"
                )
            expected = _expected(row, prices, names, number)
            _compare(number, line, expected)
            group = tuple(expected[name] for name in _GROUP)
            for tally in (total, sums.setdefault(group, dict.fromkeys(_SUMMED, 0))):
                for name in _SUMMED:
                    tally[name] += int(expected[name])
    ends = [("sum", group, sums[group]) for group in sorted(sums)]
    chain = ""
    for kind, group, tally in [*ends, ("total", ("",) * len(_GROUP), total)]:
        number, line = next(lines, (number, {}))
        where = dict(zip(_GROUP, group, strict=True))
        _compare(number, line, {"record": kind, **where, **_amounts(tally)})
        chain = line["chain"]
    number, line = next(lines, (number, {}))
    if line:
        raise Differs(f"line {number}: the file goes on after the ledger's last request and sums")
    return Verified(number, total["requests"], total["cost_nano"], chain)


def _compare(number: int, line: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for name in _HASHED:
        found, right = line.get(name, ""), expected.get(name, "")
        if found != right:
            raise Differs(f"line {number}: {name} is {found!r} in the file, and must be {right!r}")


def _expected(
    row: Mapping[str, Any],
    prices: Mapping[tuple[str, int], tuple[int, int, int]],
    names: Mapping[str, Mapping[str, str]],
    number: int,
) -> dict[str, str]:
    """Return what the line of a raw row must say."""
    version = (row["tier_served"], row["tier_version"])
    if row["tier_version"] != 0 and version not in prices:
        raise Differs(f"line {number}: the ledger has no version {version[1]} of tier {version[0]}")
    prompt, cached, output = prices.get(version, (0, 0, 0)) if row["tier_version"] else (0, 0, 0)
    cost = row["prompt_tokens"] * prompt + row["output_tokens"] * output
    cost += row["cached_tokens"] * (cached - prompt)
    if cost != row["cost_nano"]:
        raise Differs(
            f"line {number}: the ledger says that request {row['request_id']} costs "
            f"{row['cost_nano']}, by its tokens and the prices of {version[0]} version "
            f"{version[1]} it costs {cost}"
        )
    said = {name: str(row[name]) for name in _HASHED if name in row}
    said["record"] = "usage"
    said["arrival"] = _stamp(row["arrival"])
    said["stream"] = "true" if row["stream"] else "false"
    said["tenant"] = names["tenants"].get(row["tenant_id"], "")
    said["organisation"] = names["organisations"].get(row["organisation_id"], "")
    return {**said, **_amounts({**row, "requests": 1})}


def _amounts(tally: Mapping[str, Any]) -> dict[str, str]:
    said = {name: str(tally[name]) for name in _SUMMED}
    whole, rest = divmod(int(tally["cost_nano"]), _BILLION)
    decimals = str(rest).zfill(9)
    while len(decimals) > 2 and decimals.endswith("0"):
        decimals = decimals[:-1]
    return {**said, "cost": f"{whole}.{decimals}"}


def _chained(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield numbered lines whose chain is right."""
    chain = hashlib.sha256(_FIRST.encode()).hexdigest()
    for number, line in _read(file):
        content = chain
        for name in _HASHED:
            content += "\x1f" + line.get(name, "")
        chain = hashlib.sha256(content.encode()).hexdigest()
        if line.get("chain") != chain:
            raise Differs(
                f"line {number}: its chain does not follow from it and from the line before"
            )
        yield number, line


def _read(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the lines of CSV or of JSON lines, as text, with their numbers from 1."""
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            start = opened.read(1)
            opened.seek(0)
            if start == "{":
                for number, text in enumerate(opened, 1):
                    yield number, _from_json(number, text)
                return
            reader = csv.DictReader(opened, strict=True)
            for cells in reader:
                if None in cells or None in cells.values():
                    raise Differs(f"line {reader.line_num}: it has not as many cells as the first")
                yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidValue(f"{file} cannot be read: {error}") from None


def _from_json(number: int, text: str) -> dict[str, str]:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict):
        raise Differs(f"line {number}: it is no object of JSON")
    return {
        name: ("true" if value else "false") if isinstance(value, bool) else str(value)
        for name, value in line.items()
    }


async def _rows(
    database: Database, since: datetime | None, until: datetime | None, tenant_id: str
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Yield the raw rows of the span, oldest first."""
    if until is None:
        raise InvalidValue("the export does not say until when it goes")
    usage = _USAGE.c
    query = select(_USAGE).order_by(usage.arrival, usage.request_id)
    query = query.where(usage.arrival < _stored(database, until))
    if since is not None:
        query = query.where(usage.arrival >= _stored(database, since))
    if tenant_id:
        query = query.where(usage.tenant_id == tenant_id)
    async with database.read() as session:
        result = await session.stream(query.execution_options(yield_per=_BATCH))
        # Batch by batch: a hop to the driver for every row would cost more than the row.
        async for batch in result.mappings().partitions():
            for row in batch:
                yield dict(row)


async def _prices(database: Database) -> dict[tuple[str, int], tuple[int, int, int]]:
    async with database.read() as session:
        rows = (await session.execute(select(_VERSIONS))).all()
    return {
        (name, version): (prompt, cached, output) for name, version, prompt, cached, output in rows
    }


async def _names(database: Database, kind: str) -> dict[str, str]:
    async with database.read() as session:
        rows = (await session.execute(select(_NAMES[kind]))).all()
    return dict(rows)


def _stored(database: Database, moment: datetime) -> datetime:
    """Return a moment as it lies in a column: SQLite keeps UTC without saying so."""
    return moment if database.backend == "postgresql" else moment.replace(tzinfo=None)


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if text else None
    except ValueError:
        raise InvalidValue(f"the export names a moment that is none: {text!r}") from None


def _stamp(moment: datetime) -> str:
    at = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
