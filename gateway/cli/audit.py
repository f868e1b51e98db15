"""`tiergate audit ...`: lists and exports who changed what; it changes nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.out_file import Out, writing
from gateway.cli.output import json_line, moment, note, print_json, print_table
from gateway.cli.times import Since, Until, span

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.values import AuditRecord

OfTenant = Annotated[
    str | None, flag("tenant", "Only what is this tenant's, by name or id.", "NAME")
]


def build_app() -> typer.Typer:
    """Return the sub-command `audit`."""
    app = typer.Typer(help="Who changed what, and when.", rich_markup_mode=None)
    app.command("list")(list_some)
    app.command("export")(export)
    return app


def list_some(
    tenant: OfTenant = None,
    actor: Annotated[
        str | None,
        flag("actor", "Only what this account or user did.", "NAME", "TIERGATE_AUDIT_ACTOR"),
    ] = None,
    action: Annotated[
        str | None,
        flag("action", "Only this, such as key.revoke.", "ACTION", "TIERGATE_AUDIT_ACTION"),
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int, flag("limit", "Most entries shown, up to 1000.", "N", "TIERGATE_AUDIT_LIMIT")
    ] = 50,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List changes, the latest first.

    \b
    Example:
      tiergate audit list --tenant acme --since 2026-11-01
    """
    from engine.core.clock import utc_now

    first, last = span(since, until, utc_now())

    async def work(ledger: Ledger) -> list[AuditRecord]:
        return await ledger.repository.list_audit(
            tenant=tenant,
            actor=actor,
            action=action,
            since=first,
            until=last if until is not None else None,
            limit=limit,
        )

    records = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(records)
        return
    rows = [
        [
            str(r.number),
            moment(r.at),
            f"{r.actor} ({r.actor_kind})",
            r.address,
            r.action,
            f"{r.target} {r.target_id}",
            r.result,
        ]
        for r in records
    ]
    print_table(["number", "at", "who", "from", "action", "what", "result"], rows)


def export(
    tenant: OfTenant = None,
    since: Since = None,
    until: Until = None,
    out: Out = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Write changes as JSON lines, the oldest first, with what was before and after.

    \b
    Example:
      tiergate audit export --since 2026-01-01 --out audit.jsonl
    """
    from engine.core.clock import utc_now

    first, last = span(since, until, utc_now())

    async def work(ledger: Ledger) -> int:
        count = 0
        with writing(out) as write:
            records = ledger.repository.read_audit(
                tenant=tenant, since=first, until=last if until is not None else None
            )
            async for record in records:
                write(json_line(record))
                count += 1
        return count

    count = with_ledger(database_url, data_dir, work)
    note(f"{count} changes" + (f" in {out}" if out else ""))
