"""Clients under fire: each writes down exactly what it was given, to be compared with the bill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from door_kit import CHAT, chat_body, eventually
from workers_kit import House

from tenants.values import UsageRecord


@dataclass(slots=True)
class Received:
    """What one client has got: one letter is one token (talking_executor.py, temperature 1)."""

    status: int = 0
    id: str = ""
    text: str = ""
    finish_reason: str = ""
    error: str = ""
    broke: bool = False
    first: asyncio.Event = field(default_factory=asyncio.Event)
    ended_s: float = 0.0  # by the event loop's clock

    @property
    def is_whole(self) -> bool:
        """True when the answer came to its regular end."""
        return bool(self.finish_reason) and not self.error and not self.broke


def endless(tokens: int, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """A streamed request for so many letters."""
    values = {"stream": True, "max_tokens": tokens, "temperature": 1, "seed": seed}
    return chat_body(str(seed), **(values | fields))


async def stream(
    http: httpx.AsyncClient, headers: dict[str, str], body: dict[str, Any], got: Received
) -> Received:
    """Read one streamed answer, however it ends."""
    try:
        async with http.stream("POST", CHAT, json=body, headers=headers) as answer:
            got.status = answer.status_code
            if got.status != 200:
                got.error = (await answer.aread()).decode()
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    take(json.loads(line[6:]), got)
    except httpx.HTTPError as error:
        got.broke = True
        got.error = got.error or type(error).__name__
    got.ended_s = asyncio.get_running_loop().time()
    return got


def take(chunk: dict[str, Any], got: Received) -> None:
    """Write down one event."""
    if "error" in chunk:
        got.error = chunk["error"]["code"] or chunk["error"]["type"]
        return
    got.id = chunk["id"]
    for choice in chunk["choices"]:
        got.text += choice["delta"].get("content") or ""
        got.finish_reason = choice["finish_reason"] or got.finish_reason
    if got.text:
        got.first.set()


class Load:
    """Clients that ask again and again until they are told to stop; all they got is kept."""

    def __init__(self, house: House, num: int, tokens: int) -> None:
        self.received: list[Received] = []
        self._stopping = asyncio.Event()
        self._tasks = [asyncio.create_task(self._client(house, n, tokens)) for n in range(num)]

    async def _client(self, house: House, number: int, tokens: int) -> None:
        async with house.client() as http:
            turn = 0
            while not self._stopping.is_set():
                turn += 1
                got = Received()
                self.received.append(got)
                await stream(http, house.auth(), endless(tokens, number * 1000 + turn), got)
                if got.status != 200:
                    await asyncio.sleep(0.05)

    def num_whole(self) -> int:
        return sum(got.is_whole for got in self.received)

    async def until(self, more: int) -> None:
        """Wait until so many more answers have come to their end."""
        goal = self.num_whole() + more
        await eventually(lambda: self.num_whole() >= goal, f"{more} more answers")

    async def stop(self) -> list[Received]:
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        return self.received


@dataclass(frozen=True, slots=True)
class Audit:
    """The clients' notes against the ledger. Tokens are those of answers."""

    whole: int  # answers that came to their end
    broken: int  # answers that were cut off after their first token
    refused: int
    rows: int
    billed_tokens: int
    delivered_tokens: int
    unbilled: list[tuple[str, int, int]]  # id, delivered, billed: fewer than were delivered
    overbilled: list[tuple[str, int, int]]  # whole answers billed as other than they were


def audit(received: Sequence[Received], rows: Sequence[UsageRecord]) -> Audit:
    """Compare answer by answer."""
    billed = {row.request_id: row.output_tokens for row in rows}
    assert len(billed) == len(rows), "one id, one row"
    unbilled, overbilled = [], []
    for got in received:
        delivered, bill = len(got.text), billed.get(got.id, 0)
        if delivered > bill:
            unbilled.append((got.id, delivered, bill))
        if got.is_whole and bill > delivered:
            overbilled.append((got.id, delivered, bill))
    return Audit(
        whole=sum(got.is_whole for got in received),
        broken=sum(bool(got.text) and not got.is_whole for got in received),
        refused=sum(got.status != 200 for got in received),
        rows=len(rows),
        billed_tokens=sum(billed.values()),
        delivered_tokens=sum(len(got.text) for got in received),
        unbilled=unbilled,
        overbilled=overbilled,
    )
