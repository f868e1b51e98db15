"""One HTTP answer in the making: its seats in the engine, its choices, how it ends; no bytes here.

An answer holds one engine request per choice. However it ends (done, refused, client gone, cut by
the gateway), `close` gives every seat back. It is ended from outside in two ways only: `leave`,
when the client is gone and nobody listens, and `cut`, when the gateway ends it with an error that
the client is told. Both abort in the engine; the last events then wake whoever writes the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import TypeAlias

from engine.core.errors import EngineUnavailable, RefusalReason, RequestRefused
from engine.core.request import FinishReason
from engine.core.stats import TokenEvent
from engine.serving.client import EngineClient, TokenStream
from gateway.choice import Choice
from gateway.completion import Delta, Usage
from gateway.embedding_choice import EmbeddingChoice
from gateway.errors import ApiError, Problem, bad_value
from gateway.gate import Entry, Gate, Pass
from gateway.lengths import Lengths
from gateway.limit_desk import NO_HEADERS, Held, LimitDesk
from gateway.metering import Meter
from gateway.plan import Plan
from gateway.stopwatch import Stopwatch
from gateway.text import TextCodec
from tenants.slo import LATE_SHARE

ENGINE_HINT_MS = 2000

# A choice, what it has new to say, and the tokens behind that text.
Piece: TypeAlias = tuple[Choice, list[Delta], int]


class Answer:
    """The seats and choices of one request; `open` takes them, `close` gives back what is left."""

    def __init__(
        self,
        plan: Plan,
        codec: TextCodec,
        engine: EngineClient,
        gate: Gate,
        meter: Meter,
        lengths: Lengths,
        desk: LimitDesk,
    ) -> None:
        self.plan = plan
        self._codec = codec
        self._engine = engine
        self._gate = gate
        self._meter = meter
        self._lengths = lengths
        self._desk = desk
        self._held: Held | None = None
        self._pass: Pass | None = None
        self.choices: list[Choice] = []
        self.client_left = False
        self.left_ns: int | None = None
        self.cut_by: ApiError | None = None
        self.has_withheld = False  # some of what was made will not be shown
        self.is_done = False
        self.writing_since_ns: int | None = None
        self.drop_connection: Callable[[], None] | None = None
        self.on_end: Callable[[], None] | None = None  # called when it is ended from outside

    async def open(self) -> None:
        """Take from the limits, then places in the queue, then seats: all or none; raises ApiError.

        The plan is from then on as it is served, which may be in a lower tier than asked for.
        """
        wants_nothing = self.plan.sampling.max_tokens == 0
        is_open = False
        try:
            if allowances := self._desk.allowances(self.plan):
                self._held = await self._desk.reserve(self.plan, allowances)
                if self.cut_by is not None:  # while the store of limits was asked
                    raise self.cut_by
            if wants_nothing:
                self.choices = [self._choice(index) for index in range(self.plan.num_choices)]
            else:
                self._take_places()
            is_open = True
        except ApiError as refusal:
            if self._held is not None:
                refusal.headers.update(self._held.headers(is_refused=True))
            raise
        finally:
            if not is_open:
                self._lengths.forget(self.plan)
            if self._held is not None:
                self._held.seal(is_served=is_open and wants_nothing)

    @property
    def limit_headers(self) -> Mapping[str, str]:
        """What the client is told of its limits; nothing where it has none."""
        return NO_HEADERS if self._held is None else self._held.headers()

    def _take_places(self) -> None:
        if not self._engine.ready:
            raise engine_unavailable()
        self._pass = self._gate.enter(self.plan)
        plan, held = self._pass.plan, self._held
        self.plan = plan
        for index in range(plan.num_choices):
            choice = self._choice(index)
            context = plan.usage_context(
                index, choice.stopwatch, None if held is None else held.ended
            )
            self._meter.open(choice.request_id, context)
            try:
                choice.stream = self._engine.submit(plan.order(index))
            except (EngineUnavailable, RequestRefused):
                self._meter.forget(choice.request_id)
                raise engine_unavailable() from None
            if held is not None:
                held.began()
            self.choices.append(choice)

    @property
    def entry(self) -> Entry | None:
        """In which tier and on what grounds it was let in; None before that."""
        return None if self._pass is None else self._pass.entry

    def _choice(self, index: int) -> Choice:
        plan = self.plan
        keeps = 1 + plan.most_output_tokens // LATE_SHARE
        stopwatch = Stopwatch(plan.arrival_ns, len(plan.prompt_of(index)), plan.slo, keeps=keeps)
        if plan.sampling.embeds:
            return EmbeddingChoice(plan, index, self._codec, stopwatch)
        return Choice(plan, index, self._codec, self._codec.output(plan.stops), stopwatch)

    async def deltas(self) -> AsyncGenerator[Piece]:
        """Yield (choice, its new deltas, tokens behind them) until every choice has ended.

        Where they are to be paced each token's come apart, else those that came together. Raises
        the ApiError that ends the answer; simply ends when the client has left.
        """
        if self.plan.sampling.max_tokens == 0:
            for choice in self.choices:
                choice.finish_reason = FinishReason.LENGTH.value
                yield choice, [*choice.opening(), choice.ending()], 0
            return
        if len(self.choices) == 1:
            (choice,) = self.choices
            assert choice.stream is not None
            is_paced = self.plan.is_paced
            while new := await choice.stream.next_events():
                for events in [[event] for event in new] if is_paced else (new,):
                    deltas, num_tokens = self._take(choice, events)
                    if deltas:
                        yield choice, deltas, num_tokens
                    if self._has_ended(choice, events):
                        return
            return
        async with aclosing(self._interleaved()) as all_events:
            async for choice, events in all_events:
                deltas, num_tokens = self._take(choice, events)
                if deltas:
                    yield choice, deltas, num_tokens
                if self._has_ended(choice, events):
                    return

    def _take(self, choice: Choice, events: list[TokenEvent]) -> tuple[list[Delta], int]:
        """Let the choice take its events, and tell admission and engine what follows from them."""
        opening: list[Delta] = []
        first = events[0]
        if not choice.has_begun and (first.token_id is not None or first.vector):
            choice.has_begun = True
            opening = choice.opening()
            if self._pass is not None:
                self._pass.first_token(choice.index, events[0].at_ns)
        was_open = choice.finish_reason is None
        deltas, num_tokens = choice.take(events)
        if was_open and choice.finish_reason is not None and choice.stats is None:
            # A stop string was found here: the engine does not know of it yet.
            self._engine.stop(choice.request_id, choice.num_answer_tokens)
        return [*opening, *deltas] if opening else deltas, num_tokens

    def _has_ended(self, choice: Choice, events: list[TokenEvent]) -> bool:
        """True when the client has left; raises what else ended the answer before its time."""
        if events[-1].finish_reason is None or choice.finish_reason is not None:
            return False
        if self.client_left:
            return True
        raise self.cut_by or self._failure(events[-1])

    def _failure(self, event: TokenEvent) -> ApiError:
        detail = event.stats.detail if event.stats is not None else ""
        if event.finish_reason is FinishReason.EXPIRED:
            return deadline_exceeded()
        if event.finish_reason is FinishReason.REJECTED:
            return self._refusal(detail)
        if not self._engine.ready:
            return engine_unavailable()
        return ApiError(Problem.ENGINE_FAILED, "The engine could not finish this request.")

    def _refusal(self, detail: str) -> ApiError:
        """Return the answer to a refusal by the engine, whose detail begins with its reason."""
        reason = detail.partition(":")[0]
        if reason == RefusalReason.DRAINING:
            return ApiError(Problem.DRAINING, "The engine is shutting down.", retry_after_ms=1000)
        if reason in (RefusalReason.NEVER_FITS, RefusalReason.EMPTY_PROMPT):
            return bad_value(None, "This request can never be served: it is empty or too long.")
        return ApiError(
            Problem.SATURATED,
            "The engine's queue is full. Please retry.",
            retry_after_ms=self._gate.hint_ms(self.plan.tier.name),
        )

    async def _interleaved(self) -> AsyncGenerator[tuple[Choice, list[TokenEvent]]]:
        """Yield each choice's events as they come, until all streams have ended."""
        waiting: dict[asyncio.Task[list[TokenEvent]], Choice] = {}
        try:
            for choice in self.choices:
                waiting[_next(choice)] = choice
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda t: waiting[t].index):
                    choice = waiting.pop(task)
                    if events := task.result():
                        waiting[_next(choice)] = choice
                        if self.plan.is_paced:
                            for event in events:
                                yield choice, [event]
                        else:
                            yield choice, events
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def usage(self) -> Usage:
        """Return the counts to tell the client; a prompt counts once for all its choices."""
        per_prompt = self.plan.choices_per_prompt
        cached = sum(
            c.stats.num_cached_tokens
            for c in self.choices
            if c.stats is not None and c.index % per_prompt == 0
        )
        return Usage(
            prompt_tokens=sum(len(prompt) for prompt in self.plan.prompts),
            completion_tokens=sum(
                c.num_answer_tokens if c.stats is None else c.stats.num_output_tokens
                for c in self.choices
            ),
            cached_tokens=cached,
        )

    def leave(self, now_ns: int) -> None:
        """The client is gone: free its seats. Harmless when repeated, or after the end."""
        if self.is_done or self.client_left:
            return
        self.client_left = True
        self.left_ns = now_ns
        self._abort()
        if self.on_end is not None:
            self.on_end()

    def cut(self, error: ApiError) -> None:
        """End the answer with an error that the client is told."""
        if self.is_done or self.client_left or self.cut_by is not None:
            return
        self.cut_by = error
        self._abort()
        if self.on_end is not None:
            self.on_end()

    def _abort(self) -> None:
        """Free the places at once; the engine frees the seats before it takes another request."""
        if self._pass is not None:
            self._pass.release()
        for choice in self.choices:
            if choice.stream is not None and choice.stats is None:
                self._engine.abort(choice.request_id)

    def done(self) -> None:
        """All is said but the last byte: who reads that finds limits settled; cannot be ended now.

        Of other answers the meter knows already, since it hears of them as soon as anybody.
        """
        self.is_done = True
        if self.plan.is_paced:
            self._settle()

    def close(self) -> None:
        """Give back every seat and place; the one way out, whatever happened."""
        self.is_done = True
        self._abort()
        if self.plan.is_paced:
            self._settle()

    def _settle(self) -> None:
        for choice in self.choices:
            is_partial = self.client_left or self.has_withheld
            self._meter.settle(choice.request_id, client_left=is_partial)


def _next(choice: Choice) -> asyncio.Task[list[TokenEvent]]:
    assert choice.stream is not None
    return asyncio.create_task(_next_events(choice.stream))


async def _next_events(stream: TokenStream) -> list[TokenEvent]:
    return await stream.next_events()


def engine_unavailable() -> ApiError:
    """Return the error of a request that came while no engine answers."""
    return ApiError(
        Problem.ENGINE_UNAVAILABLE,
        "The engine is starting or restarting. Please retry.",
        retry_after_ms=ENGINE_HINT_MS,
    )


def deadline_exceeded() -> ApiError:
    """Return the error of an answer that took longer than any answer may."""
    return ApiError(Problem.DEADLINE, "The answer took longer than this server allows.")
