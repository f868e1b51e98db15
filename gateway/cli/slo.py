"""`tiergate slo ...`: what was promised and kept, as a table and as a report anyone can check."""

from __future__ import annotations

from contextlib import aclosing
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import slo_rules
from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, load_settings, with_ledger
from gateway.cli.out_file import Out, writing
from gateway.cli.output import CommandError, moment, note, print_json, print_table, tell_difference
from gateway.cli.times import parse_moment

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.slo_overview import TierView
    from tenants.slo_report import Report
    from tenants.slo_verify import Verified
    from tenants.values import TenantRecord

FORMATS = ("html", "csv", "json")
USUAL = timedelta(days=30)


def build_app() -> typer.Typer:
    """Return the sub-command `slo`."""
    app = typer.Typer(help="What was promised, and what was kept.", rich_markup_mode=None)
    app.command("show")(show)
    app.command("report")(report)
    app.command("verify")(verify)
    app.command("rules")(slo_rules.rules)
    app.command("openslo")(slo_rules.openslo)
    return app


def show(
    tenant: Annotated[
        str | None, flag("tenant", "Only this tenant's requests, by name or id.", "NAME")
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show attainment, budget left and burn of each tier, of all tenants or of one.

    Attainment and budget are those of the last 30 days. Burn 1 spends exactly the budget.

    \b
    Example:
      tiergate slo show --tenant acme
    """
    from engine.core.clock import utc_now
    from tenants.slo import RULE
    from tenants.slo_overview import overview

    now = utc_now()

    async def work(ledger: Ledger) -> tuple[TenantRecord | None, list[TierView]]:
        whose = None if tenant is None else await ledger.repository.get_tenant(tenant)
        targets = {tier.name: tier.objective for tier in await ledger.repository.list_tiers()}
        name = None if whose is None else whose.id
        return whose, await overview(ledger.database, now, targets, tenant_id=name)

    whose, views = with_ledger(database_url, data_dir, work)
    if as_json:
        name = None if whose is None else whose.name
        tiers = [_as_json(view) for view in views]
        print_json({"rule": RULE, "as_of": now, "tenant": name, "tiers": tiers})
        return
    windows = [window.name for window in views[0].windows if window.kind == "rolling"]
    rows = [_row(view, windows) for view in views]
    head = ["tier", "promised", "counted", "kept", "budget left", *(f"burn {n}" for n in windows)]
    print_table(head, rows)


def _row(view: TierView, windows: list[str]) -> list[str]:
    from tenants.slo import Objective
    from tenants.slo_overview import budget_texts

    said = budget_texts(view.window("30d"), Objective.ALL)
    burns = [budget_texts(view.window(n), Objective.ALL).get("burn") for n in windows]
    return [
        view.tier,
        "" if view.target is None else str(view.target),
        str(said["counted"]),
        str(said["attainment"] or ""),
        str(said.get("left_share") or ""),
        *("" if burn is None else str(burn)[:-4] for burn in burns),
    ]


def _as_json(view: TierView) -> dict[str, Any]:
    from tenants.slo import Objective
    from tenants.slo_overview import budget_texts

    return {
        "tier": view.tier,
        "target": None if view.target is None else str(view.target),
        "windows": [
            {
                "window": window.name,
                "kind": window.kind,
                "since": window.since,
                "until": window.until,
                "counts": window.counts,
                "objectives": {o.value: budget_texts(window, o) for o in Objective},
            }
            for window in view.windows
        ],
    }


def report(
    tenant: Annotated[str, flag("tenant", "Whose report, by name or id.", "NAME")],
    since: Annotated[
        str | None,
        flag(
            "from",
            "From this moment on, in UTC unless it says otherwise; default: 30 days before --to.",
            "TIME",
            "TIERGATE_SLO_FROM",
        ),
    ] = None,
    until: Annotated[
        str | None,
        flag("to", "Up to, and without, this moment; default: now.", "TIME", "TIERGATE_SLO_TO"),
    ] = None,
    form: Annotated[
        str,
        flag("format", "html, csv or json.", "FORMAT", "TIERGATE_SLO_FORMAT"),
    ] = "html",
    out: Out = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Write what a tenant was promised and what was kept, with the facts of each request.

    HTML is one page to send to a customer. Every form can be checked: `tiergate slo verify`.

    \b
    Example:
      tiergate slo report --tenant acme --from 2026-11-01 --to 2026-12-01 --out november.html
    """
    from engine.core.clock import utc_now

    if form not in FORMATS:
        raise CommandError(f"--format: {form!r} is none of html, csv and json")
    now = utc_now()
    last = now.replace(second=0, microsecond=0) if until is None else parse_moment(until, "--to")
    first = last - USUAL if since is None else parse_moment(since, "--from")
    if first > last:
        raise CommandError("--from is after --to")

    async def work(ledger: Ledger) -> Report:
        from gateway.slo_report_page import report_file
        from tenants.slo_report import Report, ReportSpan

        whose = (await ledger.repository.get_tenant(tenant)).id
        made = Report(ledger.database, ReportSpan(whose, first, last))
        with writing(out) as write:
            async with aclosing(report_file(made, form)) as parts:
                async for part in parts:
                    write(part)
        return made

    made = with_ledger(database_url, data_dir, work)
    if last > now:
        note(
            "warning: --to is in the future: `slo verify` will find that this file differs as soon "
            "as there are further requests in its span"
        )
    _, total = made.closing[-1]
    if total["unrecorded"]:
        note(f"warning: {total['unrecorded']} billed answers have no judgement: not in the report")
    if not int(total["requests"]):
        note(f"nothing was asked in this span, which ends at {last:%Y-%m-%d %H:%M} UTC")
    note(f"{total['requests']} requests; chain {total['chain']}")


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `slo report` has written.")],
    alone: Annotated[
        bool, flag("alone", "Ask no ledger, also where there is one.", None, "TIERGATE_SLO_ALONE")
    ] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> int:
    """Judge every request of a report again, and make all its sums and figures again.

    Where there is a ledger, each request must be as it is there. Exit code 1, and the first
    difference, where anything differs.

    \b
    Example:
      tiergate slo verify november.html
    """
    import asyncio

    from engine.core.clock import utc_now
    from tenants.slo_verify import Differs, verify_report
    from tenants.slo_verify_ledger import LedgerCheck

    async def work(ledger: Ledger | None) -> Verified | str:
        check = None if ledger is None else LedgerCheck(ledger.database, utc_now())
        try:
            return await verify_report(file, check)
        except Differs as difference:
            return str(difference)

    if alone or not _has_ledger(database_url, data_dir):
        note("no ledger is asked: the file is checked against the facts that it holds itself")
        found = asyncio.run(work(None))
    else:
        found = with_ledger(database_url, data_dir, work)
    if isinstance(found, str):
        tell_difference(file, found, as_json=as_json)
        return 1
    for text in found.notes:
        note(f"{file}: {text}")
    if as_json:
        print_json({"verified": True, "report": found})
    else:
        _tell(file, found)
    return 0


def _has_ledger(database_url: str | None, data_dir: str | None) -> bool:
    """Return False where nobody named a ledger and there is none: it would be made, and empty."""
    from tenants.database import parse_url, sqlite_file

    settings = load_settings(database_url=database_url, data_dir=data_dir)
    place = sqlite_file(parse_url(settings.database_url))
    return database_url is not None or place is None or place.exists()


def _tell(file: Path, found: Verified) -> None:
    where = "the ledger" if found.against_ledger else "its own facts"
    since, until = (moment(datetime.fromisoformat(at)) for at in (found.since, found.until))
    print(
        f"{file}: all {found.lines} lines follow from {where}: {found.requests} requests of "
        f"{found.tenant}, {since} to {until}"
    )
    for tier in found.tiers:
        promised = f", promised {tier.target}" if tier.target else ""
        print(
            f"  {tier.tier}: {tier.counted} of {tier.offered} requests count, {tier.bad} missed, "
            f"kept {tier.attainment or '-'}{promised}"
        )
    if found.figures:
        print(f"  the page shows {found.figures} figures, all as their lines say")
    if found.unrecorded:
        print(f"  {found.unrecorded} billed answers of this time have no judgement")
    print(f"  chain {found.chain}")
