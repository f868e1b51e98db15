"""Requests of which the outcome and every verdict are known by hand, not by the code under test."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import text

from tenants.database import Database
from tenants.repository import Repository
from tenants.slo import Outcome, SloRecord
from tenants.slo_report import Report, ReportSpan
from tenants.slo_store import insert_slo
from tenants.slo_verify import Verified, verify_report
from tenants.slo_verify_ledger import LedgerCheck

MS = 1_000_000
YES, NO, OUT = True, False, None
FORMS = ("html", "csv", "json")


@dataclass(frozen=True)
class Case:
    """How one request went; `first` and `total` are ns after it was due, `first` None: no token."""

    outcome: str
    first: int | None
    total: int
    gaps: int
    late: int
    met: bool | None
    ttft_met: bool | None
    tbt_met: bool | None
    available: bool | None
    reason: str = ""


# Edges: exactly when due is in time; one late gap in a hundred is allowed, one in 99 is not.
CASES = (
    Case("completed", -3 * MS, 9 * MS, 100, 1, YES, YES, YES, YES),
    Case("completed", 0, 9 * MS, 0, 0, YES, YES, OUT, YES),
    Case("completed", 1, 9 * MS, 200, 2, NO, NO, YES, YES),
    Case("completed", -1, 9 * MS, 99, 1, NO, YES, NO, YES),
    Case("completed", 5 * MS, 9 * MS, 199, 2, NO, NO, NO, YES),
    Case("completed", None, 0, 0, 0, OUT, OUT, OUT, YES),
    Case("completed", None, 1, 0, 0, OUT, OUT, OUT, YES),
    Case("disconnected", None, 0, 0, 0, OUT, OUT, OUT, OUT),
    Case("disconnected", None, 1, 0, 0, NO, NO, OUT, OUT),
    Case("disconnected", -MS, 0, 50, 0, YES, YES, YES, OUT),
    Case("disconnected", -MS, 0, 50, 1, NO, YES, NO, OUT),
    Case("disconnected", MS, 2 * MS, 3, 0, NO, NO, YES, OUT),
    Case("refused", None, -400 * MS, 0, 0, NO, NO, OUT, NO, "queue_full"),
    Case("failed", None, -100 * MS, 0, 0, NO, NO, OUT, NO, "engine_error"),
    Case("failed", -MS, 2 * MS, 10, 0, NO, YES, YES, NO, "engine_error"),
    Case("expired", -MS, 90_000 * MS, 300, 200, NO, YES, NO, NO, "timeout"),
    Case("expired", None, 90_000 * MS, 0, 0, NO, NO, OUT, NO, "timeout"),
    Case("limited", None, -499 * MS, 0, 0, OUT, OUT, OUT, OUT, "rate_limited"),
    Case("invalid", None, -499 * MS, 0, 0, OUT, OUT, OUT, OUT, "bad_value"),
)
GOOD = 2  # the first cases, which most requests are


class Slos:
    """A ledger with tenants, tiers of several versions and requests; `now` is a whole minute."""

    def __init__(self, database: Database, repository: Repository, now: datetime) -> None:
        self.database = database
        self.repository = repository
        self.now = now
        self.tenants: dict[str, str] = {}
        self.records: list[SloRecord] = []

    async def open(self, *names: str) -> None:
        """Make tenants, and change a tier's promise fifteen days ago."""
        for name in names:
            made = await self.repository.create_tenant(name, "premium", self.now)
            self.tenants[name] = made.id
        await self.repository.change_tier(
            "premium",
            {"ttft_ms": "400", "objective": "0.985"},
            now=self.now - timedelta(days=15),
        )

    async def fill(
        self, count: int, days: float = 39.9, *, names: tuple[str, ...] = (), every: int = 4
    ) -> None:
        """Offer `count` requests, spread over the days before now; every case is among them.

        One in `every` goes through the cases, the others are good ones.
        """
        draw = random.Random(7)
        whose = names or tuple(self.tenants)
        records = []
        for i in range(count):
            case = CASES[i // every % len(CASES)] if i % every == 0 else CASES[draw.randrange(GOOD)]
            age = timedelta(days=days) * draw.random() ** 2
            records.append(
                await self.record(i, case, whose[i % len(whose)], self.now - age - MICRO)
            )
        self.records += records
        for start in range(0, len(records), 700):
            await insert_slo(self.database, records[start : start + 700])

    async def record(
        self, i: int, case: Case, tenant: str, arrival: datetime, name: str = "chatcmpl-"
    ) -> SloRecord:
        """Return a request that went so."""
        asked, tier = (("premium", "premium"), ("free", "free"), ("premium", "free"))[
            (0, 0, 0, 1, 1, 1, 2)[i % 7]
        ]
        version = 2 if tier == "premium" and arrival >= self.now - timedelta(days=15) else 1
        prompt = 37 * (i % 60)
        base, more = {"premium": ((500, 400)[version - 1], 250), "free": (2000, 1000)}[tier]
        due = base * MS + more * prompt * 1000
        is_eased = i % 23 == 0
        if is_eased:
            due += 250 * MS  # the client was content to wait
        mode = "gap" if tier == "premium" and i % 5 else "stream"
        tbt = {"premium": 100, "free": 500}[tier] * MS
        steady = case.late * 100 <= case.gaps
        needed = None
        if case.gaps:
            needed = tbt - (i % 50) * MS if steady else tbt + 1 + i % 1000
        return SloRecord(
            id=f"{name}{i:05d}",
            request_id=f"req_{i:05d}",
            tenant_id=self.tenants[tenant],
            key_id=f"{i % 3:032x}",
            model='m "1",2\n<b>',
            operation="chat",
            tier_asked=asked,
            tier=tier,
            tier_version=version,
            arrival=arrival,
            outcome=Outcome(case.outcome),
            reason=case.reason,
            stream=bool(i % 5),
            prompt_tokens=prompt,
            output_tokens=case.gaps + (case.first is not None),
            total_ns=max(due + case.total, 0),
            queue_ns=None if i % 3 else 1000 * i,
            ttft_ns=None if case.first is None else due + case.first,
            ttft_due_ns=due,
            gaps=case.gaps,
            late_gaps=case.late,
            tbt_ns=tbt,
            tbt_mode=mode,
            needed_tbt_ns=needed,
            draw=i % 1024,
            met=case.met,
            ttft_met=case.ttft_met,
            tbt_met=case.tbt_met,
            available=case.available,
            eased=is_eased,
            trace_id=f"{i:032x}" if i % 2 else "",
        )

    def known(
        self, since: datetime, until: datetime, tenant: str | None = None
    ) -> dict[str, Counter[str]]:
        """Return the sums of a span by tier, from what the cases say and nothing else."""
        found: dict[str, Counter[str]] = {}
        for record in self._of(since, until, tenant):
            sums = found.setdefault(record.tier, Counter())
            sums.update(["offered", record.outcome.value])
            sums["downgraded"] += record.tier_asked != record.tier
            for name, verdict in (
                *(("all", record.met), ("ttft", record.ttft_met)),
                *(("tbt", record.tbt_met), ("availability", record.available)),
            ):
                sums[f"counted_{name}"] += verdict is not None
                sums[f"bad_{name}"] += verdict is False
            if record.tbt_met is not None:
                sums["gaps"] += record.gaps
                sums["late_gaps"] += record.late_gaps
        return found

    def _of(self, since: datetime, until: datetime, tenant: str | None) -> Iterator[SloRecord]:
        whose = None if tenant is None else self.tenants[tenant]
        for record in self.records:
            if since <= record.arrival < until and whose in (None, record.tenant_id):
                yield record

    def span(self, tenant: str, days: float = 40) -> ReportSpan:
        """Return so many days until now."""
        return ReportSpan(self.tenants[tenant], self.now - timedelta(days=days), self.now)

    async def report(self, folder: Path, form: str, span: ReportSpan) -> Path:
        """Write a report as a file."""
        from gateway.slo_report_page import report_file

        file = folder / f"report.{form}"
        parts = [part async for part in report_file(Report(self.database, span), form)]
        file.write_text("".join(parts), newline="")
        return file

    async def verify(self, file: Path, *, alone: bool = False) -> Verified:
        """Check a file, against the ledger unless `alone`."""
        check = None if alone else LedgerCheck(self.database, self.now)
        return await verify_report(file, check)

    async def execute(self, statement: str) -> None:
        """Change the ledger behind everybody's back."""
        async with self.database.write() as session:
            await session.execute(text(statement))


MICRO = timedelta(microseconds=1)
