"""Compiles grammars for one vocabulary with llguidance; it knows no request and no logits.

What an answer may be is told as text (engine/core/grammar.py). Here it becomes a matcher: a parser
over bytes, asked which tokens may follow. The library drops the GIL while it compiles. Compiling,
each mask and the lexer's memory are bounded by `LIMITS`, whose units are its own: numbers of
expressions, of parser items and of lexer states, not time, so that the same grammar is taken or
refused everywhere.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import llguidance

from engine.core.clock import NS_PER_MS, MonotonicClock
from engine.core.grammar import (
    MAX_GRAMMAR_CHARS,
    WHITESPACE,
    GrammarError,
    GrammarKind,
    unpacked,
)
from engine.model.token_pieces import DecoderKind
from engine.model.tokenizer import Tokenizer

MAX_COMPILED = 64  # grammars kept by one compiler
MAX_COMPILE_MS = 250  # a schema that takes longer at the door never reaches the engine

# Words of the library's messages -> ours, which repeat nothing of what was sent.
_REASONS = (
    ("Unimplemented keys", "it uses a keyword that is not supported here"),
    ("oneOf", "'oneOf' is only supported where no answer can fit two of its schemas: use 'anyOf'"),
    ("Unsatisfiable", "no value can satisfy it"),
    ("NoExtensionBias", "no value can satisfy it"),
    ("regex", "a pattern in it is not valid, or looks around, or refers back"),
    ("ormat", "a 'format' in it is not supported"),
    ("not present in a registry", "a '$ref' in it leads nowhere"),
    ("ointer", "a '$ref' in it leads nowhere"),
    ("recursion limit", "it is too complex"),
    ("too ", "it is too complex"),
    ("fuel", "it is too complex"),
    ("limit", "it is too complex"),
)
_KEYWORDS = (
    *("contains", "dependencies", "dependentRequired", "dependentSchemas", "else", "if", "not"),
    *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
)


def limits() -> llguidance.LLParserLimits:
    """Return what one grammar may cost: some 20 ms of lexer a mask, some 20 MB of lexer states.

    The large lexemes are not prepared ahead: that takes longer, and depends on the vocabulary.
    """
    return llguidance.LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=50_000,
        max_items_in_row=2_000,
        max_lexer_states=10_000,
        max_grammar_size=200_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


class GrammarCompiler:
    """Matchers for one vocabulary; keeps the latest `MAX_COMPILED` grammars. Thread-safe."""

    def __init__(self, vocabulary: llguidance.LLTokenizer) -> None:
        """Use `for_tokenizer`, or `for_bytes` where no answer is made."""
        self._vocabulary = vocabulary
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer) -> GrammarCompiler:
        """Return a compiler for a model's tokens; raises GrammarError where they are no bytes."""
        if tokenizer.decoder.kind is DecoderKind.OTHER:
            raise GrammarError("the tokens of this model are not bytes")
        if not tokenizer.stop_token_ids:
            raise GrammarError("this model has no end token")
        wrapped = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        ends = list(tokenizer.stop_token_ids)
        return cls(llguidance.LLTokenizer(wrapped, eos_token=ends, slices=None))

    @classmethod
    def for_bytes(cls) -> GrammarCompiler:
        """Return a compiler whose tokens are bytes: it tells whether a grammar can be followed."""
        return cls(llguidance.LLTokenizer("byte"))

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        """Return a matcher at the beginning of an answer; raises GrammarError."""
        with self._lock:
            known = self._compiled.get(grammar)
            if known is not None:
                self._compiled.move_to_end(grammar)
        if known is None:
            known = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = known
                if len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
        return known.deep_copy()

    def check(self, grammar: str) -> None:
        """Raise GrammarError unless the grammar can be followed, and compiled in bearable time."""
        clock = MonotonicClock()
        began = clock.now_ns()
        self.matcher(grammar)
        if clock.now_ns() - began > MAX_COMPILE_MS * NS_PER_MS:
            raise GrammarError("it is too complex")

    def _compile(self, grammar: str) -> llguidance.LLMatcher:
        if len(grammar) > MAX_GRAMMAR_CHARS + 64:  # its kind stands before it
            raise GrammarError(f"it is longer than {MAX_GRAMMAR_CHARS} characters")
        made = llguidance.LLMatcher(
            self._vocabulary, _serialised(grammar), log_level=0, limits=limits()
        )
        if not made.is_error():
            made.compute_bitmask()  # a grammar without any sentence is only found out here
        if made.is_error():
            raise GrammarError(_reason(made.get_error()))
        return made


def _serialised(grammar: str) -> str:
    """Return the grammar in the library's own form."""
    kind, text = unpacked(grammar)
    if kind is GrammarKind.REGEX:
        return llguidance.LLMatcher.grammar_from_regex(text)
    if kind is GrammarKind.LARK:
        return llguidance.LLMatcher.grammar_from_lark(text)
    options: llguidance._lib.JsonCompileOptions = {
        "whitespace_pattern": WHITESPACE,
        "item_separator": ",",
        "key_separator": ":",
        "coerce_one_of": False,
        "lenient": False,
    }
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=options)
    except ValueError as error:
        raise GrammarError("it is not a JSON object") from error


def _reason(message: str) -> str:
    """Return the library's message in our words; keywords are named, for they are not input."""
    for word, reason in _REASONS:
        if word in message:
            named = [f"'{key}'" for key in _KEYWORDS if f'"{key}"' in message]
            is_key = word == "Unimplemented keys" and named
            return f"{', '.join(named)} cannot be followed here" if is_key else reason
    return "it is not a schema or grammar that can be followed here"


class _Vocabulary:
    """A tokenizer as the library wants to see it: bytes of every token, and text to tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.stop_token_ids[0]
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids: Sequence[int] = sorted(
            {*tokenizer.special_ids, *tokenizer.stop_token_ids}
        )
        self.tokens: Sequence[bytes] = tokenizer.vocabulary()
        self._ids: dict[bytes, int] = {}

    def __call__(self, text: bytes) -> list[int]:
        """Return tokens whose bytes are `text`, the tokenizer's own choice where that is exact.

        It is not where a tokenizer adds a space at the beginning, or reads a special token's name.
        """
        ids = self._tokenizer.encode(text.decode(errors="replace"), add_special=False)
        is_plain = not any(i in self.special_token_ids for i in ids)
        if is_plain and b"".join([self.tokens[i] for i in ids]) == text:
            return list(ids)
        return self._greedily(text)

    def _greedily(self, text: bytes) -> list[int]:
        if not self._ids:
            special = frozenset(self.special_token_ids)
            self._ids = {
                piece: i for i, piece in enumerate(self.tokens) if piece and i not in special
            }
        longest = max(map(len, self._ids), default=0)
        ids: list[int] = []
        start = 0
        while start < len(text):
            ends = range(min(len(text), start + longest), start, -1)
            end = next((end for end in ends if text[start:end] in self._ids), None)
            if end is None:
                break  # the vocabulary lacks this byte: what comes before it is still right
            ids.append(self._ids[text[start:end]])
            start = end
        return ids
