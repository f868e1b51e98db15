"""What one client saw of one answer: when each chunk came, and which tokens stood in it.

It reads the events of OpenAI's two streams, counts, and judges nothing. A chunk may hold no token
(the role, the usage), one, or several; how many is taken, in this order, from

1. `usage` on the chunk itself, or its token ids, where the server sends them;
2. the usage at the end: as many tokens as chunks means one each;
3. the usage at the end and the length of the texts, where chunks hold several: an estimate;
4. the chunks with text, where no usage ever comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

DONE = b"[DONE]"
MOST_FAULT = 120  # characters of a server's own words that are kept


class CountedBy(StrEnum):
    """Where the number of tokens of each chunk is from."""

    CHUNK = "chunk"  # the server said it chunk by chunk
    EACH = "each"  # as many tokens as chunks
    TEXT = "text"  # shared out by the length of texts
    NOTHING = "nothing"  # no usage: chunks with text
    NONE = "none"  # there was no token


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk with a choice: when it came, its characters, tokens where told, if it is the end.

    `total` is the number of tokens so far, None where the chunk does not say.
    """

    at_ns: int
    num_chars: int
    total: int | None
    is_end: bool


class AnswerWatch:
    """Follows one streamed answer; `take` is called for each event, at the time it came."""

    __slots__ = (
        "_told",
        "chunks",
        "ended_ns",
        "fault",
        "finish_reason",
        "is_done",
        "num_output_tokens",
        "num_prompt_tokens",
    )

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.finish_reason = ""
        self.ended_ns: int | None = None  # when the finish reason came
        self.is_done = False
        self.fault = ""  # what broke the stream off, in the server's words
        self.num_prompt_tokens: int | None = None
        self.num_output_tokens: int | None = None
        self._told = 0  # by token ids

    def take(self, data: bytes, at_ns: int) -> None:
        """Take the data of one event."""
        if data == DONE:
            self.is_done = True
            return
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            event = None
        if not isinstance(event, dict):
            self.fault = self.fault or "an event that is no JSON object"
            return
        if "error" in event and event["error"] is not None:
            self.fault = self.fault or error_words(event)
            return
        usage = event.get("usage")
        total = self._take_usage(usage) if isinstance(usage, dict) else None
        choices = event.get("choices")
        if choices:
            self._take_choice(choices[0], total, at_ns)

    def _take_usage(self, usage: dict[str, Any]) -> int | None:
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int):
            self.num_prompt_tokens = prompt
        if not isinstance(output, int):
            return None
        self.num_output_tokens = output
        return output

    def _take_choice(self, choice: Any, total: int | None, at_ns: int) -> None:
        if not isinstance(choice, dict):
            self.fault = self.fault or "a choice that is no JSON object"
            return
        reason = choice.get("finish_reason")
        if reason:
            self.finish_reason = str(reason)
            self.ended_ns = at_ns
        text, is_role = _text_of(choice)
        ids = choice.get("token_ids")
        if total is None and isinstance(ids, list):
            self._told += len(ids)
            total = self._told
        if text or not is_role:
            self.chunks.append(Chunk(at_ns, len(text), total, bool(reason)))

    @property
    def is_whole(self) -> bool:
        """True for an answer that ended as it should: with a finish reason and without a fault."""
        return bool(self.finish_reason) and not self.fault

    def token_times(self) -> tuple[list[int], CountedBy]:
        """Return when each token came, in order, and how that is known."""
        wanted = self.num_output_tokens
        told = _counted_by_chunk(self.chunks)
        if told and (wanted is None or len(told) == wanted):
            return told, CountedBy.CHUNK
        # The chunk that ends an answer and one whose text is not complete may hold a token or none.
        texts = [c for c in self.chunks if c.num_chars]
        if wanted is not None:
            for chunks in (self.chunks, [c for c in self.chunks if not _is_bare_end(c)], texts):
                if len(chunks) == wanted:
                    return [c.at_ns for c in chunks], CountedBy.EACH if wanted else CountedBy.NONE
        chunks = texts or [c for c in self.chunks if not _is_bare_end(c)]
        if not chunks:
            return [], CountedBy.NONE
        if wanted is None:
            return [c.at_ns for c in chunks], CountedBy.NOTHING
        return _shared_out(chunks, wanted), CountedBy.TEXT


def _is_bare_end(chunk: Chunk) -> bool:
    return chunk.is_end and not chunk.num_chars


def _text_of(choice: dict[str, Any]) -> tuple[str, bool]:
    """Return a chunk's text, and whether it only opens a chat answer."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        text = choice.get("text")
        return (text if isinstance(text, str) else ""), False
    for name in ("content", "reasoning_content", "reasoning"):
        text = delta.get(name)
        if isinstance(text, str) and text:
            return text, False
    return "", "role" in delta


def _counted_by_chunk(chunks: list[Chunk]) -> list[int]:
    """Return token times where every chunk says how many there are so far, else nothing."""
    times: list[int] = []
    for chunk in chunks:
        if chunk.total is None:
            return []
        times += [chunk.at_ns] * (chunk.total - len(times))
    return times


def _shared_out(chunks: list[Chunk], num_tokens: int) -> list[int]:
    """Return token times, the tokens shared out by characters; the first chunk holds the first."""
    if num_tokens <= 0:
        return []
    chars = sum(c.num_chars for c in chunks)
    times: list[int] = []
    seen = 0
    for place, chunk in enumerate(chunks, 1):
        seen += chunk.num_chars
        part = seen / chars if chars else place / len(chunks)
        upto = max(1, min(num_tokens, round(part * num_tokens)))
        times += [chunk.at_ns] * (upto - len(times))
    return times


def error_words(body: object) -> str:
    """Return what a server says of an error, in one short line: its code before its message."""
    words: object = None
    if isinstance(body, dict):
        error = body.get("error")
        words = error or body.get("message") or body.get("detail")
        if isinstance(error, dict):
            words = error.get("code") or error.get("type") or error.get("message")
    return " ".join(str(words or "").split())[:MOST_FAULT] or "an error without words"
