"""Flags that several commands share, and how flags become Settings; it runs nothing.

Every flag has a variable; the flag wins. Values are checked in `gateway.settings` only, so that a
flag and its variable are refused in the same words. Settings are imported late: `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gateway.cli.output import CommandError, note

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from gateway.settings import Settings

T = TypeVar("T")


def flag(name: str, text: str, metavar: str | None = None, variable: str | None = None) -> Any:
    """Return the option `--name`, also read from TIERGATE_NAME, with its line of help."""
    if variable is None:
        variable = "TIERGATE_" + name.upper().replace("-", "_")
    return typer.Option(f"--{name}", envvar=variable, metavar=metavar, help=text)


DatabaseUrl = Annotated[
    str | None,
    flag(
        "database-url",
        "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; default: tiergate.db in the data "
        "directory.",
        "URL",
    ),
]
DataDir = Annotated[
    str | None,
    flag(
        "data-dir",
        "Folder of the pepper and of the SQLite database; default: $XDG_DATA_HOME/tiergate, or "
        "~/.local/share/tiergate.",
        "DIR",
    ),
]
AsJson = Annotated[bool, flag("json", "Print JSON instead of columns.")]


def load_settings(**flags: Any) -> Settings:
    """Return the settings of the environment, overruled by the flags that were given."""
    from gateway.settings import Settings, SettingsError

    try:
        return Settings.load(**flags)
    except SettingsError as error:
        raise CommandError(str(error)) from None


def with_ledger(
    database_url: str | None, data_dir: str | None, work: Callable[[Ledger], Awaitable[T]]
) -> T:
    """Open the ledger that the flags name, let `work` use it, and close it."""
    import asyncio

    from gateway.ledger import ledger

    settings = load_settings(database_url=database_url, data_dir=data_dir)

    async def run() -> T:
        async with ledger(settings, note) as opened:
            return await work(opened)

    return asyncio.run(run())
