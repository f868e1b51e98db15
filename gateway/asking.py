"""What a request asks, as a guess of its answer's length wants to know it; it guesses nothing.

It reads a checked body and makes the `Question` of each prompt. The text in it is the client's: it
goes no further than the prediction, which is made before the request waits for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.learning.question import Question, bounded
from gateway.schemas import Message, Prompt

MOST_TURNS = 16  # earlier answers of a conversation that are told, the newest


@dataclass(frozen=True, slots=True)
class Asked:
    """What one prompt asks: `text`, at most MOST_TEXT characters, and its conversation so far.

    `answer_chars` are the characters of earlier answers, the oldest first, `asked_chars` those of
    what was asked before each of them and now, and `num_chars` those of the whole prompt.
    """

    text: str = field(repr=False)
    answer_chars: tuple[int, ...] = ()
    num_chars: int = 0
    asked_chars: tuple[int, ...] = ()

    def previous_outputs(self, num_prompt_tokens: int) -> tuple[int, ...]:
        """Return the tokens of the earlier answers: their share of the prompt's, by characters.

        Counting them one by one would mean to tokenise each answer a second time.
        """
        return self._tokens(self.answer_chars, num_prompt_tokens)

    def _tokens(self, parts: Sequence[int], num_prompt_tokens: int) -> tuple[int, ...]:
        share = num_prompt_tokens / max(self.num_chars, 1)
        return tuple(max(1, round(chars * share)) for chars in parts)

    def question(
        self, tenant: str, num_prompt_tokens: int, max_tokens: int, hour: float
    ) -> Question:
        """Return the question; `hour` is the UTC hour of the day."""
        return Question(
            tenant=tenant,
            text=self.text,
            num_prompt_tokens=num_prompt_tokens,
            max_tokens=max_tokens,
            previous_outputs=self.previous_outputs(num_prompt_tokens),
            hour=hour,
            asked_tokens=self._tokens(self.asked_chars, num_prompt_tokens),
        )


def asked_in_chat(messages: Sequence[Message]) -> Asked:
    """Return what a conversation asks: its last user message, else its last message."""
    lengths = [_num_chars(message) for message in messages]
    answers = [n for m, n in zip(messages, lengths, strict=True) if m.role == "assistant" and n]
    of_user = (message for message in reversed(messages) if message.role == "user")
    last = next(of_user, messages[-1])
    asked = _asked_chars(messages, lengths)
    return Asked(bounded(_text(last)), tuple(answers[-MOST_TURNS:]), sum(lengths), asked)


def asked_in_text(prompt: Prompt) -> Asked:
    """Return what a text asks; of token ids nothing is known but their number."""
    if not isinstance(prompt, str):
        return Asked("")
    return Asked(bounded(prompt), (), len(prompt), (len(prompt),))


def _asked_chars(messages: Sequence[Message], lengths: Sequence[int]) -> tuple[int, ...]:
    """Return the characters of each turn's asking, instructions aside, the oldest kept first."""
    turns = [0]
    for message, length in zip(messages, lengths, strict=True):
        if message.role == "assistant" and length:
            turns.append(0)
        elif message.role not in ("system", "developer"):
            turns[-1] += length
    return tuple(turns[-MOST_TURNS - 1 :])


def _num_chars(message: Message) -> int:
    if isinstance(message.content, list):
        return sum(len(part.text or "") for part in message.content)
    return len(message.content or "")


def _text(message: Message) -> str:
    if isinstance(message.content, list):
        return " ".join(part.text for part in message.content if part.text)
    return message.content or ""
