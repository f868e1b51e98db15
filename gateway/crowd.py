"""Bounds how many records of requests that count nowhere are kept, tenant by tenant; it keeps none.

What a tenant sends beyond its own limits, or cannot be understood, costs nothing to send: written
down without a bound it would fill the ledger. So of each tenant so many a minute are kept.
"""

from __future__ import annotations

from engine.core.clock import NS_PER_S

MOST_A_MINUTE = 600
_MINUTE_NS = 60 * NS_PER_S


class Crowd:
    """Counts by tenant within the minute under way; `num_left_out` only ever grows."""

    def __init__(self, most: int = MOST_A_MINUTE) -> None:
        self._most = most
        self._counts: dict[str, int] = {}
        self._until_ns = 0
        self.num_left_out = 0

    def has_room(self, tenant_id: str, now_ns: int) -> bool:
        """True where one more of this tenant's may be kept; it is counted either way."""
        if now_ns >= self._until_ns:
            self._counts.clear()
            self._until_ns = now_ns + _MINUTE_NS
        count = self._counts[tenant_id] = self._counts.get(tenant_id, 0) + 1
        if count > self._most:
            self.num_left_out += 1
        return count <= self._most
