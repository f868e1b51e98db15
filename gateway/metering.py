"""Turns the engine's last event of every request into one row of the ledger, with what it costs.

Law L49: tokens are counted where they are made. A row hangs on the engine's record, never on the
response, so who leaves early is metered for what was generated. The path of a request touches only
a bounded buffer; one writer task inserts in batches. While the ledger is away, rows are kept on
disk (`Spool`) and handed over when it is back; a row lost in spite of that is counted and logged as
an error (law L50). Rows are keyed by request id, so writing one twice changes nothing.

Beside it goes one record a request of how its promise was kept (`tenants.slo`), refused ones too:
it takes the same way, so a database that is away costs neither bills nor proofs.

A paced stream may be minutes behind what was generated: its row waits until it is over at the door
as well, and one whose client left counts the tokens that were delivered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engine.core.stats import RequestStats
from gateway.spool import Record, Spool
from gateway.usage_row import UsageContext, as_delivered, interrupted_row, usage_row
from tenants.database import Database
from tenants.errors import LedgerError
from tenants.slo import SloRecord
from tenants.slo_store import insert_rows
from tenants.values import UsageRecord

logger = logging.getLogger(__name__)

BATCH = 500
RETRY_MAX_S = 5.0
# New rows wait for a ledger that answers slowly, or never, for so long, and then go to disk.
WRITE_LIMIT_S = 2.0
MOST_NOTED = 10_000
NOTED_AT_ONCE = 200
REPLAY_LIMIT_S = 60.0  # those on disk are safe


@dataclass(frozen=True, slots=True)
class MeterState:
    """The writer as operators see it; all but `buffered` and `spooled_bytes` only ever grow.

    `written` are usage records, `judged` are records of promises; the rest counts both.
    """

    buffered: int
    spooled_bytes: int
    written: int
    spooled: int
    refused: int
    lost: int
    database_ok: bool
    nearly_full: bool
    judged: int = 0


class Meter:
    """Joins contexts and records, and owns the writer; used from one event loop.

    `on_judged` hears of each judgement that the ledger has taken and had not before, whoever made
    it: also of those that a process left behind which died.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        *,
        max_buffer: int,
        flush_s: float,
        on_row: Callable[[UsageRecord], None] = lambda _: None,
        on_judged: Callable[[SloRecord], None] = lambda _: None,
    ) -> None:
        self._under_way: Callable[[], Iterable[SloRecord]] = tuple
        self._database = database
        self._spool = spool
        self._max_buffer = max_buffer
        self._flush_s = flush_s
        self._on_row = on_row
        self._on_judged = on_judged
        self._open: dict[str, UsageContext] = {}
        # Of paced answers: those the engine is done with, and those over at the door (client left).
        self._made: dict[str, RequestStats] = {}
        self._shown: dict[str, bool] = {}
        self._buffer: deque[tuple[RequestStats, UsageContext]] = deque()
        self._verdicts: deque[SloRecord] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._written = self._judged = self._spooled = self._refused = self._lost = 0
        self._database_ok = True
        self._spool_bytes = 0
        self._nearly_full = False
        self._may_have_spooled = True  # an earlier run may have left some
        self._in_hand: list[Record] = []  # on their way to the ledger, or to disk
        self._has_note = False
        self._noting: asyncio.Task[None] | None = None
        self._note_lock = asyncio.Lock()

    @property
    def state(self) -> MeterState:
        """Return the writer's state."""
        return MeterState(
            buffered=len(self._buffer) + len(self._verdicts),
            spooled_bytes=self._spool_bytes,
            written=self._written,
            spooled=self._spooled,
            refused=self._refused,
            lost=self._lost,
            database_ok=self._database_ok,
            nearly_full=self._nearly_full,
            judged=self._judged,
        )

    def watch(self, under_way: Callable[[], Iterable[SloRecord]]) -> None:
        """Say who knows the requests under way, as they would be judged if this process died."""
        self._under_way = under_way

    def judge(self, record: SloRecord) -> None:
        """Take in how the promise of one request was kept."""
        if len(self._verdicts) >= self._max_buffer:
            self._lose(1, "the buffer is full")
            return
        self._verdicts.append(record)
        if len(self._verdicts) >= BATCH:
            self._wake.set()

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
        logger.error("LOST %d records: %s; %d lost so far", count, why, self._lost)

    async def run(self) -> None:
        """Write until `close`; the last rows go to the ledger or to disk before it returns."""
        loop = asyncio.get_running_loop()
        pause_s = retry_at = 0.0
        while not self._closing:
            try:
                async with asyncio.timeout(self._flush_s):
                    await self._wake.wait()
                # A full batch, out of step with the notes: a bill must not be written whose
                # judgement nobody would know of if this process died now.
                if not self._closing:
                    await self.note()
            except TimeoutError:
                pass
            self._wake.clear()
            if loop.time() < retry_at:
                await self._keep_all()
            elif await self._flush():
                pause_s = retry_at = 0.0
            else:
                pause_s = min(max(pause_s * 2, self._flush_s), RETRY_MAX_S)
                retry_at = loop.time() + pause_s
            self._in_hand = []
        while self._buffer or self._verdicts:
            await self._flush()

    async def _keep_all(self) -> None:
        """Put what is buffered on disk: it is not yet time to ask for the ledger again.

        So nothing is in memory for longer than a flush, whoever is away.
        """
        while rows := self._take():
            await self._keep(rows)

    def close(self) -> None:
        """Ask the writer to write what is left and to end."""
        for request_id in list(self._made):
            self.settle(request_id, client_left=False)
        self._closing = True
        self._wake.set()

    async def look_for_leftovers(self) -> None:
        """See with the next flush whether another process has died and left records on disk."""
        self._may_have_spooled = True

    async def note(self) -> None:
        """Note on disk what a killed process would take with it: what is under way, as it stands.

        Called as often as rows are flushed, so a kill loses no more than what came since. Who
        hands the note in changes nothing of requests that have a row already.
        """
        async with self._note_lock:
            rows = await self._open_rows()
            if rows or self._has_note:
                self._has_note = bool(rows)
                self._noting = asyncio.create_task(asyncio.to_thread(self._note, rows))
                await asyncio.shield(self._noting)

    async def _open_rows(self) -> list[Record]:
        """Return what is under way, bills first; made ready a few at a time, as streams wait."""
        ended, begun = list(self._buffer), list(self._open.items())
        verdicts = [*self._under_way(), *self._verdicts]
        rows = list(self._in_hand)
        for at in range(0, len(ended), NOTED_AT_ONCE):
            part = ended[at : at + NOTED_AT_ONCE]
            rows += [row for stats, context in part if (row := usage_row(stats, context))]
            await asyncio.sleep(0)
        for at in range(0, len(begun), NOTED_AT_ONCE):
            part_begun = begun[at : at + NOTED_AT_ONCE]
            rows += [row for name, it in part_begun if (row := interrupted_row(name, it))]
            await asyncio.sleep(0)
        return [*rows, *verdicts][:MOST_NOTED]

    def _note(self, rows: list[Record]) -> None:
        try:
            self._spool.note(rows)
        except OSError as error:
            logger.warning("what is under way cannot be noted on disk: %s", error.strerror)

    async def release(self) -> None:
        """Let go of the disk, after `run` has ended; what still waits there is another's to do."""
        if self._noting is not None:
            await self._noting
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

    def _take(self) -> list[Record]:
        rows: list[Record] = []
        room = BATCH - min(len(self._buffer), BATCH // 2)  # neither kind waits for the other
        while self._verdicts and len(rows) < room:
            rows.append(self._verdicts.popleft())
        while self._buffer and len(rows) < BATCH:
            row = usage_row(*self._buffer.popleft())
            if row is not None:
                rows.append(row)
                self._on_row(row)
        self._in_hand = rows
        return rows

    async def _write(self, rows: list[Record], limit_s: float = WRITE_LIMIT_S) -> bool:
        """Insert rows; False while the ledger is away. Rows it will never take are put aside."""
        try:
            async with asyncio.timeout(limit_s):
                # Also with nothing to insert: it tells whether the ledger is back.
                await (self._insert(rows) if rows else self._database.ping())
        except (LedgerError, TimeoutError) as error:
            if self._database_ok:
                why = str(error) or f"the ledger has not answered for {limit_s:g} s"
                logger.error("usage goes to disk: %s", why)
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
                if not await self._write([row], limit_s):
                    return False
            return True
        if not self._database_ok:
            logger.warning("the ledger is back")
        self._database_ok = True
        return True

    async def _insert(self, rows: list[Record]) -> None:
        usage = [row for row in rows if isinstance(row, UsageRecord)]
        verdicts = [row for row in rows if isinstance(row, SloRecord)]
        written, judged = await insert_rows(self._database, usage, verdicts)
        self._written += written
        self._judged += len(judged)
        for record in judged:
            self._on_judged(record)

    async def _put_aside(self, rows: list[Record]) -> None:
        try:
            await asyncio.to_thread(self._spool.refuse, rows)
        except OSError as error:
            self._lose(len(rows), f"refused, and the disk does not take them: {error.strerror}")

    async def _keep(self, rows: list[Record]) -> None:
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

    def _keep_at_once(self, rows: list[Record]) -> None:
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
                if not await self._write(rows, REPLAY_LIMIT_S):
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
