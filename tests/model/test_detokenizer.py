"""Text that was given out stays: pieces joined are the full decode, however tokens arrive."""

from __future__ import annotations

import pytest
import tokenizers_made_here as made
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.detokenizer import IncrementalDetokenizer
from engine.model.tokenizer import Tokenizer

FAMILIES = ["llama3", "qwen", "mistral", "gemma", "unigram", "word_piece"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folders = made.write_families(tmp_path_factory.mktemp("models"))
    return {name: Tokenizer.load(folder) for name, folder in folders.items()}


def check_every_prefix(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    """After each token, text so far + what is pending = decode of the tokens so far."""
    detokenizer = IncrementalDetokenizer(tokenizer, skip)
    text = ""
    for count, token_id in enumerate(ids, 1):
        text += detokenizer.push([token_id])
        assert text + detokenizer.pending() == tokenizer.decode(ids[:count], skip)
    assert text + detokenizer.flush() == tokenizer.decode(ids, skip)
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), skip=st.booleans())
def test_any_text_comes_out_whole(
    tokenizers: dict[str, Tokenizer], family: str, text: str, skip: bool
) -> None:
    """Property over Unicode texts, emoji sequences and leading spaces."""
    check_every_prefix(tokenizers[family], list(tokenizers[family].encode(text)), skip)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_any_tokens_come_out_as_their_decode(
    tokenizers: dict[str, Tokenizer], family: str, data: st.DataObject, skip: bool
) -> None:
    """Property over random ids: ill-formed bytes, special tokens, ids beyond the vocabulary.

    Ids are drawn from a few, so that the runs of byte tokens in which it matters get long.
    """
    tokenizer = tokenizers[family]
    few = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), min_size=1, max_size=5))
    check_every_prefix(tokenizer, data.draw(st.lists(st.sampled_from(few), max_size=16)), skip)


@pytest.mark.parametrize("family", ["llama3", "mistral"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_of_broken_characters_come_out_as_their_decode(
    tokenizers: dict[str, Tokenizer], family: str, data: st.DataObject
) -> None:
    """Property over byte tokens alone, where every rule about ill-formed UTF-8 shows."""
    tokenizer = tokenizers[family]
    by_byte = {
        tokenizer.token_text(i).bytes[0]: i
        for i in range(tokenizer.vocab_size)
        if len(tokenizer.token_text(i).bytes) == 1
    }
    tricky = [0x41, 0x80, 0x9F, 0xA0, 0xBF, 0xC2, 0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0xF5]
    drawn = data.draw(st.lists(st.sampled_from([by_byte[b] for b in tricky]), max_size=12))
    check_every_prefix(tokenizer, drawn, skip=True)


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1, max_size=30), cuts=st.lists(st.integers(1, 4), min_size=1))
def test_no_character_is_split_or_guessed(
    tokenizers: dict[str, Tokenizer], text: str, cuts: list[int]
) -> None:
    """Every piece is whole characters of the text, in groups of tokens of any size."""
    for tokenizer in (tokenizers["llama3"], tokenizers["gemma"]):
        ids = list(tokenizer.encode(text, add_special=False))
        expected = tokenizer.decode(ids)
        detokenizer, position, turn = IncrementalDetokenizer(tokenizer), 0, 0
        while ids:
            size = cuts[turn % len(cuts)]
            piece = detokenizer.push(ids[:size])
            assert piece == expected[position : position + len(piece)]
            ids, position, turn = ids[size:], position + len(piece), turn + 1
        assert detokenizer.flush() == expected[position:]


def test_an_emoji_of_several_tokens_appears_with_its_last(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """Byte-level: at once; byte fallback: when the run of bytes ends, for until then a broken
    byte could still turn it into replacement characters."""
    for family, last in (("llama3", "🙂"), ("gemma", "")):
        tokenizer = tokenizers[family]
        ids = tokenizer.encode("🙂", add_special=False)
        assert len(ids) == 4
        detokenizer = IncrementalDetokenizer(tokenizer)
        assert [detokenizer.push([token_id]) for token_id in ids] == ["", "", "", last]
        following = tokenizer.encode("the", add_special=False)
        assert last + detokenizer.push(following) == "🙂the"


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=30), at=st.integers(0, 30))
def test_a_text_goes_on_where_its_context_ended(
    tokenizers: dict[str, Tokenizer], family: str, text: str, at: int
) -> None:
    """Property: the decode of a prompt, and the pieces after it, are the decode of both.

    A cut in a run of bytes is moved to its end: what a prompt shows of half a character is no
    beginning of the whole one.
    """
    tokenizer = tokenizers[family]
    ids = tokenizer.encode("a " + text)
    detokenizer = IncrementalDetokenizer(tokenizer)
    prompt, count = "", 0
    while count < len(ids) and (count <= at or detokenizer.pending()):
        prompt += detokenizer.push([ids[count]])
        count += 1
    after = IncrementalDetokenizer(tokenizer, context=ids[:count])
    rest = "".join(after.push([token_id]) for token_id in ids[count:]) + after.flush()
    if not detokenizer.pending():
        assert prompt + rest == tokenizer.decode(ids)


def test_a_completion_keeps_the_space_before_its_first_word(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """Only where there is a context; a chat's answer begins a text of its own."""
    tokenizer = tokenizers["mistral"]
    prompt = tokenizer.encode("the")
    answer = tokenizer.encode("fox", add_special=False)
    assert IncrementalDetokenizer(tokenizer, context=prompt).push(answer) == " fox"
    assert IncrementalDetokenizer(tokenizer).push(answer) == "fox"
    half, rest = (
        tokenizers["llama3"].encode("🙂", False)[:2],
        tokenizers["llama3"].encode("🙂", False),
    )
    assert IncrementalDetokenizer(tokenizers["llama3"], context=half).push(rest[2:]) == "🙂"


def test_added_tokens_are_read_as_the_library_reads_them(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """One with a space is no byte-level spelling and stands for itself."""
    tokenizer = tokenizers["llama3"]
    ids = list(tokenizer.encode("a two words<tool_call>é<|eot_id|>", add_special=False))
    assert tokenizer.token(ids[2]) == "two words"
    for skip in (True, False):
        check_every_prefix(tokenizer, ids, skip)


def test_after_a_flush_the_next_answer_starts_anew(tokenizers: dict[str, Tokenizer]) -> None:
    """The space before the first word is taken off again, and no byte is left over."""
    tokenizer = tokenizers["mistral"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    ids = tokenizer.encode("the fox 🙂", add_special=False)
    for _ in range(2):
        assert detokenizer.push(ids) + detokenizer.flush() == "the fox 🙂"
