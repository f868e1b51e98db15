"""`tiergate key set`: changes what a key may be used for and until when; it makes none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from gateway.cli.options import AsJson, DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.output import CommandError, moment, print_json
from gateway.cli.times import later, parse_duration

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from tenants.repository import Keep
    from tenants.values import KeyRecord, Route

T = TypeVar("T")
ALL, NEVER = "all", "never"

Which = Annotated[
    str, typer.Argument(metavar="KEY", help="Its id, as listed (tgk_live_...x7Qa), or whole.")
]


def change(
    which: Which,
    name: Annotated[
        str | None, flag("name", "What it is for.", "TEXT", "TIERGATE_KEY_NEW_NAME")
    ] = None,
    models: Annotated[
        str | None,
        flag("models", "The models it may use, or all.", "A,B", "TIERGATE_KEY_NEW_MODELS"),
    ] = None,
    scopes: Annotated[
        str | None,
        flag("scopes", "What it may be used for, or all.", "A,B", "TIERGATE_KEY_NEW_SCOPES"),
    ] = None,
    expires_in: Annotated[
        str | None,
        flag(
            "expires-in", "How long from now: 90d, 12h; or never.", "TIME", "TIERGATE_KEY_NEW_END"
        ),
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Narrow or widen a key that is there; running gateways follow within two seconds.

    \b
    Examples:
      tiergate key set tgk_live_...x7Qa --scopes chat --expires-in 30d
      tiergate key set tgk_live_...x7Qa --models all
    """
    from engine.core.clock import utc_now
    from gateway.cli.actor import operator

    now = utc_now()
    allowed = _read(models, ALL, lambda text: [part.strip() for part in text.split(",")])
    routes = _read(scopes, ALL, read_scopes)
    end = _read(expires_in, NEVER, lambda text: later(now, parse_duration(text)))
    if all(given is None for given in (name, models, scopes, expires_in)):
        raise CommandError("nothing to change: give --name, --models, --scopes or --expires-in")

    async def work(ledger: Ledger) -> KeyRecord:
        return await ledger.repository.change_key(
            which, now, name=name, models=allowed, scopes=routes, expires_at=end, by=operator()
        )

    record = with_ledger(database_url, data_dir, work)
    if as_json:
        print_json(record)
        return
    may = f"scopes {_said(record.scopes)}, models {_said(record.models)}"
    print(f"key {record.display}: {may}, until {moment(record.expires_at) or 'revoked'}")


def read_scopes(text: str) -> list[Route]:
    """Return scopes with commas between; raises CommandError."""
    from tenants.values import Route

    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in set(Route)]
    if unknown:
        raise CommandError(f"--scopes: {unknown[0]!r} is none of {', '.join(Route)}")
    return [Route(name) for name in names]


def _read(text: str | None, nothing: str, read: Callable[[str], T]) -> T | Keep | None:
    """Return what a flag says: not given, it stays; the word for no bound at all is None."""
    from tenants.repository import KEEP

    if text is None:
        return KEEP
    return None if text.strip().lower() == nothing else read(text)


def _said(values: tuple[str, ...] | None) -> str:
    return "all" if values is None else ",".join(values)
