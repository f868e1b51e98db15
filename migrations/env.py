"""Tells Alembic what to compare and where to run; it is executed by Alembic, never imported.

`migrations.runner` hands over an open connection. Without one (the `alembic` command, for
developers) the database is `-x url=...`, else the one that the settings name.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection

from gateway.settings import Settings
from migrations.runner import with_connection
from tenants.database import parse_url
from tenants.models import UtcDateTime
from tenants.slo_models import SloRow
from tenants.usage_days import UsageDay

# Importing a module of tables is what makes them known.
TABLES = {table.metadata for table in (SloRow, UsageDay)}


def render_item(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """Write our own column type as the plain type it is stored as: migrations import no models."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def run_on(connection: Connection) -> None:
    """Run the steps that Alembic was asked for in the transaction that is open on `connection`."""
    context.configure(
        connection=connection,
        target_metadata=list(TABLES),
        render_as_batch=True,
        render_item=render_item,
        compare_type=True,
        compare_server_default=True,
    )
    context.run_migrations()


def database_url() -> str:
    """Return the URL for a run of the `alembic` command."""
    given = context.get_x_argument(as_dictionary=True).get("url")
    return given if isinstance(given, str) else Settings.load().database_url


def run_offline() -> None:
    """Write the steps as SQL instead of running them."""
    context.configure(
        dialect_name=parse_url(database_url()).get_backend_name(),
        target_metadata=list(TABLES),
        render_as_batch=True,
        literal_binds=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    """Run the steps on the connection handed over, else on one of our own."""
    connection = context.config.attributes.get("connection")
    if connection is not None:
        run_on(connection)
    else:
        asyncio.run(with_connection(database_url(), run_on))


if context.is_offline_mode():
    run_offline()
else:
    run_online()
