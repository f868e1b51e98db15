"""Plays a schedule: every request is sent when it is due, however slow the server; it judges none.

An open loop: what is late at the server is never waited for before the next is sent. At most
`bound` connections are open; what that holds back, and every millisecond this client is behind its
own schedule, counts from the scheduled time like any other delay, and is reported as the client's.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.core.clock import NS_PER_MS, NS_PER_S, Clock
from engine.core.request import FinishReason
from engine.sim.workload import SimRequest
from gateway.replay.answer_watch import CountedBy
from gateway.replay.exchange import Connection, Connections, Exchange
from gateway.replay.trial import words_of

LEAD_NS = 100 * NS_PER_MS  # from the start of the run to its time 0
HEARTBEAT_S = 0.02
MOST_BEATS = 500_000  # nearly three hours; the newest are kept

LEFT = {"abort", "error", "cancelled", "canceled", "expired", "failed"}  # finish reasons


@dataclass(frozen=True, slots=True)
class Seen:
    """How one request went; times are of the clock, None for what never happened.

    `begun_ns` is when the client turned to it, `sent_ns` when its bytes went out. `reason` is None
    for one that the end of the run cut off. `num_prompt_tokens` is the server's own count.
    """

    request: SimRequest
    begun_ns: int | None = None
    sent_ns: int | None = None
    token_times: tuple[int, ...] = field(default=(), repr=False)
    counted_by: CountedBy = CountedBy.NONE
    ended_ns: int = 0
    reason: FinishReason | None = None
    status: int = 0
    detail: str = ""
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None


class Player:
    """One run. `write` makes the bytes of a request; `on_seen` hears of each as it ends."""

    def __init__(
        self,
        requests: Sequence[SimRequest],
        connections: Connections,
        write: Callable[[SimRequest, int], bytes],
        clock: Clock,
        *,
        bound: int,
        timeout_s: float,
        on_seen: Callable[[Seen], None],
        hide: Callable[[str], str] = str,
    ) -> None:
        self._requests = requests
        self._connections = connections
        self._write = write
        self._clock = clock
        self._bound = bound
        self._timeout_ns = int(timeout_s * NS_PER_S)
        self._on_seen = on_seen
        self._hide = hide
        self._held: deque[tuple[SimRequest, bytes]] = deque()
        self._open: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._fault: BaseException | None = None
        self.origin_ns = 0
        self.num_due = 0
        self.num_held = 0
        self.most_open = 0
        self.was_stopped = False
        self.beats: deque[int] = deque(maxlen=MOST_BEATS)  # how late the loop woke, ns

    async def play(self, stop: asyncio.Event) -> None:
        """Play to the end, or until `stop`: what is open then is cut off."""
        self.origin_ns = self._clock.now_ns() + LEAD_NS
        gc.collect()
        gc.freeze()  # what is here already need not be looked at again while tokens come
        beating = asyncio.create_task(self._beat())
        sending = asyncio.create_task(self._send_all())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self.was_stopped = True
                sending.cancel()
        finally:
            for task in (beating, stopping):
                task.cancel()
            await asyncio.gather(sending, beating, stopping, return_exceptions=True)
            await self._cut_off()
            gc.unfreeze()
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _cut_off(self) -> None:
        """End what is still open; those never due are not among the records."""
        for request, _ in self._held:
            self._on_seen(Seen(request, ended_ns=self._clock.now_ns()))
        self._held.clear()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _send_all(self) -> None:
        for number, request in enumerate(self._requests):
            # Written before it is due: making a long prompt takes longer than sending it.
            payload = self._write(request, number)
            await self._sleep_until(self.origin_ns + request.arrival_ns)
            self.num_due += 1
            if len(self._open) < self._bound:
                self._start(request, payload)
            else:
                self.num_held += 1
                self._held.append((request, payload))
            if number % 16 == 15:
                await asyncio.sleep(0)  # a burst must not keep the loop from reading tokens
        while self._open or self._held:
            self._idle.clear()
            await self._idle.wait()
            if self._fault is not None:
                raise self._fault  # one of ours, not the server's

    async def _sleep_until(self, due_ns: int) -> None:
        wait_ns = due_ns - self._clock.now_ns()
        while wait_ns > 0:
            await asyncio.sleep(wait_ns / NS_PER_S)  # may wake a little early
            wait_ns = due_ns - self._clock.now_ns()

    def _start(self, request: SimRequest, payload: bytes) -> None:
        task = asyncio.create_task(self._ask(request, payload))
        self._open.add(task)
        self.most_open = max(self.most_open, len(self._open))
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault = error
        elif self._held:
            self._start(*self._held.popleft())
        self._idle.set()

    async def _ask(self, request: SimRequest, payload: bytes) -> None:
        due_ns = self.origin_ns + request.arrival_ns
        begun_ns = self._clock.now_ns()
        exchange = Exchange(asyncio.get_running_loop().create_future())
        connection: Connection | None = None
        seen = Seen(request, begun_ns)
        left_ns = due_ns + self._timeout_ns - begun_ns
        limit = asyncio.timeout(max(left_ns, 0) / NS_PER_S)
        try:
            async with limit:
                if left_ns > 0:  # or its time ran out while it was held back
                    connection = await self._connections.take()
                    connection.send(exchange, payload)
                await exchange.done
            seen = self._judge(request, begun_ns, exchange)
        except OSError as error:  # TimeoutError among them
            if exchange.watch.is_whole:  # only the end of the connection never came
                seen = self._judge(request, begun_ns, exchange)
            elif limit.expired():
                detail = "no whole answer within the time limit"
                seen = self._seen(request, begun_ns, exchange, FinishReason.EXPIRED, detail)
            else:
                detail = f"no connection: {words_of(error)}"
                seen = self._seen(request, begun_ns, exchange, FinishReason.FAILED, detail)
        except asyncio.CancelledError:
            seen = self._seen(request, begun_ns, exchange, None, "cut off by the end of the run")
        finally:
            if connection is not None:
                self._connections.give_back(connection, exchange)
            self._on_seen(seen)

    def _judge(self, request: SimRequest, begun_ns: int, exchange: Exchange) -> Seen:
        """Say how an exchange that is over has ended."""
        status, watch = exchange.status, exchange.watch
        if status == 200 and exchange.streams:
            if watch.is_whole and watch.finish_reason not in LEFT:
                is_length = watch.finish_reason == "length"
                reason = FinishReason.LENGTH if is_length else FinishReason.STOP
                return self._seen(request, begun_ns, exchange, reason, "")
            detail = watch.fault or exchange.fault or watch.finish_reason or "no finish reason"
            return self._seen(
                request, begun_ns, exchange, FinishReason.FAILED, f"broken off: {detail}"
            )
        if status == 200:
            detail = exchange.fault or "answered without a stream"
            return self._seen(request, begun_ns, exchange, FinishReason.FAILED, detail)
        if status == 0:
            detail = exchange.fault or "the connection ended before the answer began"
            return self._seen(request, begun_ns, exchange, FinishReason.FAILED, detail)
        reason = FinishReason.FAILED
        if status in (408, 504):
            reason = FinishReason.EXPIRED
        elif status < 500 or status == 503:
            reason = FinishReason.REJECTED
        return self._seen(request, begun_ns, exchange, reason, f"{status} {exchange.words}")

    def _seen(
        self,
        request: SimRequest,
        begun_ns: int,
        exchange: Exchange,
        reason: FinishReason | None,
        detail: str,
    ) -> Seen:
        watch = exchange.watch
        times, counted_by = watch.token_times()
        is_whole = reason in (FinishReason.STOP, FinishReason.LENGTH)
        ended_ns = watch.ended_ns if is_whole else None
        return Seen(
            request=request,
            begun_ns=begun_ns,
            sent_ns=exchange.sent_ns,
            token_times=tuple(times),
            counted_by=counted_by,
            ended_ns=self._clock.now_ns() if ended_ns is None else ended_ns,
            reason=reason,
            status=exchange.status,
            detail=self._hide(detail),
            num_prompt_tokens=watch.num_prompt_tokens,
            num_output_tokens=watch.num_output_tokens,
        )

    async def _beat(self) -> None:
        """Note how late this loop wakes: no stamp of a token can be truer than that."""
        while True:
            due_ns = self._clock.now_ns() + int(HEARTBEAT_S * NS_PER_S)
            await asyncio.sleep(HEARTBEAT_S)
            self.beats.append(max(0, self._clock.now_ns() - due_ns))
