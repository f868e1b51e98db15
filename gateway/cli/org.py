"""`tiergate org ...`: adds and lists organisations, which pay for one or more tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, with_ledger
from gateway.cli.output import moment, note, print_json, print_table

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.values import OrganisationRecord, TenantRecord


def build_app() -> typer.Typer:
    """Return the sub-command `org`."""
    app = typer.Typer(help="Who pays for one or more tenants.", rich_markup_mode=None)
    app.command("add")(add)
    app.command("list")(list_all)
    return app


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of your choice.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Add an organisation.

    \b
    Example:
      tiergate org add umbrella
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    async def work(ledger: Ledger) -> OrganisationRecord:
        return await ledger.repository.create_organisation(name, utc_now(), by=operator())

    record = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(record)
        return
    print(f"added organisation {record.name}")
    note(f"next: tiergate tenant add SOMEONE --org {record.name}")


def list_all(
    database_url: DatabaseUrl = None, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """List the organisations and how many tenants each has."""

    async def work(ledger: Ledger) -> tuple[list[OrganisationRecord], list[TenantRecord]]:
        repository = ledger.repository
        return await repository.list_organisations(), await repository.list_tenants()

    records, tenants = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(records)
        return
    owners = [tenant.organisation_id for tenant in tenants]
    rows = [[r.name, str(owners.count(r.id)), moment(r.created_at), r.id] for r in records]
    print_table(["name", "tenants", "created", "id"], rows)
