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

    `answer_chars` are the characters of earlier answers, the oldest first, and `num_chars` those of
    the whole prompt.
    """

    text: str = field(repr=False)
    answer_chars: tuple[int, ...] = ()
    num_chars: int = 0

    def previous_outputs(self, num_prompt_tokens: int) -> tuple[int, ...]:
        """Return the tokens of the earlier answers: their share of the prompt's, by characters.

        Counting them one by one would mean to tokenise each answer a second time.
        """
        share = num_prompt_tokens / max(self.num_chars, 1)
        return tuple(max(1, round(chars * share)) for chars in self.answer_chars)

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
        )


def asked_in_chat(messages: Sequence[Message]) -> Asked:
    """Return what a conversation asks: its last user message, else its last message."""
    lengths = [_num_chars(message) for message in messages]
    answers = [n for m, n in zip(messages, lengths, strict=True) if m.role == "assistant" and n]
    of_user = (message for message in reversed(messages) if message.role == "user")
    last = next(of_user, messages[-1])
    return Asked(bounded(_text(last)), tuple(answers[-MOST_TURNS:]), sum(lengths))


def asked_in_text(prompt: Prompt) -> Asked:
    """Return what a text asks; of token ids nothing is known but their number."""
    return Asked(bounded(prompt), (), len(prompt)) if isinstance(prompt, str) else Asked("")


def _num_chars(message: Message) -> int:
    if isinstance(message.content, list):
        return sum(len(part.text or "") for part in message.content)
    return len(message.content or "")


def _text(message: Message) -> str:
    if isinstance(message.content, list):
        return " ".join(part.text for part in message.content if part.text)
    return message.content or ""
