"""A file on its way: a reader that leaves or stalls holds neither a turn nor the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.admin import export
from gateway.admin.export import CHUNK, ExportResponse
from gateway.streaming import EXTENSION
from tenants.errors import DatabaseUnavailable


class Source:
    """Lines without an end, or until the ledger goes away."""

    def __init__(self, until: int | None = None) -> None:
        self.given = 0
        self.is_closed = False
        self._until = until

    async def lines(self) -> AsyncGenerator[str]:
        try:
            while self.given != self._until:
                self.given += 1
                yield "x" * 1000 + "\n"
                await asyncio.sleep(0)
            raise DatabaseUnavailable("gone")
        finally:
            self.is_closed = True


async def never() -> Any:
    await asyncio.Event().wait()


def scope_with(abort: list[str]) -> dict[str, Any]:
    return {"type": "http", "extensions": {EXTENSION: {"abort": lambda: abort.append("abort")}}}


async def test_a_reader_that_leaves_ends_it() -> None:
    source, turns = Source(), asyncio.Semaphore(2)
    sent: list[Any] = []
    left = asyncio.Event()

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 3:
            left.set()

    response = ExportResponse(source.lines(), turns, "text/csv", "f")
    async with asyncio.timeout(30):
        await response(scope_with([]), receive, send)
    assert source.is_closed
    assert sent[-1]["more_body"] is True, "it has no end"
    assert all(len(m.get("body", b"")) <= CHUNK + 2000 for m in sent)
    assert turns._value == 2


async def test_a_reader_that_stalls_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "STALL_S", 0.05)
    source, turns, aborted = Source(), asyncio.Semaphore(1), list[str]()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never()

    response = ExportResponse(source.lines(), turns, "text/csv", "f")
    async with asyncio.timeout(30):
        await response(scope_with(aborted), never, send)
    assert aborted == ["abort"]
    assert source.is_closed
    assert turns._value == 1


async def test_a_ledger_that_goes_away_cuts_the_file() -> None:
    """In the middle the connection is dropped; before the first line it is a plain 503."""
    for until, statuses, ends in ((200, [200], ["abort"]), (0, [503], [])):
        source, aborted, sent = Source(until), list[str](), list[Any]()

        async def send(message: Any, kept: list[Any] = sent) -> None:
            kept.append(message)

        response = ExportResponse(source.lines(), asyncio.Semaphore(1), "text/csv", "f")
        async with asyncio.timeout(30):
            await response(scope_with(aborted), never, send)
        assert [m["status"] for m in sent if "status" in m] == statuses
        assert aborted == ends
