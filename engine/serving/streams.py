"""The open streams of one client: events in once a step, each reader woken once; no transport.

Everything here runs on the event loop's thread. A stream keeps just enough of what it saw (times,
counts) to write a true record of its own end when the engine dies without writing one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from engine.core.errors import RefusalReason, RequestRefused
from engine.core.request import FinishReason, RequestOrder, TbtMode
from engine.core.stats import RequestStats, StepStats, TokenEvent
from engine.serving.client import FinishListener, StepListener


class EventStream:
    """The events of one request, for one reader; implements TokenStream.

    It never holds more than the request's max_tokens and one last event, however slow the reader.
    """

    __slots__ = (
        "_ended",
        "_events",
        "_shown_ns",
        "_waiter",
        "first_token_ns",
        "last_token_ns",
        "late_tokens",
        "num_tokens",
        "order",
    )

    def __init__(self, order: RequestOrder) -> None:
        self.order = order
        self.num_tokens = 0
        self.first_token_ns: int | None = None
        self.last_token_ns: int | None = None
        self.late_tokens = 0
        self._shown_ns = 0
        self._events: list[TokenEvent] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    async def next_events(self) -> list[TokenEvent]:
        """Wait for the next events, at least one; [] once the stream has ended."""
        while not self._events:
            if self._ended:
                return []
            assert self._waiter is None, f"{self.order.id}: a stream has one reader"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events = self._events, []
        return events

    def push(self, event: TokenEvent) -> None:
        """Append one event without waking the reader."""
        self._events.append(event)
        if event.token_id is not None:
            self._count(event.at_ns)

    def finish(self, event: TokenEvent) -> None:
        """Append the last event and let the reader run."""
        self.push(event)
        self._ended = True
        self.wake()

    def wake(self) -> None:
        """Let the reader run, if one waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _count(self, at_ns: int) -> None:
        """Judge a token as the engine does (Request.add_token)."""
        slo = self.order.slo
        if self.first_token_ns is None:
            self.first_token_ns = self._shown_ns = at_ns
        else:
            due_ns = (
                self._shown_ns + slo.tbt_ns
                if slo.tbt_mode is TbtMode.GAP
                else self.first_token_ns + self.num_tokens * slo.tbt_ns
            )
            self.late_tokens += at_ns > due_ns
            self._shown_ns = slo.shown_ns(self._shown_ns, at_ns) if slo.pace_ns else at_ns
        self.last_token_ns = at_ns
        self.num_tokens += 1

    def final_event(self, reason: FinishReason, detail: str, now_ns: int) -> TokenEvent:
        """Return the last event as this side must write it: from what was seen, nothing more.

        When it was first scheduled, what the prefix cache gave and how often it was preempted
        only the engine knew: None and 0 here.
        """
        stats = RequestStats(
            request_id=self.order.id,
            tenant=self.order.tenant,
            tier=self.order.tier,
            finish_reason=reason,
            arrival_ns=self.order.arrival_ns,
            finished_ns=now_ns,
            first_scheduled_ns=None,
            first_token_ns=self.first_token_ns,
            last_token_ns=self.last_token_ns,
            num_prompt_tokens=len(self.order.prompt),
            num_cached_tokens=0,
            num_output_tokens=self.num_tokens,
            preemptions=0,
            late_tokens=self.late_tokens,
            detail=detail,
        )
        return TokenEvent(self.order.id, None, now_ns, finish_reason=reason, stats=stats)


class StreamTable:
    """Every open stream by request id, and who else wants to know of steps and ends.

    Listeners are called by the event loop, and an exception of theirs goes to its exception
    handler: it can reach neither a stream nor the engine. They have run before the reader can see
    the last event, so whoever has read an answer to its end finds it billed.
    """

    __slots__ = ("_finish_listeners", "_limit", "_step_listeners", "_streams")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._streams: dict[str, EventStream] = {}
        self._finish_listeners: list[FinishListener] = []
        self._step_listeners: list[StepListener] = []

    def __len__(self) -> int:
        """Number of requests whose end has not been seen."""
        return len(self._streams)

    def __contains__(self, request_id: str) -> bool:
        """True while the request's end has not been seen."""
        return request_id in self._streams

    def add_finish_listener(self, listener: FinishListener) -> None:
        """See EngineClient."""
        self._finish_listeners.append(listener)

    def add_step_listener(self, listener: StepListener) -> None:
        """See EngineClient."""
        self._step_listeners.append(listener)

    @property
    def full(self) -> bool:
        """True when no further stream may be opened."""
        return len(self._streams) >= self._limit

    def check_unused(self, request_id: str) -> None:
        """Raise RequestRefused when the id is open already: its record would be another's."""
        if request_id in self._streams:
            detail = f"a request with the id {request_id} is already open"
            raise RequestRefused(RefusalReason.DUPLICATE_ID, detail)

    def open(self, order: RequestOrder) -> EventStream:
        """Return a new stream for an order that is on its way to the engine."""
        assert order.id not in self._streams, f"{order.id} is open already"
        stream = self._streams[order.id] = EventStream(order)
        return stream

    def refuse(self, order: RequestOrder, detail: str, now_ns: int) -> EventStream:
        """Return a stream that ends at once as REJECTED, because a queue on this side is full."""
        stream = self.open(order)
        detail = f"{RefusalReason.QUEUE_FULL}: {detail}"
        self.dispatch([stream.final_event(FinishReason.REJECTED, detail, now_ns)], None)
        return stream

    def dispatch(self, events: Iterable[TokenEvent], stats: StepStats | None) -> None:
        """Give the events of one step to their streams, tell the listeners, wake each reader once.

        Events of requests that have ended on this side are dropped.
        """
        loop = asyncio.get_running_loop()
        touched: dict[str, EventStream] = {}
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            touched[event.request_id] = stream
            if event.finish_reason is None:
                stream.push(event)
                continue
            del self._streams[event.request_id]
            assert event.stats is not None, f"{event.request_id}: an end without its record"
            for on_finish in self._finish_listeners:
                loop.call_soon(on_finish, event.stats)
            # Behind the listeners in the loop's queue, also where the reader is on its way.
            loop.call_soon(stream.finish, event)
        if stats is not None:
            for on_step in self._step_listeners:
                loop.call_soon(on_step, stats)
        for stream in touched.values():
            stream.wake()

    def fail_all(self, detail: str, now_ns: int) -> None:
        """End every stream as FAILED from this side; the engine is gone."""
        failed = FinishReason.FAILED
        self.dispatch([s.final_event(failed, detail, now_ns) for s in self._streams.values()], None)
