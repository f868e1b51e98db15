"""Checks a report on SLOs: every verdict, sum, budget and percentile is made again from its facts.

It shares no code with what wrote the file or judged the requests, so that a mistake in one of the
two is a difference and not an agreement. Without a ledger it shows that a file is one whole and
follows from its own facts; with one, that these are the ledger's. It ends at the first difference.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tenants.errors import InvalidValue
from tenants.slo_verify_figures import Figures
from tenants.slo_verify_file import FACTS, PROMISES, TALLIES, Cells, Differs, open_report
from tenants.slo_verify_sums import (
    Again,
    Promised,
    budgets,
    check_promise,
    facts_of,
    moment,
    percentiles,
    promised_of,
    stamp,
    whole,
)

if TYPE_CHECKING:
    from tenants.slo_verify_ledger import LedgerCheck


__all__ = ["Differs", "TierResult", "Verified", "verify_report"]

_RULE = "1"
_HEAD = ("record", "rule", "since", "until", "tenant_id", "tenant", "organisation")
_TIER = ("record", "tier", "tier_version", "changed_at", "until", "target", *PROMISES, "tbt_mode")
_LONGEST = timedelta(days=400)


@dataclass(frozen=True, slots=True)
class TierResult:
    """What the span came to in one tier, for the objective `all`; ratios cut to six digits."""

    tier: str
    offered: int
    counted: int
    bad: int
    target: str
    attainment: str


@dataclass(frozen=True, slots=True)
class Verified:
    """A report of which everything was made again, and was the same.

    Whoever notes `chain`, that of the last line, knows the whole file by it. `notes` say how the
    tenant and its organisation are called in the ledger today, where that is otherwise.
    """

    tenant: str
    since: str
    until: str
    lines: int
    requests: int
    unrecorded: int
    figures: int
    against_ledger: bool
    tiers: tuple[TierResult, ...]
    chain: str
    notes: tuple[str, ...] = ()


class _Walk:
    """The lines of a file, one after the other, and the figures a page shows of them."""

    def __init__(self, lines: Iterator[tuple[str, Cells]], figures: Figures) -> None:
        self._lines = lines
        self._figures = figures
        self.number = 0
        self.where = "the file"
        self.line: Cells = {}
        self.chain = ""
        self.step()

    @property
    def kind(self) -> str:
        """What the line at hand is; empty behind the last."""
        return self.line.get("record", "")

    def step(self) -> None:
        """Go to the next line."""
        self.chain = self.line.get("chain", self.chain)
        self.where, self.line = next(self._lines, (f"after {self.where}", {}))
        if self.line:
            self.number += 1
            self._figures.check(self.number, self.line)

    def expect(self, right: Mapping[str, str]) -> None:
        """Raise `Differs` unless the line at hand says exactly this, and go on."""
        if not self.line:
            raise Differs(f"{self.where}: the file ends before its line {right['record']!r}")
        for name in ("record", *right, *self.line):
            found, must = self.line.get(name, ""), right.get(name, "")
            if name != "chain" and found != must:
                raise Differs(
                    f"{self.where}: {name} is {found!r} in the file, and must be {must!r}"
                )
        self.step()

    def allow(self, *names: str) -> None:
        """Raise `Differs` for a field that a line of this kind does not have."""
        for name in self.line:
            if name not in names and name != "chain":
                raise Differs(f"{self.where}: a line of a {self.kind} has no {name}")


async def verify_report(path: Path, ledger: LedgerCheck | None = None) -> Verified:
    """Make everything in the file again; raises `Differs`, `InvalidValue` for what is no report."""
    file = open_report(path)
    figures = Figures(file.figures)
    walk = _Walk(file.lines(), figures)
    since, until, head = _head(walk, path)
    if ledger is not None:
        await ledger.begin(head, since, until)
    again = Again(since, until)
    await _requests(walk, again, ledger)
    versions = await _tiers(walk, again, ledger)
    for kind, where in again.promises.items():
        check_promise(where, kind, versions.get((kind[0], kind[1])))
    results = tuple(_sums(walk, again, versions))
    if walk.kind != "total":
        walk.expect({"record": "total"})
    unrecorded = whole(walk.where, walk.line, "unrecorded")
    right = {"record": "total", "requests": str(again.requests), "unrecorded": str(unrecorded)}
    if ledger is not None:
        right["unrecorded"] = str(await ledger.end())
    walk.expect(right)
    if walk.line:
        raise Differs(f"{walk.where}: the file goes on after its last line")
    return Verified(
        tenant=head.get("tenant", ""),
        since=head["since"],
        until=head["until"],
        lines=walk.number,
        requests=again.requests,
        unrecorded=unrecorded,
        figures=figures.finish(),
        against_ledger=ledger is not None,
        tiers=results,
        chain=walk.chain,
        notes=() if ledger is None else tuple(ledger.notes),
    )


def _head(walk: _Walk, path: Path) -> tuple[datetime, datetime, Cells]:
    if walk.kind != "report":
        raise InvalidValue(f"{path} is no report of SLOs: it does not begin with what it is of")
    head = dict(walk.line)
    walk.allow(*_HEAD)
    if head.get("rule") != _RULE:
        raise InvalidValue(
            f"{path} was judged by rule {head.get('rule', '')!r}, only rule {_RULE} is known here"
        )
    since, until = (moment(walk.where, head.get(name, "")) for name in ("since", "until"))
    for at in (since, until):
        if at.second or at.microsecond:
            raise Differs(f"{walk.where}: {stamp(at)} is not on a whole minute")
    if not timedelta(0) <= until - since <= _LONGEST:
        raise Differs(f"{walk.where}: no report goes from {stamp(since)} to {stamp(until)}")
    walk.step()
    return since, until, head


async def _requests(walk: _Walk, again: Again, ledger: LedgerCheck | None) -> None:
    before: tuple[str, str] | None = None
    # Closed at the first difference: an open question would keep its connection.
    async with aclosing(_no_rows() if ledger is None else ledger.rows()) as rows:
        while walk.kind == "request":
            row = await anext(rows, None)
            if ledger is not None:
                _same_request(walk, row)
            walk.allow("record", "promise", *FACTS)
            place = (walk.line.get("arrival", ""), walk.line.get("id", ""))
            if before is not None and place <= before:
                raise Differs(f"{walk.where}: the requests are not in order")
            facts = facts_of(walk.where, walk.line)
            if not again.since <= facts.arrival < again.until:
                raise Differs(f"{walk.where}: the request arrived outside of the report's span")
            again.add(walk.where, walk.line, facts)
            if row is not None and ledger is not None:
                ledger.count(facts)
            before = place
            walk.step()
        row = await anext(rows, None)
        if row is not None:
            _same_request(walk, row)


async def _no_rows() -> AsyncGenerator[Cells]:
    nothing: tuple[Cells, ...] = ()
    for row in nothing:
        yield row


def _same_request(walk: _Walk, row: Cells | None) -> None:
    mine = walk.line.get("id", "") if walk.kind == "request" else ""
    other = "" if row is None else row["id"]
    if row is None or mine != other:
        has, lacks = (f"request {name}" if name else "none" for name in (other, mine))
        raise Differs(f"{walk.where}: the ledger has {has}, the file has {lacks}")
    for name in FACTS:
        found, must = walk.line.get(name, ""), row.get(name, "")
        if found != must:
            raise Differs(
                f"{walk.where}: {name} of request {other} is {found!r} in the file, and "
                f"{must!r} in the ledger"
            )


async def _tiers(
    walk: _Walk, again: Again, ledger: LedgerCheck | None
) -> dict[tuple[str, int], Promised]:
    """Read the versions of the tiers; with a ledger they must be those in force, all of them."""
    must = None if ledger is None else iter(await ledger.versions(again.tiers, again.used))
    versions: dict[tuple[str, int], Promised] = {}
    last, ends = ("", -1), ""
    while walk.kind == "tier":
        walk.allow(*_TIER)
        version = promised_of(walk.where, walk.line)
        key = (walk.line.get("tier", ""), whole(walk.where, walk.line, "tier_version"))
        if key <= last or key[0] not in again.tiers:
            raise Differs(f"{walk.where}: version {key[1]} of tier {key[0]!r} has no place here")
        if key == (last[0], last[1] + 1) and ends not in ("", stamp(version.changed_at)):
            raise Differs(f"{walk.where}: it does not begin when the version before it ends")
        versions[key] = version
        last, ends = key, walk.line.get("until", "")
        if ends:
            moment(walk.where, ends)
        if must is None:
            walk.step()
        else:
            walk.expect(next(must, {"record": "counts"}))
    if must is not None and (missing := next(must, None)) is not None:
        walk.expect(missing)
    return versions


def _sums(
    walk: _Walk, again: Again, versions: Mapping[tuple[str, int], Promised]
) -> Iterator[TierResult]:
    """Check all sums; yield what the whole span came to."""
    targets = {tier: _target(tier, versions, again.until) for tier in again.tiers}
    for (window, since, until), tier, tally in again.in_order():
        where = {"window": window, "since": stamp(since), "until": stamp(until), "tier": tier}
        counts = {name: str(tally.get(name, 0)) for name in TALLIES}
        if window == "span":
            counts["eased_count"] = str(again.eased_count[tier])
            counts["eased_met"] = str(_only_eased(again, tier, versions))
        walk.expect({"record": "counts", **where, **counts})
        if window == "day":
            continue
        for ratio in ("all", "ttft", "tbt", "availability"):
            said = budgets(tally, ratio, targets[tier])
            if window == "span" and ratio == "all":
                yield TierResult(
                    tier,
                    tally.get("offered", 0),
                    int(said["counted"]),
                    int(said["bad"]),
                    targets[tier],
                    said.get("attainment", ""),
                )
            walk.expect({"record": "budget", **where, **said})
    for measure in ("ttft", "tbt"):
        for tier in sorted(again.tiers):
            if values := again.taken.get((measure, tier)):
                place = {"record": "percentiles", "measure": measure, "tier": tier}
                walk.expect({**place, **percentiles(values)})
    for key, count in sorted(again.reasons.items()):
        names = dict(zip(("tier", "outcome", "reason"), key.split("\0"), strict=True))
        walk.expect({"record": "reason", **names, "requests": str(count)})
    for key, count in sorted(again.downgrades.items()):
        asked, served = key.split("\0")
        said = {"tier_asked": asked, "tier": served, "requests": str(count)}
        walk.expect({"record": "downgrade", **said})


def _target(tier: str, versions: Mapping[tuple[str, int], Promised], until: datetime) -> str:
    """Return the objective in force at the end of the span, or the tier's first that is known."""
    known = [versions[key] for key in sorted(versions) if key[0] == tier]
    if not known:
        return ""
    before = [version for version in known if version.changed_at < until]
    return (before[-1] if before else known[0]).target


def _only_eased(again: Again, tier: str, versions: Mapping[tuple[str, int], Promised]) -> int:
    """Return how many requests met what their client eased, and would have missed their tier's."""
    count = 0
    for name, number, prompt, first, needed in again.eased:
        version = versions.get((name, number))
        if name != tier or version is None:
            continue
        in_time = first is not None and first <= version.due(prompt)
        count += not (in_time and (needed or 0) <= version.gap_ms * 1_000_000)
    return count
