"""`tiergate budget ...`: sets and shows what may be spent; what is spent is not shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.limit import find_limits, owner_cells
from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.output import print_json, print_table
from gateway.cli.target import Model, OfKey, OfTenant, Org, require_target

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.values import ScopeLimits

Budgets = Annotated[
    list[str],
    typer.Argument(
        metavar="BUDGET...",
        help="tokens=5000000/month, money=12.50/day or .../week; none for an amount removes it.",
    ),
]
Alert = Annotated[
    int | None,
    flag("alert", "Warn when so many percent are spent.", "PERCENT", "TIERGATE_BUDGET_ALERT"),
]


def build_app() -> typer.Typer:
    """Return the sub-command `budget`."""
    app = typer.Typer(help="What may be spent in a day, a week, a month.", rich_markup_mode=None)
    app.command("set")(change)
    app.command("show")(show)
    return app


def change(
    budgets: Budgets,
    org: Org = None,
    tenant: OfTenant = None,
    key: OfKey = None,
    model: Model = "",
    alert: Alert = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Set budgets of an organisation, a tenant or a key, by the calendar in UTC.

    \b
    Examples:
      tiergate budget set --tenant acme tokens=5000000/month --alert 80
      tiergate budget set --org umbrella money=1200/month money=100/day
      tiergate budget set --tenant acme tokens=none/month
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator
    from tenants.limits import parse_budget

    scope, name = require_target(org, tenant, key)
    changes = [parse_budget(text, alert) for text in budgets]

    async def work(ledger: Ledger) -> ScopeLimits:
        return await ledger.repository.set_budgets(
            scope, name, changes, utc_now(), model=model, by=operator()
        )

    made = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(made)
        return
    print(f"set budgets of {scope} {name}: {', '.join(budgets)}")


def show(
    org: Org = None,
    tenant: OfTenant = None,
    key: OfKey = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the budgets of one organisation, tenant or key, or all that are set."""
    from tenants.limits import budget_text

    records, names = find_limits(org, tenant, key, database_url, data_dir)
    if as_json:
        print_json([record for record in records if record.budgets])
        return
    rows = [
        [
            *owner_cells(record, names),
            budget_text(budget),
            "" if budget.alert_percent is None else f"{budget.alert_percent}%",
        ]
        for record in records
        for budget in record.budgets
    ]
    print_table(["scope", "of", "model", "budget", "alert"], rows)
