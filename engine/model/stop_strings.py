"""Ends an answer's text at the first stop string; it knows no HTTP and no engine.

A stop string counts when it is complete: of several, the one whose last character comes first ends
the answer (where two end together, the longer one). So the result is the same however the text is
cut into pieces. The text before it is given out, the stop string itself is not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from engine.model.detokenizer import IncrementalDetokenizer
from engine.model.tokenizer import Tokenizer


class StopStringMatcher:
    """Watches a text that arrives in pieces; constant time per character and stop string.

    Knuth, Morris, Pratt, "Fast pattern matching in strings", SIAM J. Comput. 6(2), 1977, one
    automaton per stop string: a naive comparison would let a client's long stop string cost its
    length at every token.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises `ValueError` for an empty stop string."""
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(dict.fromkeys(stops))
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each stop at the text's end
        self._held = ""
        self._done = False
        self.matched: str | None = None  # the stop string that was completed

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that can be given out, and whether a stop string was completed.

        Held back is the longest end of the text that could still become a stop string. After a
        match nothing is given out any more.
        """
        if self._done:
            return "", True
        if not self._stops:
            return text, False
        start = len(self._held)
        whole = self._held + text
        for position, character in enumerate(text, start + 1):
            length = self._advance(character)
            if length:
                self._done, self._held = True, ""
                self.matched = whole[position - length : position]
                return whole[: position - length], True
        keep = max(self._matched)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep], False

    def would_match(self, text: str) -> bool:
        """True where this text, should it come next, completes a stop string; takes nothing."""
        whole = self._held + text
        return self._done or any(stop in whole for stop in self._stops)

    def flush(self) -> str:
        """End the text without a match: return what was held back."""
        rest, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return rest

    def _advance(self, character: str) -> int:
        """Take one character; return the length of the longest stop string it completes, or 0."""
        longest = 0
        for i, stop in enumerate(self._stops):
            state = self._matched[i]
            while state and stop[state] != character:
                state = self._borders[i][state - 1]
            if stop[state] == character:
                state += 1
            self._matched[i] = state
            if state == len(stop):
                longest = max(longest, state)
        return longest


def _borders(stop: str) -> list[int]:
    """Return, for each prefix of `stop`, the length of its longest proper prefix that ends it."""
    table, state = [0], 0
    for character in stop[1:]:
        while state and stop[state] != character:
            state = table[state - 1]
        state += stop[state] == character
        table.append(state)
    return table


@dataclass(frozen=True, slots=True)
class Piece:
    """What some tokens add to an answer.

    `num_tokens` says how many of them belong to the answer: all, or those up to the one that
    completed a stop string. Tokens behind it were drawn in vain and are neither shown nor billed.
    """

    text: str
    finished: bool  # a stop string was completed
    num_tokens: int


class OutputText:
    """One answer's text: tokens in, text out, ended by stop strings.

    The answer ends with the first token after which the decoded tokens contain a stop string.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        stop_token_ids: Collection[int] = (),
        skip_special_tokens: bool = True,
        context: Sequence[int] = (),
    ) -> None:
        """`stop_token_ids` end an answer at the engine: they are counted, but add no text.

        With `skip_special_tokens` the model's own end tokens are silent too, special or not.
        `context`: the prompt's tokens where the text continues the prompt's, as a completion's
        does and a chat's answer does not (see IncrementalDetokenizer).
        """
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens, context=context)
        self._matcher = StopStringMatcher(stops)
        own = tokenizer.stop_token_ids if skip_special_tokens else ()
        self._silent = frozenset((*stop_token_ids, *own))
        self._finished = False
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far, the one that completed a stop string included."""
        return self._num_tokens

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer, None where none did."""
        return self._matcher.matched

    def push(self, token_ids: Iterable[int]) -> Piece:
        """Take the next tokens; after a stop string nothing is taken any more."""
        pieces, taken = [], 0
        for token_id in token_ids:
            if self._finished:
                break
            taken += 1
            if token_id in self._silent:
                continue
            final = self._detokenizer.push((token_id,))
            # Text that later tokens might change is final if the answer ends here.
            pending = self._detokenizer.pending()
            if pending and self._matcher.would_match(final + pending):
                final += pending
            text, self._finished = self._matcher.push(final)
            pieces.append(text)
        self._num_tokens += taken
        return Piece("".join(pieces), self._finished, taken)

    def flush(self) -> Piece:
        """End the answer: return the text still held back; no stop string can be in it."""
        if self._finished:
            return Piece("", True, 0)
        text, _ = self._matcher.push(self._detokenizer.flush())
        return Piece(text + self._matcher.flush(), False, 0)
