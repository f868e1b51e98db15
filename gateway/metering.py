"""Turns the engine's last event of every request into one row of the ledger, with what it costs.

Law L49: tokens are counted where they are made. A row hangs on the engine's record, never on the
response, so who leaves early is metered for what was generated. The path of a request touches only
a bounded buffer; one writer task inserts in batches. While the ledger is away, rows are kept on
disk (`Spool`) and handed over when it is back; a row lost in spite of that is counted and logged as
an error (law L50). Rows are keyed by request id, so writing one twice changes nothing.

What a row counts: a prompt, once the engine began to compute it, and once for all choices of one
prompt; the tokens of the answer. A request that was refused, or failed before its first token, has
no row. A paced stream may be minutes behind what was generated: its row waits until it is over at
the door as well, and one whose client left counts the tokens that were delivered.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from engine.core.clock import NS_PER_MS
from engine.core.request import FinishReason
from engine.core.stats import RequestStats
from gateway.spool import Spool
from gateway.stopwatch import Stopwatch
from tenants.database import Database
from tenants.errors import LedgerError
from tenants.usage import insert_usage
from tenants.values import DEFAULT_ORGANISATION_ID, TierRecord, UsageRecord

logger = logging.getLogger(__name__)

OnEnd = Callable[[UsageRecord | None], None]

BATCH = 500
RETRY_MAX_S = 5.0
# A request is good for TBT when at most one gap in a hundred was late (its own p99 gap).
LATE_SHARE = 100


@dataclass(frozen=True, slots=True)
class UsageContext:
    """What the door knows of one engine request, and the engine does not.

    `bills_prompt` is False for further choices of a prompt that another choice pays for. `paced`
    is True where the door holds tokens back, and says by `Meter.settle` when it has ended. `tier`
    is the one served, with its prices; without it the request costs nothing. `on_end` hears at
    once, when the request is over, what is billed for it: None where nothing is.
    """

    tenant_id: str
    key_id: str
    tier_requested: str
    tier_served: str
    model: str
    stream: bool
    arrival: datetime
    stopwatch: Stopwatch
    bills_prompt: bool = True
    paced: bool = False
    organisation_id: str = DEFAULT_ORGANISATION_ID
    tier: TierRecord | None = None
    on_end: OnEnd | None = None


@dataclass(frozen=True, slots=True)
class MeterState:
    """The writer as operators see it; all but `buffered` and `spooled_bytes` only ever grow."""

    buffered: int
    spooled_bytes: int
    written: int
    spooled: int
    refused: int
    lost: int
    database_ok: bool
    nearly_full: bool


def usage_row(stats: RequestStats, context: UsageContext) -> UsageRecord | None:
    """Return the row of a finished request; None where there is nothing to record.

    Times are those at the door where an answer got that far, else the engine's.
    """
    nothing_made = stats.num_output_tokens == 0
    if stats.finish_reason is FinishReason.REJECTED:
        return None
    if stats.finish_reason is FinishReason.FAILED and nothing_made:
        return None
    # A record written for a dead engine knows no scheduling time, but a token proves it.
    began = stats.first_scheduled_ns is not None or not nothing_made
    prompt = stats.num_prompt_tokens if began and context.bills_prompt else 0
    cached, tier = min(stats.num_cached_tokens, prompt), context.tier
    watch = context.stopwatch
    first_ns = watch.first_ns if watch.first_ns is not None else stats.first_token_ns
    seen_at_door = watch.first_ns is not None
    late = watch.late if seen_at_door else stats.late_tokens
    return UsageRecord(
        request_id=stats.request_id,
        tenant_id=context.tenant_id,
        key_id=context.key_id,
        tier_requested=context.tier_requested,
        tier_served=context.tier_served,
        model=context.model,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=stats.num_output_tokens,
        finish_reason=stats.finish_reason.value,
        stream=context.stream,
        arrival=context.arrival,
        total_ms=_ms(stats.finished_ns - stats.arrival_ns),
        ttft_ms=None if first_ns is None else _ms(first_ns - stats.arrival_ns),
        late_tokens=late,
        preemptions=stats.preemptions,
        slo_met=_slo_met(stats, watch, first_ns, late),
        organisation_id=context.organisation_id,
        tier_version=0 if tier is None else tier.version,
        cost_nano=0 if tier is None else tier.cost_nano(prompt, cached, stats.num_output_tokens),
    )


def as_delivered(stats: RequestStats, watch: Stopwatch) -> RequestStats:
    """Return the record of a paced answer whose client left before it had seen all of it."""
    is_whole = stats.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    return dataclasses.replace(
        stats,
        finish_reason=FinishReason.CANCELLED if is_whole else stats.finish_reason,
        num_output_tokens=min(stats.num_output_tokens, watch.num_tokens),
    )


def _slo_met(stats: RequestStats, watch: Stopwatch, first_ns: int | None, late: int) -> bool | None:
    if stats.finish_reason is FinishReason.CANCELLED:
        return None  # the client left: neither kept nor broken
    if stats.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        return False
    ttft_met = watch.ttft_met_at(first_ns)
    return ttft_met and late * LATE_SHARE <= max(stats.num_output_tokens - 1, 0)


def _ms(duration_ns: int) -> float:
    return round(max(duration_ns, 0) / NS_PER_MS, 3)


class Meter:
    """Joins contexts and records, and owns the writer; used from one event loop."""

    def __init__(
        self,
        database: Database,
        spool: Spool,
        *,
        max_buffer: int,
        flush_s: float,
        on_row: Callable[[UsageRecord], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._spool = spool
        self._max_buffer = max_buffer
        self._flush_s = flush_s
        self._on_row = on_row
        self._open: dict[str, UsageContext] = {}
        # Of paced answers: those the engine is done with, and those over at the door (client left).
        self._made: dict[str, RequestStats] = {}
        self._shown: dict[str, bool] = {}
        self._buffer: deque[tuple[RequestStats, UsageContext]] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._written = self._spooled = self._refused = self._lost = 0
        self._database_ok = True
        self._spool_bytes = 0
        self._nearly_full = False
        self._may_have_spooled = True  # an earlier run may have left some

    @property
    def state(self) -> MeterState:
        """Return the writer's state."""
        return MeterState(
            buffered=len(self._buffer),
            spooled_bytes=self._spool_bytes,
            written=self._written,
            spooled=self._spooled,
            refused=self._refused,
            lost=self._lost,
            database_ok=self._database_ok,
            nearly_full=self._nearly_full,
        )

    def open(self, request_id: str, context: UsageContext) -> None:
        """Say whose request this is, before it is handed to the engine."""
        self._open[request_id] = context

    def forget(self, request_id: str) -> None:
        """Take back `open` for a request that the engine never got."""
        self._open.pop(request_id, None)

    def on_finish(self, stats: RequestStats) -> None:
        """The engine's last word on a request; ends of requests that are not ours are ignored."""
        context = self._open.get(stats.request_id)
        if context is None:
            return
        if context.paced:
            client_left = self._shown.pop(stats.request_id, None)
            if client_left is None:
                self._made[stats.request_id] = stats
                return
            if client_left:
                stats = as_delivered(stats, context.stopwatch)
        self._take_in(stats, context)

    def settle(self, request_id: str, *, client_left: bool) -> None:
        """A paced answer is over at the door; harmless when repeated, or after its row was made."""
        context = self._open.get(request_id)
        if context is None:
            return
        stats = self._made.pop(request_id, None)
        if stats is None:
            self._shown[request_id] = client_left
            return
        self._take_in(as_delivered(stats, context.stopwatch) if client_left else stats, context)

    def _take_in(self, stats: RequestStats, context: UsageContext) -> None:
        del self._open[stats.request_id]
        if context.on_end is not None:
            context.on_end(usage_row(stats, context))
        if len(self._buffer) >= self._max_buffer:
            self._lose(1, "the buffer is full")
            return
        self._buffer.append((stats, context))
        if len(self._buffer) >= BATCH:
            self._wake.set()

    def _lose(self, count: int, why: str) -> None:
        self._lost += count
        logger.error("LOST %d usage records: %s; %d lost so far", count, why, self._lost)

    async def run(self) -> None:
        """Write until `close`; the last rows go to the ledger or to disk before it returns."""
        pause_s = self._flush_s
        while not self._closing:
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if await self._flush():
                pause_s = self._flush_s
            else:
                pause_s = min(max(pause_s, self._flush_s) * 2, RETRY_MAX_S)
        while self._buffer:
            await self._flush()

    def close(self) -> None:
        """Ask the writer to write what is left and to end."""
        for request_id in list(self._made):
            self.settle(request_id, client_left=False)
        self._closing = True
        self._wake.set()

    async def look_for_leftovers(self) -> None:
        """See with the next flush whether another process has died and left records on disk."""
        self._may_have_spooled = True

    async def release(self) -> None:
        """Let go of the disk, after `run` has ended; what still waits there is another's to do."""
        await asyncio.to_thread(self._spool.close)

    async def _flush(self) -> bool:
        """Write what is buffered, then what is on disk; False while the ledger is away."""
        while True:
            rows = self._take()
            if not rows and not self._may_have_spooled and self._database_ok:
                return True
            try:
                written = await self._write(rows)
            except asyncio.CancelledError:
                # The gateway will not wait for a hanging database, but rows are not lost for that.
                self._keep_at_once(rows)
                raise
            if not written:
                await self._keep(rows)
                return False
            if len(rows) < BATCH:
                break
        return await self._replay() if self._may_have_spooled else True

    def _take(self) -> list[UsageRecord]:
        rows: list[UsageRecord] = []
        while self._buffer and len(rows) < BATCH:
            row = usage_row(*self._buffer.popleft())
            if row is not None:
                rows.append(row)
                self._on_row(row)
        return rows

    async def _write(self, rows: list[UsageRecord]) -> bool:
        """Insert rows; False while the ledger is away. Rows it will never take are put aside."""
        try:
            # Also with nothing to insert: it tells whether the ledger is back.
            new = await insert_usage(self._database, rows) if rows else await self._ping()
        except LedgerError as error:
            if self._database_ok:
                logger.error("usage goes to disk: %s", error)
            self._database_ok = False
            return False
        # Whatever one row does to the ledger, the others must still be written.
        except Exception:
            if len(rows) <= 1:
                logger.exception("the ledger refuses a usage record; it is put aside")
                self._refused += len(rows)
                await self._put_aside(rows)
                return True
            for row in rows:
                if not await self._write([row]):
                    return False
            return True
        if not self._database_ok:
            logger.warning("the ledger is back")
        self._database_ok = True
        self._written += new
        return True

    async def _ping(self) -> int:
        await self._database.ping()
        return 0

    async def _put_aside(self, rows: list[UsageRecord]) -> None:
        try:
            await asyncio.to_thread(self._spool.refuse, rows)
        except OSError as error:
            self._lose(len(rows), f"refused, and the disk does not take them: {error.strerror}")

    async def _keep(self, rows: list[UsageRecord]) -> None:
        """Put rows on disk until the ledger is back."""
        if not rows:
            return
        kept = 0
        try:
            kept = await asyncio.to_thread(self._spool.append, rows)
        except OSError as error:
            logger.error("usage cannot be kept on disk: %s", error.strerror)
        self._may_have_spooled = True
        self._spooled += kept
        if kept < len(rows):
            self._lose(len(rows) - kept, "the ledger is away and the disk spool takes no more")
        await self._look_at_spool()

    def _keep_at_once(self, rows: list[UsageRecord]) -> None:
        """Put these rows and all that is buffered on disk without giving up the thread."""
        while rows:
            try:
                kept = self._spool.append(rows)
            except OSError as error:
                self._lose(len(rows), f"the disk does not take them: {error.strerror}")
            else:
                self._spooled += kept
                if kept < len(rows):
                    self._lose(len(rows) - kept, "the disk spool takes no more")
            rows = self._take()

    async def _replay(self) -> bool:
        """Hand the spool's records to the ledger; False when it goes away meanwhile."""
        try:
            batches = self._spool.batches()
            while (rows := await asyncio.to_thread(next, batches, None)) is not None:
                if not await self._write(rows):
                    return False
        except OSError as error:
            logger.error("the usage spool cannot be read: %s", error.strerror)
            return True
        self._may_have_spooled = False
        await self._look_at_spool()
        return True

    async def _look_at_spool(self) -> None:
        self._spool_bytes = await asyncio.to_thread(lambda: self._spool.size_bytes)
        self._nearly_full = await asyncio.to_thread(lambda: self._spool.is_nearly_full)
