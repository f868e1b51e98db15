"""`tiergate migrate`: brings the database to the schema that this version works with."""

from __future__ import annotations

from typing import Annotated

from gateway.cli.options import DatabaseUrl, DataDir, flag, load_settings


def migrate(
    check: Annotated[
        bool,
        flag(
            "check",
            "Change nothing; exit code 1 where a change is needed.",
            variable="TIERGATE_MIGRATE_CHECK",
        ),
    ] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> int:
    """Create the database, or bring it to the schema of this version.

    Run it once before starting a new version, however many gateways there are; several at the same
    time wait for one another. A SQLite database is created at first use without it.

    \b
    Example:
      tiergate migrate --database-url postgresql://tiergate@localhost/tiergate
    """
    import asyncio

    from migrations import runner
    from tenants.database import display_name, parse_url, sqlite_file

    settings = load_settings(database_url=database_url, data_dir=data_dir)
    url = parse_url(settings.database_url)
    name, head, file = display_name(url), runner.head_revision(), sqlite_file(url)
    is_there = file is None or file.exists()
    found = asyncio.run(runner.current_revision(settings.database_url)) if is_there else None
    if found == head:
        print(f"{name} is at revision {head}: nothing to do")
        return 0
    if check:
        print(f"{name} is at revision {found or 'none'}, this version needs {head}")
        return 1
    asyncio.run(runner.upgrade(settings.database_url))
    print(f"{name}: revision {found or 'none'} -> {head}")
    return 0
