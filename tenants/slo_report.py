"""Writes what was promised to a tenant and what was kept as a report that anyone can check.

Its lines are: what it is of (`report`), one for each request (`request`), each version of a tier
that was in force (`tier`), counts of the span and of its windows (`counts`), budgets (`budget`),
percentiles, reasons, downgrades, and `total`. Each line's `chain` is the SHA-256 of the chain
before it and of its fields, so that no line can be changed, left out, added or moved unseen.
`tenants.slo_verify` reads it again with code of its own.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import or_, select

from tenants.database import Database
from tenants.errors import InvalidValue, NotFound
from tenants.models import Organisation, Tenant, Usage
from tenants.models import TierVersion as TierVersionRow
from tenants.repository.rows import version_of
from tenants.slo import COUNT_FIELDS, RULE, Objective, SloRecord
from tenants.slo_models import SloRow
from tenants.slo_report_sums import (
    EASED,
    PERCENTILES,
    SAVED,
    SPAN,
    Line,
    Sums,
    Value,
    Versions,
    budget_for,
    count_fields,
    nearest_rank,
)
from tenants.slo_store import read_records
from tenants.slo_windows import MINUTE, floor_to

FORMAT = "tiergate slo report 1"
LONGEST = timedelta(days=400)
PAGE = 500
BREATH = 25

_REQUEST = (
    *("id", "request_id", "key_id", "model", "operation", "tier_asked", "tier", "tier_version"),
    *("arrival", "outcome", "reason", "stream", "prompt_tokens", "output_tokens", "total_ns"),
    *("queue_ns", "ttft_ns", "ttft_due_ns", "gaps", "late_gaps", "tbt_ns", "tbt_mode"),
    *("needed_tbt_ns", "draw", "met", "ttft_met", "tbt_met", "available", "eased", "trace_id"),
)
_PROMISE = ("ttft_ms", "ttft_ms_per_1k_prompt_tokens", "tbt_ms")
COLUMNS = (
    *("record", "rule", "since", "until", "tenant_id", "tenant", "organisation"),
    *("window", "objective", "measure", "promise"),
    *_REQUEST,
    *("changed_at", "target", *_PROMISE),
    *(name for name in COUNT_FIELDS if name not in _REQUEST),
    *(EASED, SAVED),
    *("counted", "bad", "attainment", "allowed", "left", "left_share", "burn", "kept"),
    *(*(f"p{p}" for p in PERCENTILES), "max", "requests", "unrecorded", "chain"),
)


@dataclass(frozen=True, slots=True)
class ReportSpan:
    """What is reported: the requests of one tenant that arrived in [since, until)."""

    tenant_id: str
    since: datetime
    until: datetime

    def __post_init__(self) -> None:
        """Raise `InvalidValue` for a span that no report is made of."""
        for name, moment in (("begins", self.since), ("ends", self.until)):
            if floor_to(moment, MINUTE) != moment:
                raise InvalidValue(f"a report {name} on a whole minute")
        if not timedelta(0) <= self.until - self.since <= LONGEST:
            raise InvalidValue(
                f"a report is of at most {LONGEST.days} days, and not of less than 0"
            )


class Report:
    """One report on its way; `lines` may be asked once, and what it has added up read after that.

    `sums` and `closing` (all lines but those of requests, with their numbers) are what a page to
    look at shows.
    """

    def __init__(self, database: Database, span: ReportSpan) -> None:
        self.span = span
        self.sums = Sums(span.since, span.until, Versions(()))
        self.closing: list[tuple[int, Line]] = []
        self._database = database

    async def lines(self) -> AsyncGenerator[Line]:
        """Yield the lines, chained; requests are read a page at a time, the oldest first.

        Raises `NotFound` for a tenant that is not there.
        """
        chain = hashlib.sha256(FORMAT.encode()).hexdigest()
        number = 0
        async with aclosing(self._lines()) as lines:
            async for line in lines:
                number += 1
                chain = next_chain(chain, line)
                chained = {**line, "chain": chain}
                if line["record"] != "request":
                    self.closing.append((number, chained))
                if number % BREATH == 0:
                    await asyncio.sleep(0)  # others are served by the same loop
                yield chained

    async def _lines(self) -> AsyncGenerator[Line]:
        span = self.span
        tenant, organisation = await self._names()
        yield {
            "record": "report",
            "rule": RULE,
            "since": moment_text(span.since),
            "until": moment_text(span.until),
            "tenant_id": span.tenant_id,
            "tenant": tenant,
            "organisation": organisation,
        }
        self.sums = sums = Sums(span.since, span.until, await _versions(self._database))
        records = read_records(
            self._database, tenant_id=span.tenant_id, since=span.since, until=span.until
        )
        async for record in records:
            yield request_line(record, sums.add(record, sums.requests + 2))
        # Sorting a million times takes longer than others may be kept waiting.
        for line in await asyncio.to_thread(lambda: list(closing_lines(sums))):
            yield line
        unrecorded = await unrecorded_usage(self._database, span)
        yield {"record": "total", "requests": sums.requests, "unrecorded": unrecorded}

    async def _names(self) -> tuple[str, str]:
        query = (
            select(Tenant.name, Organisation.name)
            .join(Organisation, Organisation.id == Tenant.organisation_id, isouter=True)
            .where(Tenant.id == self.span.tenant_id)
        )
        async with self._database.read() as session:
            found = (await session.execute(query)).first()
        if found is None:
            raise NotFound(f"there is no tenant {self.span.tenant_id!r}")
        return found[0], found[1] or ""


def closing_lines(sums: Sums) -> Iterator[Line]:
    """Yield the lines that follow those of the requests, but for the last."""
    yield from _tier_lines(sums)
    for (window, since, until), tier, counts in sums.windows():
        where: Line = {
            "window": window,
            "since": moment_text(since),
            "until": moment_text(until),
            "tier": tier,
        }
        line = {"record": "counts", **where, **count_fields(counts)}
        if window == SPAN:
            line |= {EASED: counts.get(EASED, 0), SAVED: counts.get(SAVED, 0)}
        yield line
        if window == "day":  # a budget of a day says little, and there may be 400 of them
            continue
        target = sums.target(tier)
        for objective in Objective:
            budget = {"record": "budget", **where, "objective": objective.value}
            if target is not None:
                budget["target"] = target_text(sums, tier)
            yield budget | budget_for(counts, objective, target)
    for measure, taken in (("ttft", sums.ttft), ("tbt", sums.tbt)):
        for tier in sorted(taken):
            values = sorted(taken[tier])
            ranks: Line = {f"p{p}": nearest_rank(values, p) for p in PERCENTILES}
            place: Line = {"record": "percentiles", "measure": measure, "tier": tier}
            yield {**place, "counted": len(values), **ranks, "max": values[-1]}
    for (tier, outcome, reason), count in sorted(sums.reasons.items()):
        said = {"tier": tier, "outcome": outcome, "reason": reason}
        yield {"record": "reason", **said, "requests": count}
    for (asked, served), count in sorted(sums.downgrades.items()):
        yield {"record": "downgrade", "tier_asked": asked, "tier": served, "requests": count}


def target_text(sums: Sums, tier: str) -> str:
    """Return the objective that a tier's budgets are measured by, as it was typed."""
    version = sums.versions.in_force(tier, sums.until)
    assert version is not None
    return str(version.tier.objective)


def _tier_lines(sums: Sums) -> Iterator[Line]:
    """Yield each version that was in force in the span, or by which a request was judged."""
    for tier in sorted(sums.tiers):
        known = sums.versions.of(tier)
        at_end = sums.versions.in_force(tier, sums.until)
        for version, following in zip(known, [*known, None][1:], strict=True):
            key = (tier, version.tier.version)
            was_over = following is not None and following.changed_at <= sums.since
            in_force = version.changed_at < sums.until and not was_over
            if not (in_force or version is at_end or key in sums.used):
                continue
            ends = following is not None and following.changed_at < sums.until
            yield {
                "record": "tier",
                "tier": tier,
                "tier_version": version.tier.version,
                "changed_at": moment_text(version.changed_at),
                "until": moment_text(following.changed_at) if ends and following else "",
                "target": str(version.tier.objective),
                **{name: getattr(version.tier, name) for name in _PROMISE},
                "tbt_mode": version.tier.tbt_mode,
            }


def request_line(record: SloRecord, promise: str) -> Line:
    """Return a request as the fields of a line; `promise` says how it compares with its tier's."""
    line: Line = {"record": "request", "promise": promise}
    for name in _REQUEST:
        value = getattr(record, name)
        if value is not None:
            line[name] = moment_text(value) if isinstance(value, datetime) else value
    return line


async def _versions(database: Database) -> Versions:
    async with database.read() as session:
        return Versions([version_of(row) for row in await session.scalars(select(TierVersionRow))])


async def unrecorded_usage(database: Database, span: ReportSpan) -> int:
    """Return how many billed answers of the span belong to no judged request.

    An answer of several choices is billed as `ID-0`, `ID-1` and so on, and judged once, as `ID`.
    Bills are read a page at a time, and their judgements asked for by id: joined, Postgres would
    rather read those of all tenants.
    """
    query = (
        select(Usage.arrival, Usage.request_id)
        .where(Usage.tenant_id == span.tenant_id, Usage.arrival < span.until)
        .order_by(Usage.arrival, Usage.request_id)
        .limit(PAGE)
    )
    missing, following = 0, query.where(Usage.arrival >= span.since)
    while True:
        async with database.read() as session:
            bills = (await session.execute(following)).all()
            names = {name: name.rpartition("-")[0] for _, name in bills}
            asked = {*names, *names.values()}
            found = set(await session.scalars(select(SloRow.id).where(SloRow.id.in_(asked))))
        missing += sum(name not in found and owner not in found for name, owner in names.items())
        if len(bills) < PAGE:
            return missing
        arrival, name = bills[-1]
        later = or_(Usage.arrival > arrival, Usage.request_id > name)
        following = query.where(Usage.arrival >= arrival, later)


def csv_header() -> str:
    """Return the first line of a CSV file, the names of its columns."""
    return ",".join(COLUMNS) + "\r\n"


def as_csv(line: Line) -> str:
    """Return a line as CSV (RFC 4180)."""
    out = io.StringIO()
    csv.writer(out).writerow([text_of(line.get(name, "")) for name in COLUMNS])
    return out.getvalue()


def as_json(line: Line) -> str:
    """Return a line as one line of JSON, without the fields that are empty."""
    said = {name: value for name, value in line.items() if value != ""}
    return json.dumps(said, ensure_ascii=True, separators=(",", ":"))


async def as_file(report: Report, form: str) -> AsyncGenerator[str]:
    """Yield a report as CSV, or as one JSON document with a line of text for each of its lines."""
    if form == "csv":
        yield csv_header()
        async for line in report.lines():
            yield as_csv(line)
        return
    start = f'{{"format":{json.dumps(FORMAT)},"lines":[\n'
    async for line in report.lines():
        yield start + as_json(line)
        start = ",\n"
    yield "\n]}\n"


def moment_text(moment: datetime) -> str:
    """Return a moment in UTC to the microsecond, as RFC 3339."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def next_chain(chain: str, line: Line) -> str:
    """Return the chain of a line: SHA-256 of the JSON of the chain before and its columns."""
    texts = [text_of(line.get(name, "")) for name in COLUMNS[:-1]]
    content = json.dumps([chain, *texts], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def text_of(value: Value) -> str:
    """Return a value as CSV and the chain have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
