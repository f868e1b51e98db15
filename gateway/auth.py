"""Turns an Authorization header into a Principal; it knows keys as digests and answers one 401.

The order of work keeps the cost of a stranger low: form and checksum first (no lookup), then a
bounded memory of answers, then the ledger, with few lookups at a time. Unknown keys are remembered
too, briefly. The ledger's change counter is polled, so a revoked key is refused within the poll
interval plus one lookup, whatever the memory's life; Postgres tells of a change, and then it is
polled at once. When the ledger is away, what it last said stands, unless the key is known to have
changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from datetime import datetime

from engine.core.clock import NS_PER_S, Clock, utc_now
from gateway.errors import ApiError, Problem, unauthenticated
from gateway.principal import Principal, cache_salt
from gateway.strangers import Strangers
from tenants.errors import DatabaseUnavailable
from tenants.keys import is_well_formed
from tenants.repository import TOUCH_INTERVAL, Repository
from tenants.values import KeyWithTenant, Route

logger = logging.getLogger(__name__)

MAX_LOOKUPS = 8  # at once
MAX_WAITING_LOOKUPS = 1024
NEGATIVE_TTL_NS = 5 * NS_PER_S
MAX_STALE_NS = 24 * 3600 * NS_PER_S  # how long an answer may outlive the ledger's absence
LOOKUP_HINT_MS = 1000


class Remembered:
    """One answer of the ledger, or its "unknown", with the time and the state it was given at."""

    __slots__ = ("asked_ns", "principal", "version")

    def __init__(self, principal: Principal | None, asked_ns: int, version: int) -> None:
        self.principal = principal
        self.asked_ns = asked_ns
        self.version = version


class Authenticator:
    """Verifies keys against a bounded memory and the ledger; used from one event loop."""

    def __init__(
        self,
        repository: Repository,
        clock: Clock,
        *,
        salt_secret: bytes,
        ttl_s: float,
        size: int,
    ) -> None:
        self._repository = repository
        self._clock = clock
        self._salt_secret = salt_secret
        self._ttl_ns = int(ttl_s * NS_PER_S)
        self._size = size
        self._strangers = Strangers(clock)
        self._memory: OrderedDict[str, Remembered] = OrderedDict()
        self._lookups = asyncio.Semaphore(MAX_LOOKUPS)
        self._num_lookups = 0
        self._version = 0
        self._told = asyncio.Event()
        self._touched: dict[str, datetime] = {}
        self._to_touch: dict[str, datetime] = {}

    async def authenticate(
        self, header: str | None, address: str = "", route: Route | None = None
    ) -> Principal:
        """Return who sent `Authorization: <header>` from `address`, to use `route`.

        Raises the one 401; 403 where the key's scopes do not hold the route; 429 for an address
        that tries one unknown key after the other; 503 where a key cannot be checked because the
        ledger does not answer.
        """
        scheme, _, key = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not is_well_formed(key.strip()):
            raise unauthenticated()
        principal = await self._find(self._repository.digest(key.strip()), address)
        now = utc_now()
        if principal is None or not principal.opens_door(now):
            raise unauthenticated()
        if route is not None and not principal.may(route):
            refusal = ApiError(
                Problem.ROUTE_FORBIDDEN, "This API key may not be used for this route."
            )
            refusal.sender = principal
            raise refusal
        self._note_use(principal.key_id, now)
        return principal

    async def still_opens(self, digest: str) -> bool:
        """True while the key of a running stream may go on; doubt is in the stream's favour."""
        try:
            principal = await self._find(digest)
        except ApiError:
            return True
        return principal is not None and principal.opens_door(utc_now())

    async def _find(self, digest: str, address: str | None = None) -> Principal | None:
        known = self._fresh(digest)
        if known is not None:
            return known.principal
        if address is not None and (wait_ms := self._strangers.wait_ms(address)):
            raise ApiError(
                Problem.RATE_LIMITED,
                "Too many invalid API keys came from this address.",
                retry_after_ms=wait_ms,
            )
        if self._num_lookups >= MAX_LOOKUPS + MAX_WAITING_LOOKUPS:
            raise _ledger_unavailable()
        self._num_lookups += 1
        try:
            async with self._lookups:
                # Someone else may have asked while we stood in line.
                known = self._fresh(digest)
                if known is None:
                    known = await self._look_up(digest)
                    if known.principal is None and address is not None:
                        self._strangers.failed(address)
        finally:
            self._num_lookups -= 1
        return known.principal

    def _fresh(self, digest: str) -> Remembered | None:
        known = self._memory.get(digest)
        if known is None or known.version != self._version:
            return None
        ttl_ns = self._ttl_ns if known.principal is not None else NEGATIVE_TTL_NS
        if self._clock.now_ns() - known.asked_ns >= min(ttl_ns, self._ttl_ns):
            return None
        self._memory.move_to_end(digest)
        return known

    async def _look_up(self, digest: str) -> Remembered:
        asked_ns, version = self._clock.now_ns(), self._version
        try:
            found = await self._repository.find_key_by_digest(digest)
        except DatabaseUnavailable:
            return self._stale(digest)
        answer = Remembered(self._principal(found, digest), asked_ns, version)
        self._memory[digest] = answer
        self._memory.move_to_end(digest)
        while len(self._memory) > self._size:
            self._memory.popitem(last=False)
        return answer

    def _stale(self, digest: str) -> Remembered:
        """Return what the ledger last said, if nothing is known to have changed since."""
        known = self._memory.get(digest)
        if (
            known is None
            or known.version != self._version
            or self._clock.now_ns() - known.asked_ns > MAX_STALE_NS
        ):
            raise _ledger_unavailable()
        return known

    def _principal(self, found: KeyWithTenant | None, digest: str) -> Principal | None:
        if found is None:
            return None
        return Principal(found, digest, cache_salt(self._salt_secret, found.tenant.id))

    # kept up by the gateway's own tasks, off the path of requests

    def hear(self) -> None:
        """Someone says that the ledger has changed: whoever waits for a change goes and looks."""
        self._told.set()

    async def wait_for_change(self, at_most_s: float) -> None:
        """Return when the ledger is said to have changed, or when it is time to look anyway."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._told.wait()
        except TimeoutError:
            pass
        self._told.clear()

    async def poll(self) -> bool:
        """Ask whether any key has changed; True if so, and then no remembered answer counts.

        Raises `DatabaseUnavailable` where the ledger does not answer.
        """
        version = await self._repository.keys_version()
        changed = version != self._version
        self._version = version
        return changed

    def _note_use(self, key_id: str, now: datetime) -> None:
        last = self._touched.get(key_id)
        if last is None or now - last >= TOUCH_INTERVAL:
            self._touched[key_id] = self._to_touch[key_id] = now

    async def write_last_used(self) -> None:
        """Write when keys were last used, at most once a minute each; losing a note is harmless."""
        pending, self._to_touch = self._to_touch, {}
        now = utc_now()
        self._touched = {k: at for k, at in self._touched.items() if now - at < TOUCH_INTERVAL}
        for key_id, at in pending.items():
            try:
                await self._repository.touch_key(key_id, at)
            except DatabaseUnavailable:
                logger.warning("last use of %d keys not written: no database", len(pending))
                return


def _ledger_unavailable() -> ApiError:
    return ApiError(
        Problem.LEDGER_UNAVAILABLE,
        "Keys cannot be checked at the moment. Please retry.",
        retry_after_ms=LOOKUP_HINT_MS,
    )
