"""`tiergate limit ...`: sets and shows how much may be asked for; what is used up is not shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.output import CommandError, print_json, print_table
from gateway.cli.target import Model, OfKey, OfTenant, Org, require_target, target_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.ledger import Ledger
    from tenants.repository import Repository
    from tenants.values import ScopeLimits


def _number(short: str, what: str) -> Any:
    text = f"{what}; none takes the limit away."
    return flag(short, text, "N", f"TIERGATE_LIMIT_{short.upper()}")


Rpm = Annotated[str | None, _number("rpm", "Requests in any 60 seconds")]
Tpm = Annotated[str | None, _number("tpm", "Tokens in any 60 seconds, of prompts and answers")]
Ipm = Annotated[str | None, _number("ipm", "Prompt tokens in any 60 seconds")]
Opm = Annotated[str | None, _number("opm", "Tokens of answers in any 60 seconds")]
Rpd = Annotated[str | None, _number("rpd", "Requests in a calendar day, UTC")]
Tpd = Annotated[str | None, _number("tpd", "Tokens in a calendar day, UTC")]
Concurrent = Annotated[str | None, _number("concurrent", "Requests at the same time")]


def build_app() -> typer.Typer:
    """Return the sub-command `limit`."""
    app = typer.Typer(help="How much may be asked for.", rich_markup_mode=None)
    app.command("set")(change)
    app.command("show")(show)
    return app


def change(
    org: Org = None,
    tenant: OfTenant = None,
    key: OfKey = None,
    model: Model = "",
    rpm: Rpm = None,
    tpm: Tpm = None,
    ipm: Ipm = None,
    opm: Opm = None,
    rpd: Rpd = None,
    tpd: Tpd = None,
    concurrent: Concurrent = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Set limits of an organisation, a tenant or a key; running gateways follow within seconds.

    \b
    Examples:
      tiergate limit set --tenant acme --rpm 600 --tpm 200000 --concurrent 20
      tiergate limit set --key tgk_live_...x7Qa --rpd none
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    given = {
        "rpm": rpm,
        "tpm": tpm,
        "ipm": ipm,
        "opm": opm,
        "rpd": rpd,
        "tpd": tpd,
        "concurrent": concurrent,
    }
    scope, name = require_target(org, tenant, key)
    changes = read_limits(given)
    if not changes:
        raise CommandError("nothing to set: name a limit, such as --rpm 600")

    async def work(ledger: Ledger) -> ScopeLimits:
        return await ledger.repository.set_limits(
            scope, name, changes, utc_now(), model=model, by=operator()
        )

    made = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(made)
        return
    said = ", ".join(f"{short} {value}" for short, value in given.items() if value is not None)
    print(f"set limits of {scope} {name}: {said}")


def show(
    org: Org = None,
    tenant: OfTenant = None,
    key: OfKey = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the limits of one organisation, tenant or key, or all that are set."""
    from tenants.limits import SHORT_NAMES

    records, names = find_limits(org, tenant, key, database_url, data_dir)
    if as_json:
        print_json(records)
        return
    rows = [
        [
            *owner_cells(record, names),
            *(
                "" if (amount := getattr(record.limits, field)) is None else str(amount)
                for field in SHORT_NAMES.values()
            ),
        ]
        for record in records
    ]
    print_table(["scope", "of", "model", *SHORT_NAMES], rows)


def read_limits(given: Mapping[str, str | None]) -> dict[str, int | None]:
    """Return flags such as `rpm` as what to change; raises InvalidValue."""
    from tenants.limits import SHORT_NAMES, parse_amount

    return {
        SHORT_NAMES[short]: parse_amount(f"--{short}", text)
        for short, text in given.items()
        if text is not None
    }


def find_limits(
    org: str | None,
    tenant: str | None,
    key: str | None,
    database_url: str | None,
    data_dir: str | None,
) -> tuple[Sequence[ScopeLimits], dict[str, str]]:
    """Return what is set for the target of the flags, or for all, and the names of their owners."""
    target = target_of(org, tenant, key)

    async def work(ledger: Ledger) -> tuple[Sequence[ScopeLimits], dict[str, str]]:
        names = await names_of(ledger.repository)
        if target is None:
            return await ledger.repository.list_limits(), names
        return await ledger.repository.get_limits(*target), names

    return with_ledger(database_url, data_dir, work)


async def names_of(repository: Repository) -> dict[str, str]:
    """Return how owners of limits are called, by their ids."""
    names = {o.id: o.name for o in await repository.list_organisations()}
    names |= {t.id: t.name for t in await repository.list_tenants()}
    keys = await repository.list_keys()
    # A chain goes by its newest key: the list begins with that.
    for key in keys:
        names.setdefault(key.chain_id, key.display)
    return names


def owner_cells(record: ScopeLimits, names: Mapping[str, str]) -> list[str]:
    """Return the first cells of a row: scope, name, model."""
    return [record.scope, names.get(record.target_id, record.target_id), record.model or "all"]
