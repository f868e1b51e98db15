"""`tiergate key ...`: makes, lists and revokes keys; a key is printed once and kept nowhere."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.output import CommandError, moment, note, print_json, print_table

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.values import IssuedKey, KeyRecord, TenantRecord

UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}

Tenant = Annotated[str, flag("tenant", "Whose key it is, by name or id.", "NAME")]
Name = Annotated[str, flag("name", "What it is for.", "TEXT", "TIERGATE_KEY_NAME")]
ExpiresIn = Annotated[
    str | None,
    flag(
        "expires-in",
        "How long it opens the door: 90d, 12h, 30m or 4w; default: until revoked.",
        "TIME",
        "TIERGATE_KEY_EXPIRES_IN",
    ),
]
Models = Annotated[
    str | None,
    flag(
        "models",
        "The models it may use, with commas between; default: every model.",
        "A,B",
        "TIERGATE_KEY_MODELS",
    ),
]
Environment = Annotated[
    str,
    flag("env", "live or test: begins with tgk_live_ or tgk_test_.", "ENV", "TIERGATE_KEY_ENV"),
]


def build_app() -> typer.Typer:
    """Return the sub-command `key`."""
    app = typer.Typer(help="The keys of tenants.", rich_markup_mode=None)
    app.command("create")(create)
    app.command("list")(list_all)
    app.command("revoke")(revoke)
    return app


def create(
    tenant: Tenant,
    name: Name = "default",
    expires_in: ExpiresIn = None,
    models: Models = None,
    environment: Environment = "live",
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: the only time that it is shown.

    \b
    Examples:
      tiergate key create --tenant acme
      KEY=$(tiergate key create --tenant acme --name ci --expires-in 90d)
    """
    from engine.core.clock import utc_now

    now = utc_now()
    lifetime = None if expires_in is None else parse_duration(expires_in)
    kind = _environment(environment)
    allowed = None if models is None else [m.strip() for m in models.split(",")]

    async def work(ledger: Ledger) -> IssuedKey:
        return await ledger.repository.create_key(
            tenant,
            now,
            name,
            expires_at=None if lifetime is None else _later(now, lifetime),
            models=allowed,
            env=kind,
        )

    issued = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json({"key": issued.plaintext, "record": issued.record})
        return
    # Alone on stdout, so that a shell can catch it.
    print(issued.plaintext)
    until = issued.record.expires_at
    note(
        f"key {issued.record.name!r} of {tenant}, "
        + (f"until {moment(until)}" if until else "until revoked")
        + "; it is shown only this once"
    )


def list_all(
    tenant: Annotated[
        str | None, flag("tenant", "Only this tenant's, by name or id.", "NAME")
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List keys by what may be shown of them, the newest first."""

    async def work(ledger: Ledger) -> tuple[list[KeyRecord], list[TenantRecord]]:
        keys = await ledger.repository.list_keys(tenant)
        return keys, await ledger.repository.list_tenants()

    keys, tenants = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(keys)
        return
    names = {t.id: t.name for t in tenants}
    rows = [
        [
            k.display,
            names.get(k.tenant_id, k.tenant_id),
            k.name,
            ",".join(k.models) if k.models else "all",
            moment(k.expires_at),
            moment(k.revoked_at),
            moment(k.last_used_at),
            k.id,
        ]
        for k in keys
    ]
    print_table(["key", "tenant", "name", "models", "expires", "revoked", "last used", "id"], rows)


def revoke(
    which: Annotated[
        str, typer.Argument(metavar="KEY", help="Its id, as listed (tgk_live_...x7Qa), or whole.")
    ],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Close the door for a key; running gateways refuse it within two seconds.

    \b
    Example:
      tiergate key revoke tgk_live_...x7Qa
    """
    from engine.core.clock import utc_now

    async def work(ledger: Ledger) -> KeyRecord:
        return await ledger.repository.revoke_key(which, utc_now())

    record = with_ledger(database_url, data_dir, work)
    print(f"revoked {record.display} ({record.name}) at {moment(record.revoked_at)}")


def parse_duration(text: str) -> timedelta:
    """Return how long `90d`, `12h`, `30m` or `4w` is."""
    parts = re.fullmatch(r"([1-9][0-9]{0,8})([mhdw])", text.strip())
    if parts is None:
        raise CommandError(f"--expires-in: {text!r} is not a time such as 90d, 12h, 30m or 4w")
    return timedelta(seconds=int(parts[1]) * UNITS[parts[2]])


def _later(now: datetime, lifetime: timedelta) -> datetime:
    try:
        return now + lifetime
    except OverflowError:
        raise CommandError("--expires-in: that is after the end of the calendar") from None


def _environment(text: str) -> Literal["live", "test"]:
    if text == "live":
        return "live"
    if text == "test":
        return "test"
    raise CommandError(f"--env: {text!r} is neither live nor test")
