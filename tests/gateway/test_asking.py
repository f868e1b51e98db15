"""What the door tells a predictor: what is asked, and how long the earlier answers were."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.learning.question import MOST_TEXT, Question
from gateway.asking import MOST_TURNS, Asked, asked_in_chat, asked_in_text
from gateway.history_lengths import HistoryLengths, HistoryStats
from gateway.schemas import ContentPart, Message

QUESTION = Question("acme", "Why?", num_prompt_tokens=10, max_tokens=500)


def said(role: str, content: str | None) -> Message:
    return Message.model_validate({"role": role, "content": content})


def test_the_last_user_message_is_what_is_asked() -> None:
    """Instructions and a tool's result around it are not the question."""
    asked = asked_in_chat([said("system", "Be brief."), said("user", "Why?"), said("tool", "42")])
    assert asked.text == "Why?"
    assert asked_in_chat([said("system", "Speak.")]).text == "Speak."


def test_earlier_answers_are_counted_by_their_share_of_the_prompt() -> None:
    """Characters stand for tokens: a quarter of the text is a quarter of the tokens."""
    turns = [
        said("user", "a" * 100),
        said("assistant", "b" * 50),
        said("user", "c" * 30),
        said("assistant", None),
        said("assistant", "d"),
        said("user", "e" * 19),
    ]
    asked = asked_in_chat(turns)
    assert asked.num_chars == 200
    assert asked.previous_outputs(40) == (10, 1)
    question = asked.question("acme", 40, 500, 13.5)
    assert question == Question("acme", "e" * 19, 40, 500, (10, 1), 13.5, (20, 6, 4))


def test_parts_of_a_message_are_one_text() -> None:
    """Clients may send a message in pieces."""
    parts = [ContentPart(type="text", text="How"), ContentPart(type="text", text="long?")]
    asked = asked_in_chat([Message(role="user", content=parts)])
    assert (asked.text, asked.num_chars) == ("How long?", 8)


def test_of_token_ids_only_the_number_is_known() -> None:
    """A completion may send text or tokens."""
    assert asked_in_text("Say:").text == "Say:"
    assert asked_in_text([5, 6, 7]) == Asked("")
    assert asked_in_text([5, 6, 7]).question("acme", 3, 9, 0.0).num_prompt_tokens == 3


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.integers(0, 9000))))
def test_what_is_told_is_bounded(turns: list[tuple[str, int]]) -> None:
    """However long a conversation is, a question is small and its parts fit into the whole."""
    messages = [said("user", "?"), *(said(role, "x" * size) for role, size in turns)]
    asked = asked_in_chat(messages)
    assert len(asked.text) <= MOST_TEXT
    assert len(asked.answer_chars) <= MOST_TURNS
    previous = asked.previous_outputs(asked.num_chars)
    assert previous == asked.answer_chars
    assert sum(previous) <= asked.num_chars


def test_a_questions_text_is_not_in_its_holders_repr() -> None:
    """A value that holds a prompt must not carry it into a log."""
    assert "secret" not in repr(asked_in_text("secret"))


@pytest.mark.parametrize("shares", [False, True])
def test_history_is_a_tenants_own_unless_shared(shares: bool) -> None:
    """Finished answers move the guess of their own tenant, and of others only where wanted."""
    lengths = HistoryLengths(shares=shares)
    other = dataclasses.replace(QUESTION, tenant="other")
    first = lengths.predict("first", other)
    for number in range(100):
        lengths.predict(f"r{number}", QUESTION)
        lengths.observe(f"r{number}", 20, is_whole=True)
    assert lengths.predict("own", QUESTION).middle == pytest.approx(20, rel=0.05)
    assert (lengths.predict("then", other) == first) is not shares
    assert lengths.stats() == HistoryStats(open_questions=3, learned=100)


def test_a_cut_answer_teaches_no_length() -> None:
    """What max_tokens ended, or nobody asked about, is not an answer's own length."""
    lengths = HistoryLengths(shares=False)
    before = lengths.predict("a", QUESTION)
    lengths.observe("a", 3, is_whole=False)
    lengths.predict("b", QUESTION)
    lengths.forget("b")
    lengths.observe("b", 3, is_whole=True)
    lengths.observe("never asked", 3, is_whole=True)
    assert lengths.predict("c", QUESTION) == before
