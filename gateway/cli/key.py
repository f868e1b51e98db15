"""`tiergate key ...`: makes, lists and revokes keys; a key is printed once and kept nowhere."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gateway.cli.key_set import change, read_scopes
from gateway.cli.limit import read_limits
from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.output import CommandError, moment, note, print_json, print_table
from gateway.cli.times import later, parse_duration

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.repository import RevocationPlan, Rotation
    from tenants.values import Budget, IssuedKey, KeyRecord, Limits, TenantRecord

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


Which = Annotated[
    str, typer.Argument(metavar="KEY", help="Its id, as listed (tgk_live_...x7Qa), or whole.")
]
Scopes = Annotated[
    str | None,
    flag(
        "scopes",
        "What it may be used for, with commas between: chat, completions, responses, messages, "
        "embeddings, models; default: everything.",
        "A,B",
        "TIERGATE_KEY_SCOPES",
    ),
]
Rpm = Annotated[
    str | None, flag("rpm", "Most requests in any 60 seconds.", "N", "TIERGATE_KEY_RPM")
]
Tpm = Annotated[str | None, flag("tpm", "Most tokens in any 60 seconds.", "N", "TIERGATE_KEY_TPM")]
Concurrent = Annotated[
    str | None,
    flag("concurrent", "Most requests at the same time.", "N", "TIERGATE_KEY_CONCURRENT"),
]
Budgets = Annotated[
    list[str] | None,
    flag(
        "budget",
        "tokens=1000000/day, money=12.50/month or .../week; may be given several times.",
        "BUDGET",
        "TIERGATE_KEY_BUDGET",
    ),
]
Alert = Annotated[
    int | None,
    flag(
        "alert", "Warn when so many percent of a budget are spent.", "PERCENT", "TIERGATE_KEY_ALERT"
    ),
]


def build_app() -> typer.Typer:
    """Return the sub-command `key`."""
    app = typer.Typer(help="The keys of tenants.", rich_markup_mode=None)
    app.command("create")(create)
    app.command("list")(list_all)
    app.command("set")(change)
    app.command("rotate")(rotate)
    app.command("revoke")(revoke)
    app.command("revoke-all")(revoke_all)
    return app


def create(
    tenant: Tenant,
    name: Name = "default",
    expires_in: ExpiresIn = None,
    models: Models = None,
    environment: Environment = "live",
    scopes: Scopes = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    budget: Budgets = None,
    alert: Alert = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: the only time that it is shown.

    \b
    Examples:
      tiergate key create --tenant acme
      KEY=$(tiergate key create --tenant acme --name ci --expires-in 90d)
      tiergate key create --tenant acme --scopes chat,models --rpm 60 --budget tokens=1000000/day
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    now = utc_now()
    lifetime = None if expires_in is None else parse_duration(expires_in)
    kind = _environment(environment)
    allowed = None if models is None else [m.strip() for m in models.split(",")]
    routes = None if scopes is None else read_scopes(scopes)
    limits = _limits({"rpm": rpm, "tpm": tpm, "concurrent": concurrent})
    budgets = _budgets(budget or [], alert)

    async def work(ledger: Ledger) -> IssuedKey:
        return await ledger.repository.create_key(
            tenant,
            now,
            name,
            expires_at=None if lifetime is None else later(now, lifetime),
            models=allowed,
            scopes=routes,
            limits=limits,
            budgets=budgets,
            env=kind,
            by=operator(),
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
            ",".join(k.scopes) if k.scopes else "all",
            moment(k.expires_at),
            moment(k.revoked_at),
            moment(k.last_used_at),
            k.id,
        ]
        for k in keys
    ]
    head = ["key", "tenant", "name", "models", "scopes", "expires", "revoked", "last used", "id"]
    print_table(head, rows)


def revoke(
    which: Which,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Close the door for a key; running gateways refuse it within two seconds.

    \b
    Example:
      tiergate key revoke tgk_live_...x7Qa
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    async def work(ledger: Ledger) -> KeyRecord:
        return await ledger.repository.revoke_key(which, utc_now(), by=operator())

    record = with_ledger(database_url, data_dir, work)
    print(f"revoked {record.display} ({record.name}) at {moment(record.revoked_at)}")


def rotate(
    which: Which,
    overlap: Annotated[
        str,
        flag(
            "overlap",
            "How long the old key works beside the new one, up to 90d; 0 for not at all.",
            "TIME",
            "TIERGATE_KEY_OVERLAP",
        ),
    ] = "24h",
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make the successor of a key and print it; the old one expires after the overlap.

    The new key may do what the old one may, and both share one set of limits.

    \b
    Example:
      tiergate key rotate tgk_live_...x7Qa --overlap 24h
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    beside = timedelta(0) if overlap == "0" else parse_duration(overlap, "--overlap")

    async def work(ledger: Ledger) -> Rotation:
        return await ledger.repository.rotate_key(which, utc_now(), beside, by=operator())

    turned = with_ledger(database_url, data_dir, work)
    if as_json:
        issued = turned.issued
        print_json({"key": issued.plaintext, "record": issued.record, "old": turned.old})
        return
    print(turned.issued.plaintext)
    note(
        f"key {turned.issued.record.name!r} follows {turned.old.display}, which works until "
        f"{moment(turned.old.expires_at)}; it is shown only this once"
    )


def revoke_all(
    tenant: Tenant,
    confirm: Annotated[
        str | None,
        flag(
            "confirm",
            "The code that was shown with the keys; without it they are only shown.",
            "CODE",
            "TIERGATE_KEY_CONFIRM",
        ),
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Close the door for all keys of a tenant, in two steps: see them, then confirm.

    \b
    Examples:
      tiergate key revoke-all --tenant acme
      tiergate key revoke-all --tenant acme --confirm 4be1c07a
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    now = utc_now()
    if confirm is None:

        async def look(ledger: Ledger) -> RevocationPlan:
            return await ledger.repository.plan_revocation(tenant, now)

        plan = with_ledger(database_url, data_dir, look)
        if as_json:
            print_json(plan)
            return
        rows = [[k.display, k.name, moment(k.expires_at), k.id] for k in plan.keys]
        print_table(["key", "name", "expires", "id"], rows)
        note(
            f"to revoke these {len(plan.keys)} keys: "
            f"tiergate key revoke-all --tenant {tenant} --confirm {plan.code}"
        )
        return

    async def close(ledger: Ledger) -> list[KeyRecord]:
        return await ledger.repository.revoke_all(tenant, confirm, now, by=operator())

    gone = with_ledger(database_url, data_dir, close)
    if as_json:
        print_json(gone)
        return
    print(f"revoked {len(gone)} keys of {tenant}")


def _limits(given: dict[str, str | None]) -> Limits:
    from tenants.limits import changed_limits
    from tenants.values import Limits

    return changed_limits(Limits(), read_limits(given))


def _budgets(texts: list[str], alert: int | None) -> list[Budget]:
    from tenants.limits import parse_budget
    from tenants.values import Budget

    read = [parse_budget(text, alert) for text in texts]
    for text, budget in zip(texts, read, strict=True):
        if not isinstance(budget, Budget):
            raise CommandError(f"--budget: {text!r} takes away what a new key does not have")
    return [budget for budget in read if isinstance(budget, Budget)]


def _environment(text: str) -> Literal["live", "test"]:
    if text == "live":
        return "live"
    if text == "test":
        return "test"
    raise CommandError(f"--env: {text!r} is neither live nor test")
