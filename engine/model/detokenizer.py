"""Tokens to text while they arrive, never taking a character back; it knows no stop strings.

What `push` returns is final: whatever tokens follow, the text so far begins with it, and all pieces
and `flush` joined are the tokenizer's own `decode` of all ids. Each token costs constant time on
average, however long the answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol

from engine.model.token_pieces import DecoderKind, byte_level_bytes, byte_of
from engine.model.tokenizer import Tokenizer

_CONTEXT_TOKENS = 8  # enough for an unfinished character and a word before it


class _Stream(Protocol):
    """One answer's state; `token` is the vocabulary's spelling of `token_id`."""

    def push(self, token_id: int, token: str) -> str:
        """Take one token, return the text that became final."""
        ...

    def pending(self) -> str:
        """Return what `push` would still have to give if nothing followed."""
        ...


class IncrementalDetokenizer:
    """Turns one answer's tokens into text, piece by piece."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        *,
        context: Sequence[int] = (),
    ) -> None:
        """Special tokens add no text unless `skip_special_tokens` is False.

        `context` are tokens that the text continues, a completion's prompt for example: then the
        first word keeps its leading space, and a character begun there is completed here.
        """
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._stream = _stream_for(tokenizer)
        self.push(context[-_CONTEXT_TOKENS:])

    def push(self, ids: Iterable[int]) -> str:
        """Take some tokens and return the text that became final with them, often empty."""
        pieces = []
        for token_id in ids:
            if token_id in self._skipped:
                continue
            token = self._tokenizer.token(token_id)
            if token is not None:
                pieces.append(self._stream.push(token_id, token))
        return "".join(pieces)

    def pending(self) -> str:
        """Return the text that would be added if the answer ended here, without ending it."""
        return self._stream.pending()

    def flush(self) -> str:
        """End the answer: return what was held back, U+FFFD standing for incomplete characters.

        Afterwards it is ready for the next answer, one without context.
        """
        rest = self._stream.pending()
        self._stream = _stream_for(self._tokenizer)
        return rest


def _stream_for(tokenizer: Tokenizer) -> _Stream:
    kind = tokenizer.decoder.kind
    if kind is DecoderKind.BYTE_LEVEL:
        return _ByteLevelStream()
    if kind is DecoderKind.BYTE_FALLBACK:
        return _ByteFallbackStream(tokenizer)
    return _WindowStream(tokenizer)


class _ByteLevelStream:
    """Every token is bytes; only an incomplete character, at most three bytes, is held back."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int, token: str) -> str:
        return self._decoder.decode(byte_level_bytes(token))

    def pending(self) -> str:
        return self._decoder.getstate()[0].decode(errors="replace")


class _ByteFallbackStream:
    """Words are final at once; a run of byte tokens is final when it ends.

    The decoder judges a run as a whole: if any byte of it is ill-formed, each byte becomes U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._shape = tokenizer.decoder
        self._run = bytearray()
        self._to_strip = self._shape.strip_count

    def push(self, token_id: int, token: str) -> str:
        word = self._shape.replaced(token)
        byte = byte_of(word)
        if byte is not None:
            self._run.append(byte)
            return ""
        whole = self._decoded_run() + word
        self._run.clear()
        text = self._stripped(whole)
        self._to_strip = 0 if text else self._to_strip - len(whole)
        return text

    def pending(self) -> str:
        return self._stripped(self._decoded_run())

    def _decoded_run(self) -> str:
        try:
            return self._run.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(self._run)

    def _stripped(self, text: str) -> str:
        count = 0
        while count < min(self._to_strip, len(text)) and text[count] == self._shape.strip:
            count += 1
        return text[count:]


class _WindowStream:
    """For other decoders: decode the new tokens behind the last one already given out.

    What these decoders do to a token depends on whether it is the first and on nothing else; so
    the token before gives the context, and its own text is cut off again. Byte tokens are held
    back until their run ends, as above.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int, token: str) -> str:
        self._held.append(token_id)
        if byte_of(token) is not None:
            return ""
        text = self.pending()
        self._context = [token_id]
        self._held = []
        return text

    def pending(self) -> str:
        if not self._held:
            return ""
        before = self._tokenizer.decode(self._context, skip_special_tokens=False)
        text = self._tokenizer.decode(self._context + self._held, skip_special_tokens=False)
        return text.removeprefix(before)
