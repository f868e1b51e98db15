"""Hears from Postgres that something has changed, the moment it is committed; it asks nothing.

It only makes a gateway look sooner: what counts is the ledger's change counter, which is polled
anyway. So a notice that is lost, with the connection or with the server, costs no more than the
time to the next poll. A pooler that hands connections round by transaction tells nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.database import Database
from tenants.repository.common import CHANNEL

logger = logging.getLogger(__name__)

PING_S = 15.0  # a peer that vanished without a word is noticed by then
RETRY_S = 0.1
RETRY_MAX_S = 5.0


class ChangeListener:
    """Calls `heard` at every change, and whenever a line was made: what came before is unknown."""

    def __init__(
        self, database: Database, heard: Callable[[], None], *, retry_max_s: float = RETRY_MAX_S
    ) -> None:
        self._database = database
        self._heard = heard
        self._retry_max_s = retry_max_s
        self.is_connected = False
        self.connections = 0  # so far

    async def run(self) -> None:
        """Keep a line to the database until cancelled; on SQLite there is none, and it ends."""
        engine = self._database.listening_engine()
        if engine is None:
            return
        driver_errors = _errors_of(engine)
        pause_s = RETRY_S
        try:
            while True:
                before = self.connections
                try:
                    await self._hold_line(engine)
                    reason = "closed"
                except driver_errors as error:
                    reason = " ".join(str(error).split()) or type(error).__name__
                finally:
                    self.is_connected = False
                if self.connections > before:
                    pause_s = RETRY_S
                    logger.warning("the line that tells of key changes is lost: %s", reason)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, self._retry_max_s)
        finally:
            await engine.dispose()

    async def _hold_line(self, engine: AsyncEngine) -> None:
        """Listen until the connection is lost."""
        lost = asyncio.Event()
        async with engine.connect() as connection:
            # The driver's own connection: only it can call back.
            driver: Any = (await connection.get_raw_connection()).driver_connection
            driver.add_termination_listener(lambda _connection: lost.set())
            await driver.add_listener(CHANNEL, lambda *_notice: self._heard())
            self.is_connected = True
            self.connections += 1
            self._heard()
            try:
                while not lost.is_set():
                    try:
                        async with asyncio.timeout(PING_S):
                            await lost.wait()
                    except TimeoutError:
                        await driver.execute("SELECT 1")
            finally:
                # There is nothing to give back, least of all to a connection that is gone.
                await connection.invalidate()


def _errors_of(engine: AsyncEngine) -> tuple[type[BaseException], ...]:
    """Return what a lost connection may look like: the driver's errors come as they are."""
    driver: Any = engine.dialect.loaded_dbapi
    names = ("PostgresError", "InterfaceError", "InternalClientError")
    return (
        SQLAlchemyError,
        OSError,
        TimeoutError,
        *(getattr(driver.asyncpg, name) for name in names),
    )
