"""Knows how the built-in tokenizer is trained and how chat turns become token ids; no tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.model.builtin.corpus.sample import Sample

VOCABULARY_SIZE = 2048
PAD, SYSTEM, USER, ASSISTANT, END = (
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
# Every digit is a token of its own, so that sums are done digit by digit as on paper; a comma and
# a space before a digit are one token, so that counting costs no more than the digits plus one.
_PIECES = r" ?\p{L}+|[0-9]|, (?=[0-9])| ?[^\s\p{L}0-9]+|\s"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|system|>' if message['role'] in ('system', 'developer')"
    " else '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{{ message['content'] }}{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(samples: Iterable[Sample]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over the texts of the samples, with the chat template set."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, SYSTEM, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for sample in samples for text in (sample.system, *sample.turns))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def messages(sample: Sample) -> list[dict[str, str]]:
    """The conversation without its last answer, in the form chat templates take."""
    turns = [{"role": "system", "content": sample.system}] if sample.system else []
    for i, text in enumerate(sample.turns[:-1]):
        turns.append({"role": "assistant" if i % 2 else "user", "content": text})
    return turns


def encode(tokenizer: Any, samples: list[Sample]) -> list[tuple[list[int], int]]:
    """Token ids of each whole conversation and the position where the answer to learn begins.

    A sample of one turn is plain text: all of it but the first token is learnt.
    """
    prompts = [
        tokenizer.apply_chat_template(messages(s), tokenize=False, add_generation_prompt=True)
        if len(s.turns) > 1
        else ""
        for s in samples
    ]
    heads = tokenizer([p or USER for p in prompts], add_special_tokens=False)["input_ids"]
    tails = tokenizer([s.turns[-1] + END for s in samples], add_special_tokens=False)["input_ids"]
    return [
        (head + tail, len(head)) if prompt else (tail, 1)
        for prompt, head, tail in zip(prompts, heads, tails, strict=True)
    ]
