"""`tiergate tenant ...`: adds, lists, changes, disables and enables tenants; tiers are data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.output import CommandError, moment, note, print_json, print_table

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.values import OrganisationRecord, TenantRecord

Name = Annotated[str, typer.Argument(metavar="NAME", help="The tenant's name, or its id.")]


def build_app() -> typer.Typer:
    """Return the sub-command `tenant`."""
    app = typer.Typer(help="Who is served, and in which tier.", rich_markup_mode=None)
    app.command("add")(add)
    app.command("list")(list_all)
    app.command("set")(change)
    app.command("disable")(disable)
    app.command("enable")(enable)
    return app


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of your choice.")],
    tier: Annotated[
        str,
        typer.Option(
            "--tier",
            envvar="TIERGATE_TENANT_TIER",
            metavar="TIER",
            help="premium, free, or a tier that you have added.",
        ),
    ] = "free",
    org: Annotated[
        str, flag("org", "The organisation that pays for it, by name or id.", "NAME")
    ] = "default",
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Add a tenant.

    \b
    Example:
      tiergate tenant add acme --tier premium --org umbrella
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    async def work(ledger: Ledger) -> TenantRecord:
        return await ledger.repository.create_tenant(
            name, tier, utc_now(), organisation=org, by=operator()
        )

    record = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(record)
        return
    print(f"added tenant {record.name} in tier {record.tier}")
    note(f"next: tiergate key create --tenant {record.name}")


def list_all(
    org: Annotated[
        str | None, flag("org", "Only this organisation's, by name or id.", "NAME")
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List the tenants, the tier of each and who pays for it."""

    async def work(ledger: Ledger) -> tuple[list[TenantRecord], list[OrganisationRecord]]:
        repository = ledger.repository
        return await repository.list_tenants(org), await repository.list_organisations()

    records, organisations = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(records)
        return
    names = {o.id: o.name for o in organisations}
    rows = [
        [
            *(r.name, r.tier, names.get(r.organisation_id, r.organisation_id)),
            *(moment(r.created_at), moment(r.disabled_at), r.id),
        ]
        for r in records
    ]
    print_table(["name", "tier", "org", "created", "disabled", "id"], rows)


def change(
    name: Name,
    tier: Annotated[
        str | None, flag("tier", "Its tier from now on.", "TIER", "TIERGATE_TENANT_NEW_TIER")
    ] = None,
    org: Annotated[
        str | None,
        flag(
            "org",
            "The organisation that pays from now on, by name or id.",
            "NAME",
            "TIERGATE_TENANT_NEW_ORG",
        ),
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Give a tenant another tier or organisation; what was used stays billed as it was.

    \b
    Example:
      tiergate tenant set acme --tier premium
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    if tier is None and org is None:
        raise CommandError("nothing to change: give --tier or --org")

    async def work(ledger: Ledger) -> TenantRecord:
        return await ledger.repository.change_tenant(
            name, utc_now(), tier=tier, organisation=org, by=operator()
        )

    record = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(record)
        return
    print(f"tenant {record.name} is in tier {record.tier}, organisation {record.organisation_id}")


def disable(name: Name, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Refuse all keys of a tenant, until it is enabled again."""
    record = _set_disabled(name, True, database_url, data_dir)
    print(f"disabled tenant {record.name}")


def enable(name: Name, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Accept the keys of a disabled tenant again."""
    record = _set_disabled(name, False, database_url, data_dir)
    print(f"enabled tenant {record.name}")


def _set_disabled(
    name: str, disabled: bool, database_url: str | None, data_dir: str | None
) -> TenantRecord:
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    async def work(ledger: Ledger) -> TenantRecord:
        return await ledger.repository.set_tenant_disabled(name, disabled, utc_now(), by=operator())

    return with_ledger(database_url, data_dir, work)
