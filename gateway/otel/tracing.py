"""A request's trace on its way through the door: begun at its first layer, handed over at its end.

What an unsampled request pays is two random ids and a comparison. A traced one is put into a queue
when it has ended; its spans are drawn elsewhere (drawing.py). Only where its context was taken away
in between is the engine asked for its story, which it tells between two steps.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from engine.core.clock import NS_PER_S, Clock, utc_now
from engine.core.decision import RequestRecord
from engine.core.errors import EngineUnavailable
from gateway.otel.drawing import MOST_CHOICES, Ended
from gateway.otel.sampler import Sampler
from gateway.otel.trace_context import Trace, new_span_id, new_trace_id, parent_of
from gateway.request_records import DoorRecord

MOST_QUESTIONS = 32  # that the engine is asked at a time
ANSWER_LIMIT_S = 2.0
US = 1_000

Explain = Callable[[str], Awaitable[RequestRecord | None]]
FindDoor = Callable[[str], DoorRecord | None]
TakeEnded = Callable[[Ended], None]


class Tracing:
    """Of one gateway; used from its event loop. Without a sampler nothing is traced."""

    def __init__(
        self,
        clock: Clock,
        sampler: Sampler | None = None,
        take: TakeEnded = lambda _ended: None,
        find_door: FindDoor = lambda _id: None,
        explain: Explain | None = None,
    ) -> None:
        self._clock = clock
        self._sampler = sampler
        self._take = take
        self._find_door = find_door
        self._explain = explain
        self._asking: dict[asyncio.Task[None], Ended] = {}

    def begin(self, headers: Iterable[tuple[bytes, bytes]], arrival_ns: int) -> Trace | None:
        """Return the trace of a request; None where nobody traces it, neither we nor its caller."""
        parent = parent_of(headers)
        if self._sampler is None:
            return parent and Trace(parent.trace_id, new_span_id(), parent.span_id)
        trace_id = new_trace_id() if parent is None else parent.trace_id
        parent_id = "" if parent is None else parent.span_id
        if not self._sampler.samples(trace_id, parent):
            return Trace(trace_id, new_span_id(), parent_id)
        started_ns = unix_ns() - (self._clock.now_ns() - arrival_ns)
        return Trace(trace_id, new_span_id(), parent_id, True, started_ns)

    def ended(self, trace: Trace, scope: Any, status: int, arrival_ns: int) -> None:
        """Hand over a traced request whose route was found."""
        route = getattr(scope.get("route"), "path", None)
        if route is None:
            return
        state = scope["state"]
        door = self._find_door(state["log"].get("id", ""))
        ended = Ended(
            trace=trace,
            method=scope["method"],
            route=route,
            scheme=scope.get("scheme", "http"),
            protocol_version=scope.get("http_version", ""),
            status=status,
            arrival_ns=arrival_ns,
            ended_ns=self._clock.now_ns(),
            request_id=state["request_id"],
            fields=state["log"],
            door=door,
        )
        interrupted = [] if door is None or self._explain is None else _interrupted(door)
        if not interrupted or len(self._asking) >= MOST_QUESTIONS:
            self._take(ended)
            return
        task = asyncio.create_task(self._ask(ended, interrupted))
        self._asking[task] = ended
        task.add_done_callback(self._asked)

    async def _ask(self, ended: Ended, choices: list[str]) -> None:
        assert self._explain is not None
        engines: dict[str, RequestRecord] = {}
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                for name in choices:
                    found = await self._explain(name)
                    if found is not None:
                        engines[name] = found
        except (TimeoutError, EngineUnavailable):
            pass  # its spans then tell what the door knows
        finally:
            self._take(dataclasses.replace(ended, engines=engines))

    def _asked(self, task: asyncio.Task[None]) -> None:
        del self._asking[task]

    async def settle(self) -> None:
        """Wait for no more answers of the engine; what is known is handed over."""
        for task in list(self._asking):
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)


def _interrupted(door: DoorRecord) -> list[str]:
    """Return the choices whose context was taken away for a while."""
    return [
        choice.id
        for choice in door.choices[:MOST_CHOICES]
        if choice.stats is not None and (choice.stats.parks or choice.stats.preemptions)
    ]


def unix_ns() -> int:
    """Return the wall clock's time."""
    now = utc_now()
    return int(now.timestamp()) * NS_PER_S + now.microsecond * US
