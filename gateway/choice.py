"""One choice of an answer: from the engine's token events to pieces of text; it knows no bytes.

Everything here runs once a token, for every stream, on the event loop: it is written to be cheap.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.request import FinishReason
from engine.core.stats import RequestStats, TokenEvent
from engine.serving.client import TokenStream
from gateway.completion import CallDelta, Delta, FinishedChoice, TokenLogprob, ToolCall
from gateway.plan import Plan
from gateway.stopwatch import Stopwatch
from gateway.text import AnswerText, TextCodec

TOOL_CALLS = "tool_calls"  # the finish reason of an answer that ends because it calls tools
_GOOD_ENDS = (FinishReason.STOP, FinishReason.LENGTH)


class Choice:
    """One choice, up to its finish reason; what it has said so far is kept for plain answers."""

    __slots__ = (
        "_calls",
        "_codec",
        "_end_ids",
        "_logprobs",
        "_num_shown",
        "_offset",
        "_output",
        "_plan",
        "_reader",
        "_texts",
        "_unsent",
        "_wants_logprobs",
        "finish_reason",
        "has_begun",
        "index",
        "num_answer_tokens",
        "request_id",
        "stats",
        "stopwatch",
        "stream",
    )

    def __init__(
        self, plan: Plan, index: int, codec: TextCodec, output: AnswerText, stopwatch: Stopwatch
    ) -> None:
        self._plan = plan
        self._codec = codec
        self._output = output
        self._wants_logprobs = plan.wants_logprobs
        self._end_ids = plan.sampling.stop_token_ids
        self._reader = None if plan.tools is None else plan.tools.reader()
        self._calls: list[tuple[CallDelta, list[str]]] = []
        self._texts: list[str] = []
        self._offset = 0
        self._logprobs: list[TokenLogprob] = []
        self._unsent: list[TokenLogprob] = []
        self._num_shown = 0
        self.index = index
        self.request_id = plan.engine_id(index)
        self.stopwatch = stopwatch
        self.stream: TokenStream | None = None
        self.has_begun = False
        self.finish_reason: str | None = None
        self.num_answer_tokens = 0
        self.stats: RequestStats | None = None

    def opening(self) -> list[Delta]:
        """Return the echoed prompt as the first delta, if one was asked for.

        Log probabilities are those of the answer only: the engine computes none for prompts.
        """
        text = self._plan.echo_of(self.index)
        return [self._delta(text)] if text else []

    def take(self, events: Sequence[TokenEvent]) -> tuple[list[Delta], int]:
        """Return the deltas of these events, and how many tokens stand behind their text."""
        deltas: list[Delta] = []
        shown_before = self._num_shown
        for event in events:
            token_id = event.token_id
            if token_id is not None and self.finish_reason is None:
                self.num_answer_tokens += 1
                # The end token counts, but is no text.
                if event.finish_reason is not FinishReason.STOP or token_id not in self._end_ids:
                    if self._wants_logprobs:
                        self._unsent.append(self._logprob(event, token_id))
                    text = self._output.push(token_id)
                    if self._reader is not None:
                        text += self._codec.tool_marks.get(token_id, "")
                    if text:
                        self._say(text, deltas)
                    if self._output.stopped:
                        self.finish_reason = FinishReason.STOP.value
            if event.finish_reason is not None:
                self.stats = event.stats
                deltas += self._end(event.finish_reason)
        return deltas, self._num_shown - shown_before

    def _end(self, reason: FinishReason) -> list[Delta]:
        """Return what was held back, and the delta that names the finish reason."""
        deltas: list[Delta] = []
        if self.finish_reason is None and reason in _GOOD_ENDS:
            text = self._output.flush()
            self.finish_reason = reason.value
            if text:
                self._say(text, deltas)
        if self.finish_reason is not None:
            self._end_calls(deltas)
            deltas.append(self.ending())
        return deltas

    def _say(self, text: str, deltas: list[Delta]) -> None:
        """Add what is new to be shown: the text, or what of it is certain where tools are read."""
        if self._reader is None:
            self._num_shown = self.num_answer_tokens
            deltas.append(self._delta(text))
            return
        self._show(self._reader.push(text), deltas)

    def _end_calls(self, deltas: list[Delta]) -> None:
        """Show what the reader of tools still holds; an answer with calls ends for them."""
        if self._reader is None:
            return
        self._show(self._reader.end(), deltas)
        if self._calls and self.finish_reason == FinishReason.STOP.value and not self.stop:
            self.finish_reason = TOOL_CALLS

    def _show(self, parts: Sequence[str | CallDelta], deltas: list[Delta]) -> None:
        for part in parts:
            self._num_shown = self.num_answer_tokens
            if isinstance(part, str):
                deltas.append(self._delta(part))
                continue
            if part.name:
                self._calls.append((part, []))
            self._calls[-1][1].append(part.arguments)
            deltas.append(self._delta("", call=part))

    @property
    def stop(self) -> str | None:
        """The stop string that ended the choice, None where none did."""
        return self._output.stop

    def ending(self) -> Delta:
        """Return the delta that ends the choice, with log probabilities that have had no text."""
        return self._delta("", self.finish_reason)

    def _delta(
        self, text: str, finish_reason: str | None = None, call: CallDelta | None = None
    ) -> Delta:
        logprobs: tuple[TokenLogprob, ...] | None = None
        if self._unsent:
            logprobs = tuple(self._unsent)
            self._logprobs += self._unsent
            self._unsent = []
        stop = None if finish_reason is None else self.stop
        delta = Delta(self.index, text, self._offset, logprobs, finish_reason, call, stop)
        self._offset += len(text)
        self._texts.append(text)
        return delta

    def _logprob(self, event: TokenEvent, token_id: int) -> TokenLogprob:
        token = self._codec.token
        top = tuple((token(one.token_id), one.logprob) for one in event.top)
        # The engine reports one wherever one was ordered; a missing one would be its fault.
        assert event.logprob is not None
        return TokenLogprob(token(token_id), event.logprob, top)

    def finished(self) -> FinishedChoice:
        """Return the whole choice."""
        assert self.finish_reason is not None
        logprobs = tuple(self._logprobs) if self._wants_logprobs else None
        echoed = len(self._plan.echo_of(self.index))
        text = "".join(self._texts)
        calls = tuple(ToolCall(head.id, head.name, "".join(args)) for head, args in self._calls)
        return FinishedChoice(
            self.index, text, self.finish_reason, logprobs, echoed, calls, self.stop
        )
