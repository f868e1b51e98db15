"""Sends a long file line by line, bounded in time and in how many at once; it knows no line.

A reader that stalls is dropped, and one that is slow has an hour: else a few of them would hold all
turns. A file that was cut has no last line (`total` of a usage export): it cannot pass for whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.admin.route import told
from gateway.errors import ApiError, Problem
from gateway.streaming import EXTENSION
from tenants.errors import LedgerError

logger = logging.getLogger(__name__)

CHUNK = 64 * 1024
STALL_S = 30.0
LONGEST_S = 3600.0
RETRY_MS = 5000


class ExportResponse(Response):
    """A file that is made while it is sent; raises the refusal before anything is sent."""

    def __init__(
        self, lines: AsyncGenerator[str], turns: asyncio.Semaphore, media_type: str, filename: str
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self.headers["content-disposition"] = f'attachment; filename="{filename}"'
        self.headers["cache-control"] = "no-store"
        self._lines = lines
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file; a connection that stalls, or a ledger that goes away, cuts it."""
        if self._turns.locked():
            refusal = ApiError(
                Problem.RATE_LIMITED, "Too many exports are running.", retry_after_ms=RETRY_MS
            )
            await refusal.response()(scope, receive, send)
            return
        async with self._turns, aclosing(self._lines) as lines:
            try:
                first = await anext(lines, "")
            except LedgerError as error:
                await told(error).response()(scope, receive, send)
                return
            gone = asyncio.create_task(_disconnect(receive))
            try:
                async with asyncio.timeout(LONGEST_S):
                    await self._send_all(first, lines, send, gone)
            except (TimeoutError, LedgerError) as error:
                logger.warning("an export was cut: %s", type(error).__name__)
                abort = scope.get("extensions", {}).get(EXTENSION, {}).get("abort")
                if abort is not None:
                    abort()
            finally:
                gone.cancel()

    async def _send_all(
        self, first: str, lines: AsyncIterator[str], send: Send, gone: asyncio.Task[None]
    ) -> None:
        start = {"status": 200, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        part = first
        async for line in lines:
            part += line
            if len(part) >= CHUNK:
                await _send(send, part, more=True)
                part = ""
                if gone.done():  # the server takes what is sent to nobody without a word
                    return
        await _send(send, part, more=False)


async def _disconnect(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, text: str, *, more: bool) -> None:
    async with asyncio.timeout(STALL_S):
        await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
