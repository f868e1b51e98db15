"""A stop string ends the answer at the same place however the text is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers_made_here as made
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.model.stop_strings import OutputText, StopStringMatcher
from engine.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folders = made.write_families(tmp_path_factory.mktemp("models"))
    return {name: Tokenizer.load(folder) for name, folder in folders.items()}


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Search the whole text: the match that ends first, of those the one that begins first."""
    matches = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    return (text[: min(matches)[1]], True) if matches else (text, False)


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, position, turn = [], 0, 0
    while position < len(text):
        size = sizes[turn % len(sizes)]
        pieces.append(text[position : position + size])
        position, turn = position + size, turn + 1
    return pieces


LETTERS = st.text(alphabet="ab", max_size=24)  # few letters: borders within borders
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=4)


@settings(max_examples=500, deadline=None)
@given(text=LETTERS, stops=STOPS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
@example(text="aabaaab", stops=["aaab"], sizes=[1])
@example(text="abc", stops=["abc", "b"], sizes=[1])
@example(text="abc", stops=["abc", "b"], sizes=[3])
def test_every_cut_gives_what_a_search_of_the_whole_text_gives(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    """Also: no piece holds back more than the longest end that could become a stop string."""
    matcher = StopStringMatcher(stops)
    out, seen, matched = "", "", False
    for piece in cut(text, sizes):
        seen += piece
        emitted, matched = matcher.push(piece)
        out += emitted
        if matched:
            break
        held = max((n for s in stops for n in range(len(s)) if seen.endswith(s[:n])), default=0)
        assert out == seen[: len(seen) - held]
    if not matched:
        out += matcher.flush()
    assert (out, matched) == naive(text, stops)


@settings(deadline=None)
@given(text=LETTERS, more=LETTERS, stops=STOPS)
def test_looking_ahead_takes_nothing(text: str, more: str, stops: list[str]) -> None:
    """`would_match` tells what `push` would find and leaves the matcher as it was."""
    asked, plain = StopStringMatcher(stops), StopStringMatcher(stops)
    assert asked.push(text) == plain.push(text)
    foreseen = asked.would_match(more)
    result = asked.push(more)
    assert result == plain.push(more)
    assert foreseen == result[1]


def test_after_a_match_nothing_comes_out() -> None:
    """Text behind the stop string belongs to nobody."""
    matcher = StopStringMatcher(["stop"])
    assert matcher.push("go, stop, go") == ("go, ", True)
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    """It would end every answer before it begins."""
    with pytest.raises(ValueError, match="empty"):
        StopStringMatcher(["x", ""])


FAMILIES = ["llama3", "mistral", "gemma", "word_piece"]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_answers_end_with_the_first_token_that_completes_a_stop_string(
    tokenizers: dict[str, Tokenizer], family: str, data: st.DataObject
) -> None:
    """Tokens, text and counts equal decoding every prefix of the answer and searching in it."""
    tokenizer = tokenizers[family]
    text = data.draw(st.text(alphabet="ab\n é🙂", max_size=20))
    stops = data.draw(st.lists(st.text(alphabet="ab\n é🙂", min_size=1, max_size=3), max_size=3))
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    ids = list(tokenizer.encode(text, add_special=False))
    expected_text, expected_end, expected_tokens = tokenizer.decode(ids), False, len(ids)
    for count in range(1, len(ids) + 1):
        shown, found = naive(tokenizer.decode(ids[:count]), stops)
        if found:
            expected_text, expected_end, expected_tokens = shown, True, count
            break
    output, out, finished, taken, turn = OutputText(tokenizer, stops), "", False, 0, 0
    while ids and not finished:
        size = sizes[turn % len(sizes)]
        piece = output.push(ids[:size])
        assert piece.num_tokens <= min(size, len(ids))
        out, finished, taken = out + piece.text, piece.finished, taken + piece.num_tokens
        ids, turn = ids[size:], turn + 1
    out += output.flush().text
    assert (out, finished, taken) == (expected_text, expected_end, expected_tokens)
    assert output.num_tokens == taken


def test_tokens_behind_the_stop_string_are_not_counted(tokenizers: dict[str, Tokenizer]) -> None:
    """Several tokens may arrive at once; those after the end are neither shown nor billed."""
    tokenizer = tokenizers["llama3"]
    ids = [*tokenizer.encode("a.b", add_special=False), *tokenizer.encode("c", add_special=False)]
    piece = OutputText(tokenizer, ["."]).push(ids)
    assert (piece.text, piece.finished, piece.num_tokens) == ("a", True, 2)
    output = OutputText(tokenizer, ["."])
    output.push(ids)
    assert output.push(ids).num_tokens == 0
    assert output.flush().text == ""


def test_a_newline_stops_at_its_own_token_even_as_a_byte(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """With byte fallback a newline is held back as a byte, but a stop string sees it at once."""
    tokenizer = tokenizers["mistral"]
    ids = tokenizer.encode("the\nfox", add_special=False)
    newline = next(i for i, t in enumerate(ids) if tokenizer.token_text(t).text == "\n")
    piece = OutputText(tokenizer, ["\n"]).push(ids)
    assert (piece.text, piece.finished, piece.num_tokens) == ("the", True, newline + 1)


def test_a_stop_token_adds_no_text_but_counts(tokenizers: dict[str, Tokenizer]) -> None:
    """A client's own stop token may be an ordinary word; the answer ends before it."""
    tokenizer = tokenizers["llama3"]
    ids = tokenizer.encode("the world", add_special=False)
    output = OutputText(tokenizer, stop_token_ids=(ids[-1],))
    piece = output.push(ids)
    assert piece.text + output.flush().text == tokenizer.decode(ids[:-1])
    assert piece.num_tokens == output.num_tokens == len(ids)


def test_the_models_end_tokens_are_silent_even_if_they_are_not_special(tmp_path: Path) -> None:
    """A generation file may name an ordinary word; it shows only where special tokens shall."""
    backend = made.byte_level([])
    ids = backend.encode("hello the", add_special_tokens=False).ids
    end = backend.token_to_id("Ġthe")
    assert ids[-1] == end
    tokenizer = Tokenizer.load(
        made.write_folder(tmp_path, backend, {}, generation_config={"eos_token_id": end})
    )
    assert end not in tokenizer.special_ids
    assert OutputText(tokenizer).push(ids).text == "hello"
    assert OutputText(tokenizer, skip_special_tokens=False).push(ids).text == "hello the"


def test_a_completion_is_searched_without_its_prompt(tokenizers: dict[str, Tokenizer]) -> None:
    """The context shapes the first word, but a stop string in it ends nothing."""
    tokenizer = tokenizers["mistral"]
    prompt = tokenizer.encode("the fox")
    output = OutputText(tokenizer, ["fox", "the fox dog"], context=prompt)
    piece = output.push(tokenizer.encode("dog", add_special=False))
    assert (piece.text + output.flush().text, piece.finished) == (" dog", False)
