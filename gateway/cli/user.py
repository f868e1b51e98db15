"""`tiergate user ...`: who may use the admin surface; a password is never an argument."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.output import CommandError, moment, print_json, print_table

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.values import Role, TenantRecord, UserRecord

Name = Annotated[str, typer.Argument(metavar="NAME", help="The user's name, or its id.")]
FromStdin = Annotated[
    bool,
    flag(
        "password-stdin",
        "Read the password from standard input, one line.",
        variable="TIERGATE_USER_PASSWORD_STDIN",
    ),
]


def build_app() -> typer.Typer:
    """Return the sub-command `user`."""
    app = typer.Typer(help="Who may use the admin surface.", rich_markup_mode=None)
    app.command("add")(add)
    app.command("list")(list_all)
    app.command("disable")(disable)
    app.command("enable")(enable)
    app.command("password")(password)
    app.command("role")(role_of)
    return app


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name, or an address.")],
    role: Annotated[
        str,
        flag(
            "role",
            "owner, operator, viewer or tenant-viewer.",
            "ROLE",
            "TIERGATE_USER_ROLE",
        ),
    ] = "viewer",
    tenant: Annotated[
        str | None, flag("tenant", "The tenant of a tenant-viewer, by name or id.", "NAME")
    ] = None,
    oidc_subject: Annotated[
        str | None,
        flag(
            "oidc-subject",
            "Who it is at the OIDC provider; then no password is needed.",
            "SUB",
            "TIERGATE_USER_OIDC_SUBJECT",
        ),
    ] = None,
    password_stdin: FromStdin = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Add a user; without --oidc-subject a password is asked for.

    \b
    Examples:
      tiergate user add ann@example.com --role owner
      tiergate user add bob --role tenant-viewer --tenant acme --oidc-subject 7f3a...
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator
    from gateway.passwords import Passwords

    chosen = _role(role)
    needs_password = password_stdin or oidc_subject is None
    secret = read_password(password_stdin) if needs_password else None

    async def work(ledger: Ledger) -> UserRecord:
        digest = None if secret is None else await Passwords().digest(secret)
        return await ledger.repository.create_user(
            name,
            chosen,
            utc_now(),
            tenant=tenant,
            password_digest=digest,
            oidc_subject=oidc_subject,
            by=operator(),
        )

    record = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(record)
        return
    print(f"added user {record.name} as {record.role}")


def list_all(
    database_url: DatabaseUrl = None, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """List the users and what each may do."""

    async def work(ledger: Ledger) -> tuple[list[UserRecord], list[TenantRecord]]:
        return await ledger.repository.list_users(), await ledger.repository.list_tenants()

    users, tenants = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(users)
        return
    names = {tenant.id: tenant.name for tenant in tenants}
    rows = [
        [
            user.name,
            user.role,
            names.get(user.tenant_id or "", user.tenant_id or ""),
            "+".join(
                way
                for way, has in (("password", user.has_password), ("oidc", user.oidc_subject))
                if has
            ),
            moment(user.created_at),
            moment(user.disabled_at),
            user.id,
        ]
        for user in users
    ]
    print_table(["name", "role", "tenant", "login", "created", "disabled", "id"], rows)


def disable(name: Name, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Shut a user out and end all logins; never the last owner."""
    print(f"disabled user {_set_disabled(name, True, database_url, data_dir).name}")


def enable(name: Name, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Let a user in again."""
    print(f"enabled user {_set_disabled(name, False, database_url, data_dir).name}")


def password(
    name: Name,
    password_stdin: FromStdin = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Give a user another password; ends all logins of that user."""
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator
    from gateway.passwords import Passwords

    secret = read_password(password_stdin)

    async def work(ledger: Ledger) -> UserRecord:
        await ledger.repository.get_user(name)  # before the work of a digest
        digest = await Passwords().digest(secret)
        return await ledger.repository.set_password(name, digest, utc_now(), by=operator())

    print(f"changed the password of user {with_ledger(database_url, data_dir, work).name}")


def role_of(
    name: Name,
    role: Annotated[
        str,
        typer.Argument(metavar="ROLE", help="owner, operator, viewer or tenant-viewer."),
    ],
    tenant: Annotated[
        str | None, flag("tenant", "The tenant of a tenant-viewer, by name or id.", "NAME")
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Give a user another role and end all logins of that user; never the last owner's.

    \b
    Example:
      tiergate user role bob operator
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    chosen = _role(role)

    async def work(ledger: Ledger) -> UserRecord:
        return await ledger.repository.change_role(
            name, chosen, utc_now(), tenant=tenant, by=operator()
        )

    record = with_ledger(database_url, data_dir, work)
    print(f"user {record.name} is {record.role} now")


def read_password(from_stdin: bool) -> str:
    """Return a password from standard input or typed unseen, twice; raises CommandError."""
    from gateway.passwords import check_password

    if from_stdin:
        secret = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        secret = str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    else:
        raise CommandError("there is no terminal to ask for a password at: use --password-stdin")
    check_password(secret)
    return secret


def _set_disabled(
    name: str, disabled: bool, database_url: str | None, data_dir: str | None
) -> UserRecord:
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    async def work(ledger: Ledger) -> UserRecord:
        return await ledger.repository.set_user_disabled(name, disabled, utc_now(), by=operator())

    return with_ledger(database_url, data_dir, work)


def _role(text: str) -> Role:
    from tenants.values import Role

    try:
        return Role(text)
    except ValueError:
        raise CommandError(f"--role: {text!r} is none of {', '.join(Role)}") from None
