"""What is known of the ledger's health: does it answer, and is its schema still the one we know.

The poll for changes tells whether it answers; the revision of its schema is looked at now and
then, because somebody may upgrade it under a gateway that runs. Who is served is not known here.
"""

from __future__ import annotations

import logging

from engine.core.clock import NS_PER_MS, Clock
from gateway.ledger import Ledger
from tenants.errors import LedgerError

logger = logging.getLogger(__name__)

LOOK_S = 10.0


class LedgerWatch:
    """Remembers how the ledger was last seen; used from one event loop."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._away_ns: int | None = None
        self.is_other_schema = False

    def answered(self) -> None:
        """It has answered a question."""
        self._away_ns = None

    def failed(self) -> None:
        """It has not answered."""
        if self._away_ns is None:
            self._away_ns = self._clock.now_ns()

    @property
    def away_ms(self) -> int | None:
        """For how long it has not answered, None while it does."""
        if self._away_ns is None:
            return None
        return (self._clock.now_ns() - self._away_ns) // NS_PER_MS

    async def look(self) -> None:
        """Look at the revision of the schema; what cannot be seen stays as it was seen."""
        expected = self._ledger.revision
        if not expected:
            return
        try:
            found = await self._ledger.database.revision()
        except LedgerError:
            self.failed()
            return
        if (found != expected) != self.is_other_schema:
            self.is_other_schema = found != expected
            logger.warning("the schema is at revision %s; this version needs %s", found, expected)
