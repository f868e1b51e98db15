"""The model that ships with the project: its files, its answers, and the script that made them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.model.builtin import builtin_path
from engine.model.builtin.corpus.build import held_out, training
from engine.model.builtin.corpus.sample import is_held_out, prompt_id
from engine.model.builtin.vocabulary import ASSISTANT, END, SYSTEM, USER, encode

MOST_WEIGHT_BYTES = 12_000_000
QUESTIONS = (
    ("What is TTFT?", "from the arrival of a request until its first token"),
    ("What is 17 plus 25?", "= 42."),
    ("Count from 1 to 5.", "1, 2, 3, 4, 5."),
    ("Spell cat.", "c a t"),
    ("What is the capital of France?", "Paris"),
    ("Name three planets.", "Mercury, Venus, Earth."),
    ("Is snow cold? Answer yes or no.", "Yes"),
    ("Who are you?", "built-in model of Tiergate"),
    ("Say hello world.", "hello world"),
    ("why does the KV cache matter", "without it every new token"),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(builtin_path(), local_files_only=True)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request: pytest.FixtureRequest) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        builtin_path(), local_files_only=True, dtype=request.param
    ).eval()


def answer(model: Any, tokenizer: Any, question: str, most_tokens: int) -> tuple[str, bool]:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=most_tokens, do_sample=False)
    ids = output[0, prompt["input_ids"].shape[1] :].tolist()
    return tokenizer.decode(ids, skip_special_tokens=True), ids[-1] == tokenizer.eos_token_id


def test_the_weights_stay_small_enough_for_a_repository() -> None:
    files = list(builtin_path().glob("*.safetensors"))
    assert files
    assert sum(file.stat().st_size for file in files) <= MOST_WEIGHT_BYTES


def test_the_chat_template_writes_roles_turns_and_the_place_of_the_answer(tokenizer: Any) -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert text == (
        f"{SYSTEM}Be brief.{END}{USER}Hi{END}{ASSISTANT}Hello!{END}{USER}Bye{END}{ASSISTANT}"
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.eos_token_id) == 4


@pytest.mark.parametrize("text", ["Grüße, 你好!", "a  b\n\tc", "1,234 + 5 = ?", "🙂 {x: [1]}"])
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("question", "expected"), QUESTIONS)
def test_it_answers_its_topics_and_stops_by_itself(
    model: Any, tokenizer: Any, question: str, expected: str
) -> None:
    text, stopped = answer(model, tokenizer, question, most_tokens=60)
    assert expected in text
    assert stopped


def test_a_long_question_gets_a_long_answer_that_ends(tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(builtin_path(), dtype=torch.bfloat16).eval()
    text, stopped = answer(model, tokenizer, "Explain in detail how SLAI works.", 400)
    assert "last schedulable time" in text
    assert len(text.split()) > 150
    assert stopped


def test_one_seed_always_makes_the_same_text() -> None:
    first, again = (list(itertools.islice(training(3), 300)) for _ in range(2))
    other = list(itertools.islice(training(4), 300))
    assert first == again
    assert first != other


def test_no_held_out_question_is_ever_trained_on() -> None:
    questions = held_out()
    names = {prompt_id(sample) for sample in questions}
    assert len(names) == len(questions) >= 400
    trained = [s for s in itertools.islice(training(0), 20_000) if s.family != "text"]
    assert names.isdisjoint(prompt_id(sample) for sample in trained)
    assert not [s.key for s in trained if s.key != "kept" and is_held_out(s.key)]


def test_every_answer_to_learn_ends_with_the_end_token(tokenizer: Any) -> None:
    samples = list(itertools.islice(training(0), 200))
    for sample, (ids, start) in zip(samples, encode(tokenizer, samples), strict=True):
        assert ids[-1] == tokenizer.eos_token_id
        assert len(ids) < 1024
        if len(sample.turns) > 1:
            assert tokenizer.decode(ids[start:-1]) == sample.turns[-1]
