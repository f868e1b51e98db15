"""Writes usage out as a bill that anyone can check: lines, sums, and a chain of hashes over both.

A file begins with a line that says what it holds (`export`), has one line for each request
(`usage`), then sums of each tenant and tier (`sum`) and of all (`total`). Each line's `chain` is
the SHA-256 of the chain before it and of the line's other fields, so that no line can be changed,
left out, added or moved unseen. `tenants.usage_verify` reads it again with code of its own.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import and_, or_, select

from tenants.database import Database
from tenants.limits import money
from tenants.models import Organisation, Tenant, Usage

FORMAT = "tiergate usage export 1"
PAGE = 1000
SEPARATOR = "\x1f"
COLUMNS = (
    "record",
    "request_id",
    "arrival",
    "until",
    "organisation",
    "tenant",
    "tenant_id",
    "key_id",
    "tier_requested",
    "tier_served",
    "tier_version",
    "model",
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "cost_nano",
    "cost",
    "finish_reason",
    "stream",
    "chain",
)

Value = str | int | bool
Line = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Span:
    """What is exported: requests that arrived in [since, until), of one tenant or of all."""

    until: datetime
    since: datetime | None = None
    tenant_id: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests, tokens and cost added up."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0

    def plus(self, row: Usage) -> Tally:
        """Return the sum with one more request."""
        return Tally(
            self.requests + 1,
            self.prompt_tokens + row.prompt_tokens,
            self.cached_tokens + row.cached_tokens,
            self.output_tokens + row.output_tokens,
            self.cost_nano + row.cost_nano,
        )

    def fields(self) -> Line:
        """Return the sum as the fields of a line."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "cost_nano": self.cost_nano,
            "cost": money(self.cost_nano),
        }


async def export_usage(database: Database, span: Span) -> AsyncIterator[Line]:
    """Yield the lines of an export, chained; rows are read a page at a time, oldest first."""
    chain = hashlib.sha256(FORMAT.encode()).hexdigest()
    async for line in _lines(database, span):
        chain = _next(chain, line)
        yield {**line, "chain": chain}


def csv_header() -> str:
    """Return the first line of a CSV file, the names of its columns."""
    return ",".join(COLUMNS) + "\r\n"


def as_csv(line: Line) -> str:
    """Return a line as CSV (RFC 4180)."""
    out = io.StringIO()
    csv.writer(out).writerow([_text(line.get(name, "")) for name in COLUMNS])
    return out.getvalue()


def as_json(line: Line) -> str:
    """Return a line as one line of JSON, without the fields that are empty."""
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"


WRITERS: dict[str, tuple[Callable[[], str], Callable[[Line], str]]] = {
    "csv": (csv_header, as_csv),
    "jsonl": (lambda: "", as_json),
}


def moment_text(moment: datetime) -> str:
    """Return a moment in UTC to the microsecond, as RFC 3339."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def _lines(database: Database, span: Span) -> AsyncIterator[Line]:
    yield {
        "record": "export",
        "arrival": "" if span.since is None else moment_text(span.since),
        "until": moment_text(span.until),
        "tenant_id": span.tenant_id or "",
    }
    sums: dict[tuple[str, str, str, str], Tally] = {}
    total = Tally()
    async for row, tenant, organisation in _rows(database, span):
        yield _usage_line(row, tenant, organisation)
        group = (organisation, tenant, row.tenant_id, row.tier_served)
        sums[group] = sums.get(group, Tally()).plus(row)
        total = total.plus(row)
    for group, tally in sorted(sums.items()):
        names = ("organisation", "tenant", "tenant_id", "tier_served")
        yield {"record": "sum", **dict(zip(names, group, strict=True)), **tally.fields()}
    yield {"record": "total", **total.fields()}


async def _rows(database: Database, span: Span) -> AsyncIterator[tuple[Usage, str, str]]:
    last: Usage | None = None
    while True:
        query = (
            select(Usage, Tenant.name, Organisation.name)
            .join(Tenant, Tenant.id == Usage.tenant_id, isouter=True)
            .join(Organisation, Organisation.id == Usage.organisation_id, isouter=True)
            .where(Usage.arrival < span.until)
            .order_by(Usage.arrival, Usage.request_id)
            .limit(PAGE)
        )
        if span.tenant_id is not None:
            query = query.where(Usage.tenant_id == span.tenant_id)
        if last is not None:
            after = or_(Usage.arrival > last.arrival, Usage.request_id > last.request_id)
            query = query.where(and_(Usage.arrival >= last.arrival, after))
        elif span.since is not None:
            query = query.where(Usage.arrival >= span.since)
        async with database.read() as session:
            page = (await session.execute(query)).all()
        for row, tenant, organisation in page:
            yield row, tenant or "", organisation or ""
        if len(page) < PAGE:
            return
        last = page[-1][0]


def _usage_line(row: Usage, tenant: str, organisation: str) -> Line:
    return {
        "record": "usage",
        "request_id": row.request_id,
        "arrival": moment_text(row.arrival),
        "organisation": organisation,
        "tenant": tenant,
        "tenant_id": row.tenant_id,
        "key_id": row.key_id,
        "tier_requested": row.tier_requested,
        "tier_served": row.tier_served,
        "tier_version": row.tier_version,
        "model": row.model,
        **Tally().plus(row).fields(),
        "finish_reason": row.finish_reason,
        "stream": row.stream,
    }


def _next(chain: str, line: Line) -> str:
    parts = [chain, *(_text(line.get(name, "")) for name in COLUMNS[:-1])]
    return hashlib.sha256(SEPARATOR.join(parts).encode()).hexdigest()


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
