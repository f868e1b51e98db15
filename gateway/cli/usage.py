"""`tiergate usage ...`: exports what was used and what it costs, and checks such an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.out_file import Out, writing
from gateway.cli.output import CommandError, note, print_json, tell_difference
from gateway.cli.times import Since, Until, span

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.usage_export import Line
    from tenants.usage_verify import Verified

FORMATS = ("csv", "jsonl")


def build_app() -> typer.Typer:
    """Return the sub-command `usage`."""
    app = typer.Typer(help="What was used, and what it costs.", rich_markup_mode=None)
    app.command("export")(export)
    app.command("verify")(verify)
    return app


def export(
    since: Since = None,
    until: Until = None,
    tenant: Annotated[
        str | None, flag("tenant", "Only this tenant's, by name or id.", "NAME")
    ] = None,
    form: Annotated[
        str, flag("format", "csv or jsonl (JSON lines).", "FORMAT", "TIERGATE_EXPORT_FORMAT")
    ] = "csv",
    out: Out = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Write one line for each request, then the sums, each line chained to the one before.

    \b
    Example:
      tiergate usage export --since 2026-10-01 --until 2026-11-01 --out october.csv
    """
    from engine.core.clock import utc_now
    from tenants.usage_export import WRITERS, Span, export_usage

    if form not in FORMATS:
        raise CommandError(f"--format: {form!r} is neither csv nor jsonl")
    now = utc_now()
    first, last = span(since, until, now)
    header, as_text = WRITERS[form]

    async def work(ledger: Ledger) -> Line:
        whose = None if tenant is None else (await ledger.repository.get_tenant(tenant)).id
        line: Line = {}
        with writing(out) as write:
            write(header())
            async for line in export_usage(ledger.database, Span(last, first, whose)):
                write(as_text(line))
        return line

    total = with_ledger(database_url, data_dir, work)
    if last > now:
        note(
            "warning: --until is in the future: `usage verify` will find that this file differs as "
            "soon as there are further requests in its span"
        )
    note(f"{total['requests']} requests, cost {total['cost']}; chain {total['chain']}")


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `usage export` has written.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> int:
    """Make every line and sum of an export again, from the raw records and the tiers' versions.

    Exit code 1, and the first line that differs, where anything does.

    \b
    Example:
      tiergate usage verify october.csv
    """
    from tenants.usage_verify import Differs, verify_usage

    async def work(ledger: Ledger) -> Verified | str:
        try:
            return await verify_usage(ledger.database, file)
        except Differs as difference:
            return str(difference)

    found = with_ledger(database_url, data_dir, work)
    if isinstance(found, str):
        tell_difference(file, found, as_json=as_json)
        return 1
    if as_json:
        print_json({"verified": True, "export": found})
        return 0
    print(
        f"{file}: all {found.lines} lines are right: {found.requests} requests, "
        f"{found.cost_nano} billionths; chain {found.chain}"
    )
    return 0
