"""Text to tokens and back for the door: the one place that loads the model's tokenizer.

Encoding runs in a small pool of threads, never on the event loop, and only so many texts may wait
for it. Decoding one token at a time is cheap and stays on the loop. What a tokenizer is, and torch,
are not known here: `engine.model.tokenizer` is imported when a model is loaded, not before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from engine.core.errors import ModelLoadError
from engine.core.grammar import GrammarError
from gateway.completion import TokenText
from gateway.errors import ApiError, Problem, bad_value
from gateway.schemas import ContentPart, Message, Prompt
from gateway.tool_reader import CLOSE, OPEN

if TYPE_CHECKING:
    from engine.model.chat_template import ToolForm
    from engine.model.detokenizer import IncrementalDetokenizer
    from engine.model.grammar import GrammarCompiler
    from engine.model.stop_strings import OutputText
    from engine.model.tokenizer import Tokenizer

THREADS = 2
MAX_WAITING = 1024
BUSY_HINT_MS = 1000

T = TypeVar("T")


class AnswerText(Protocol):
    """The text of one answer, token by token."""

    @property
    def stopped(self) -> bool:
        """True once a stop string was found."""
        ...

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        ...

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is certain with it, often empty."""
        ...

    def flush(self) -> str:
        """Return what was held back, at the end of an answer that met no stop string."""
        ...


class PlainText:
    """An answer without stop strings: nothing but the detokenizer, which is half the work."""

    __slots__ = ("_detokenizer",)
    stopped = False
    stop: str | None = None

    def __init__(self, detokenizer: IncrementalDetokenizer) -> None:
        self._detokenizer = detokenizer

    def push(self, token_id: int) -> str:
        """See AnswerText."""
        return self._detokenizer.push((token_id,))

    def flush(self) -> str:
        """See AnswerText."""
        return self._detokenizer.flush()


class StoppingText:
    """An answer that ends before the first of some stop strings."""

    __slots__ = ("_output", "stopped")

    def __init__(self, output: OutputText) -> None:
        self._output = output
        self.stopped = False

    @property
    def stop(self) -> str | None:
        """See AnswerText."""
        return self._output.stop

    def push(self, token_id: int) -> str:
        """See AnswerText."""
        piece = self._output.push((token_id,))
        self.stopped = piece.finished
        return piece.text

    def flush(self) -> str:
        """See AnswerText."""
        return self._output.flush().text


async def load_codec(model_path: str) -> TextCodec:
    """Load the tokenizer in the model's folder, in a thread; raises ModelLoadError."""

    def load() -> TextCodec:
        from engine.model.detokenizer import IncrementalDetokenizer
        from engine.model.stop_strings import OutputText
        from engine.model.tokenizer import Tokenizer

        try:
            tokenizer = Tokenizer.load(model_path)
        except ValueError as error:
            raise ModelLoadError(str(error)) from error
        return TextCodec(
            tokenizer,
            lambda stops: (
                StoppingText(OutputText(tokenizer, stops))
                if stops
                else PlainText(IncrementalDetokenizer(tokenizer))
            ),
        )

    return await asyncio.to_thread(load)


class TextCodec:
    """One model's tokenizer, behind a bounded pool of threads. `make_output` begins an answer."""

    def __init__(
        self, tokenizer: Tokenizer, make_output: Callable[[Sequence[str]], AnswerText]
    ) -> None:
        self._tokenizer = tokenizer
        self._make_output = make_output
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="encode")
        # Apart: schemas that are slow to check hold up one another, and no prompt.
        self._grammar_pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._waiting = 0

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._grammar_pool.shutdown(wait=False, cancel_futures=True)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._tokenizer.vocab_size

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens with which the model ends an answer."""
        return self._tokenizer.stop_token_ids

    @property
    def tool_form(self) -> ToolForm | None:
        """How the model calls tools, None where its chat template takes none."""
        return self._tokenizer.tool_form

    @cached_property
    def tool_marks(self) -> Mapping[int, str]:
        """The marks around calls that are special tokens, which a text leaves out, by their id."""
        found = {mark: self._tokenizer.special_id(mark) for mark in (OPEN, CLOSE)}
        return {token_id: mark for mark, token_id in found.items() if token_id is not None}

    async def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """Return a conversation as tokens, ready for the answer; raises ApiError."""
        plain = [plain_message(index, message) for index, message in enumerate(messages)]
        name_results(plain)
        try:
            return await self._run(partial(self._tokenizer.encode_chat, plain, tools))
        except ValueError:
            raise bad_value(
                "messages", "This model's chat template does not take these messages."
            ) from None

    async def encode_prompts(
        self, prompts: Sequence[Prompt], field: str = "prompt"
    ) -> list[tuple[int, ...]]:
        """Return prompts as tokens; those that are tokens already are checked. Raises ApiError.

        `field` is the one that they were sent in.
        """
        return await self._run(partial(self._encode_all, prompts, field))

    def _encode_all(self, prompts: Sequence[Prompt], field: str) -> list[tuple[int, ...]]:
        encoded: list[tuple[int, ...]] = []
        for prompt in prompts:
            if isinstance(prompt, str):
                encoded.append(self._tokenizer.encode(prompt))
            elif max(prompt) >= self.vocab_size:
                raise bad_value(field, f"Token ids of this model are below {self.vocab_size}.")
            else:
                encoded.append(tuple(prompt))
        return encoded

    async def grammar_of(self, make: Callable[[], str], param: str = "response_format") -> str:
        """Return a grammar, made in a thread, that the engine can follow; raises ApiError.

        `param` is the field that it comes from.
        """
        try:
            return await self._run(partial(self._checked_grammar, make), self._grammar_pool)
        except GrammarError as error:
            raise bad_value(param, f"Answers cannot be held to this schema: {error}.") from None

    def _checked_grammar(self, make: Callable[[], str]) -> str:
        grammar = make()
        self._grammars.check(grammar)
        return grammar

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        try:
            from engine.model.grammar import GrammarCompiler
        except ImportError:
            raise ApiError(
                Problem.UNSUPPORTED,
                "This server cannot check the format of answers.",
                param="response_format",
            ) from None
        return GrammarCompiler.for_bytes()

    async def _run(self, work: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        if self._waiting >= MAX_WAITING:
            raise ApiError(
                Problem.SATURATED,
                "Too many prompts are waiting to be read.",
                retry_after_ms=BUSY_HINT_MS,
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool or self._pool, work)
        finally:
            self._waiting -= 1

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self._tokenizer.decode(token_ids)

    def token(self, token_id: int) -> TokenText:
        """Return one token as log probabilities show it."""
        return self._tokenizer.token_text(token_id)

    def output(self, stops: Sequence[str]) -> AnswerText:
        """Return an empty answer's text that ends before the first of `stops`."""
        return self._make_output(stops)


def plain_message(index: int, message: Message) -> dict[str, Any]:
    """Return a message for the chat template; raises ApiError for a part that is not text."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.tool_calls:
        plain["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.name is not None and message.role in ("tool", "function"):
        plain["name"] = message.name
    if isinstance(message.content, list):
        plain["content"] = [
            _text_part(f"messages.{index}.content.{number}", part)
            for number, part in enumerate(message.content)
        ]
    return plain


def name_results(messages: Sequence[dict[str, Any]]) -> None:
    """Name the tool in each message with a call's result, where the client has not.

    Some templates show the name, or insist on it; clients send the call's id.
    """
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        name = names.get(message.get("tool_call_id", ""))
        if name is not None:
            message.setdefault("name", name)


def _text_part(param: str, part: ContentPart) -> dict[str, str]:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if text is None:
        raise ApiError(Problem.UNSUPPORTED, "Only parts of type 'text' can be read.", param=param)
    return {"type": "text", "text": text}
