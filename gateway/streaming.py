"""Writes an answer to a client: server-sent events or one JSON body; bytes are made only here.

It is raw ASGI, for two reasons: a token must cost microseconds, and the client's leaving must free
its seats in the engine whether or not the answer is streamed, which a framework does for streams
only. Headers are sent with the first text: until then every failure is a plain HTTP error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.core.clock import NS_PER_MS, Clock
from gateway import metric_names as names
from gateway.answer import Answer
from gateway.choice import Choice
from gateway.errors import ApiError, Problem, ProblemSpec
from gateway.live import LiveAnswers
from gateway.pacing import PacedAnswer
from gateway.request_records import DoorRecord, Journal
from gateway.slo_desk import SloDesk, outcome_of
from gateway.telemetry import AnswerRecord, Telemetry
from tenants.slo import Outcome

EXTENSION = "tiergate"  # what gateway/server.py adds to a request's scope
TIER_HEADER = "x-tiergate-tier"  # the served tier by its own name, beside OpenAI's `service_tier`
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


class AnswerResponse(Response):
    """A response that takes its seats when it begins, and gives them back however it ends."""

    def __init__(
        self,
        answer: Answer,
        live: LiveAnswers,
        telemetry: Telemetry,
        journal: Journal,
        slo: SloDesk,
        clock: Clock,
    ) -> None:
        super().__init__()
        self._journal = journal
        self._slo = slo
        self._answer = answer
        self._live = live
        self._telemetry = telemetry
        self._clock = clock
        self._plan = answer.plan
        # Until it has come to another end it is one that nobody foresaw.
        self._problem: ProblemSpec | None = Problem.INTERNAL.value
        self._is_admitted = False
        self._has_left = False

    @property
    def outcome(self) -> str:
        """`ok`, `client_disconnected`, or the error type of what went wrong."""
        if self._has_left:
            return names.OUTCOME_DISCONNECTED
        return names.OUTCOME_OK if self._problem is None else self._problem.error_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the answer; raises ApiError as long as nothing has been sent."""
        answer = self._answer
        answer.drop_connection = scope.get("extensions", {}).get(EXTENSION, {}).get("abort")
        watcher: asyncio.Task[None] | None = None
        self._live.add(answer)
        state = scope.get("state", {})
        record = self._journal.arrived(self._plan, state.get("request_id", ""))
        self._slo.began(record)
        try:
            await self._open(record)
            watcher = asyncio.create_task(self._watch(receive))
            if self._plan.stream:
                await self._stream(send, state.get("send_body", send))
            else:
                await self._respond(send)
        except ApiError as error:
            self._problem = error.spec
            raise
        except asyncio.CancelledError:
            self._has_left = True
            raise
        finally:
            answer.close()
            self._live.remove(answer)
            self._record(state.get("log", {}), record)
            if watcher is not None:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)

    async def _open(self, record: DoorRecord) -> None:
        asked = self._plan.tier.name
        try:
            await self._answer.open()
        except ApiError as error:
            self._telemetry.admission(asked, error.spec.reason or error.spec.error_type)
            record.refused(error, self._clock.now_ns())
            raise
        self._is_admitted = True
        # From here on all is said and judged by the tier that it is served in.
        self._plan, watches = self._answer.plan, [c.stopwatch for c in self._answer.choices]
        record.admitted(self._plan, self._answer.entry, watches, self._clock.now_ns())
        is_own = self._plan.tier.name == asked
        self._telemetry.admission(
            asked, names.OUTCOME_ADMITTED if is_own else names.OUTCOME_DOWNGRADED
        )

    async def _watch(self, receive: Receive) -> None:
        """Free the seats as soon as the client is gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._answer.leave(self._clock.now_ns())

    async def _respond(self, send: Send) -> None:
        """Wait for the whole answer and send it as one JSON body."""
        plan, answer = self._plan, self._answer
        async with aclosing(answer.deltas()) as deltas:
            async for choice, _, num_tokens in deltas:
                self._stamp(choice, num_tokens)
        if answer.client_left:
            self._has_left = True
            return
        finished = [choice.finished() for choice in answer.choices]
        body = orjson.dumps(plan.shape.body(plan.heading, finished, answer.usage()))
        self._problem = None
        answer.done()
        headers = {"content-type": "application/json", "cache-control": "no-store"}
        await self._start(send, {**headers, "content-length": str(len(body))})
        await self._write(send, body, more=False)

    async def _stream(self, send: Send, send_body: Send) -> None:
        """Send each choice's deltas as they come, in the words of the plan's shape."""
        answer, plan = self._answer, self._plan
        script = plan.shape.script(plan.heading, plan.num_choices, plan.usage_chunk)
        source = PacedAnswer(answer, self._clock) if plan.is_paced else answer
        started = False
        try:
            async with aclosing(source.deltas()) as deltas:
                async for choice, parts, num_tokens in deltas:
                    opening = b"" if started else script.opening(answer.usage())
                    payload = opening + script.deltas(parts)
                    if not started:
                        started = True
                        await self._start(send, STREAM_HEADERS)
                    await self._write(send_body, payload)
                    self._stamp(choice, num_tokens)
            if answer.client_left:
                self._has_left = True
                return
            last = script.ending(answer.usage())
            self._problem = None
        except ApiError as error:
            if not started:
                raise
            self._problem = error.spec
            last = script.failure(error, answer.usage())
        answer.done()
        await self._write(send_body, last, more=False)

    def _timing(self) -> str:
        """Return what the client may know of its own waiting, for `server-timing`."""
        now_ns, arrival_ns = self._clock.now_ns(), self._plan.arrival_ns
        stats = [c.stats for c in self._answer.choices if c.stats is not None]
        queued = [s.first_scheduled_ns for s in stats if s.first_scheduled_ns is not None]
        firsts = [c.stopwatch.first_ns for c in self._answer.choices if c.stopwatch.first_ns]
        parts = {"ttft": min(firsts, default=now_ns)}
        if queued:
            parts = {"queue": min(queued), **parts, "total": now_ns}
        return ", ".join(
            f"{name};dur={(at_ns - arrival_ns) / NS_PER_MS:.1f}" for name, at_ns in parts.items()
        )

    async def _start(self, send: Send, headers: Mapping[str, str]) -> None:
        # Names are the operator's; one that a header cannot carry is quoted as in a URL.
        tier = quote(self._plan.tier.name, safe=" ")
        limits = self._answer.limit_headers
        every = {**headers, **limits, TIER_HEADER: tier, "server-timing": self._timing()}
        raw = [(k.encode(), v.encode()) for k, v in every.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _write(self, send: Send, payload: bytes, *, more: bool = True) -> None:
        self._answer.writing_since_ns = self._clock.now_ns()
        await send({"type": "http.response.body", "body": payload, "more_body": more})
        self._answer.writing_since_ns = None

    def _stamp(self, choice: Choice, num_tokens: int) -> None:
        """The tokens are in the socket's hands: this is the moment that counts."""
        if not num_tokens or self._answer.client_left:
            return
        gap_ns = choice.stopwatch.tokens(num_tokens, self._clock.now_ns())
        if gap_ns is not None:
            self._telemetry.gaps.record(self._plan.tier.name, gap_ns, num_tokens)

    def _record(self, log: dict[str, Any], record: DoorRecord) -> None:
        """Tell telemetry, and the request's log line, how the answer went in the client's eyes."""
        now_ns, plan, answer = self._clock.now_ns(), self._plan, self._answer
        ends = [(c.stats, c.finish_reason, c.num_answer_tokens) for c in answer.choices]
        self._journal.ended(record, self.outcome, ends, now_ns)
        watches = [choice.stopwatch for choice in answer.choices]
        firsts = [watch.ttft_ns for watch in watches if watch.ttft_ns is not None]
        log.update(
            outcome=self.outcome,
            tier=plan.tier.name,
            output_tokens=sum(choice.num_answer_tokens for choice in answer.choices),
            ttft_ms=round(min(firsts) / NS_PER_MS, 1) if firsts else None,
            worst_gap_ms=round(max((w.worst_gap_ns for w in watches), default=0) / NS_PER_MS, 1),
        )
        if answer.left_ns is not None:
            self._telemetry.cancelled(now_ns - answer.left_ns)
        self._telemetry.foreseen(record)
        usage = answer.usage()
        # A client that left is judged by when it did: freeing its seats is no time of its own.
        gone_ns = answer.left_ns if self._has_left else None
        ended_ns = now_ns if gone_ns is None else gone_ns
        slo = self._slo.ended(
            record, self._end(), self._reason(), ended_ns, self._waited_until(now_ns)
        )
        self._telemetry.answered(
            AnswerRecord(
                operation=plan.shape.operation,
                model=plan.heading.model,
                tier=plan.tier.name,
                tenant_id=plan.principal.tenant.id,
                outcome=self.outcome,
                duration_ns=now_ns - plan.arrival_ns,
                ttft_ns=min(firsts, default=None),
                gaps=slo.gaps,
                late_gaps=slo.late_gaps,
                verdict=slo.verdict,
                input_tokens=usage.prompt_tokens if self._is_admitted else 0,
                output_tokens=usage.completion_tokens,
            )
        )

    def _end(self) -> Outcome:
        if self._has_left:
            return Outcome.DISCONNECTED
        if self._problem is None:
            return Outcome.COMPLETED
        return outcome_of(self._problem, is_admitted=self._is_admitted)

    def _waited_until(self, now_ns: int) -> int | None:
        """Until when the client waited for more; None where it has all, or would not take it."""
        answer = self._answer
        if answer.writing_since_ns is not None or self._end() is Outcome.COMPLETED:
            return None
        return now_ns if answer.left_ns is None else answer.left_ns

    def _reason(self) -> str:
        return "" if self._has_left or self._problem is None else self._problem.error_type
