"""Constrained answers: what is finished fits its schema, whatever steps it was computed in."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_run import Setting
from grammar_cases import SCHEMAS, VOCAB, answers_of, fits, make_constrained_runner, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.batch import Chunk
from engine.core.grammar import GrammarError, GrammarKind, json_schema_grammar, packed
from engine.core.request import FinishReason, SamplingParams
from engine.model.grammar import GrammarCompiler
from engine.model.grammar_masks import GrammarMasks, mask_penalties
from engine.model.sampler import Sampler
from engine.model.tokenizer import Tokenizer

ROOMY = Setting(block_size=16, num_blocks=400, max_batch_tokens=64, max_batch_requests=16, seed=0)
# Room for one of the longest answers and a bit: somebody loses its context all the time.
TIGHT = Setting(block_size=4, num_blocks=64, max_batch_tokens=48, max_batch_requests=16, seed=0)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "is ok": {"type": "boolean"}},
    "required": ["name", "is ok"],
    "additionalProperties": False,
}
MOST = 160


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("grammar"))


def sampling(tokenizer: Tokenizer, grammar: str = "", **fields: Any) -> SamplingParams:
    values: dict[str, Any] = {"max_tokens": MOST, "temperature": 0.0}
    ends = tokenizer.stop_token_ids
    return SamplingParams(**values | fields, stop_token_ids=ends, grammar=grammar)


def mixed_work(
    tokenizer: Tokenizer, schemas: list[dict[str, Any]], seed: int
) -> list[tuple[tuple[int, ...], SamplingParams]]:
    """Every schema greedily and at temperature 1, with penalties here and there, and plain rows."""
    draw = random.Random(seed)
    work = []
    for number, schema in enumerate([*schemas, None]):
        grammar = "" if schema is None else json_schema_grammar(schema)
        for temperature in (0.0, 1.0):
            order = sampling(tokenizer, grammar, temperature=temperature, seed=seed + number)
            if draw.random() < 0.5:
                order = replace(order, repetition_penalty=1.2, frequency_penalty=0.3)
            if not grammar:
                order = replace(order, max_tokens=40)
            prompt = tuple(draw.randrange(1, 250) for _ in range(draw.randint(1, 40)))
            work.append((prompt, order))
    draw.shuffle(work)
    return work


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    schemas=st.lists(SCHEMAS, min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_finished_answer_fits_its_schema_and_no_step_changes_it(
    tokenizer: Tokenizer, schemas: list[dict[str, Any]], seed: int
) -> None:
    """Random schemas, mixed rows: equal tokens with preemptions and without, and valid JSON."""
    work = mixed_work(tokenizer, schemas, seed)
    roomy, reasons, _ = answers_of(make_constrained_runner(tokenizer, ROOMY), work, seed)
    tight, _, _ = answers_of(
        make_constrained_runner(tokenizer, TIGHT, max_states=2), work, seed + 1
    )
    assert tight == roomy
    for (_, order), tokens, reason in zip(work, roomy, reasons, strict=True):
        assert reason in (FinishReason.STOP, FinishReason.LENGTH)
        if order.grammar and reason is FinishReason.STOP:
            schema = json.loads(order.grammar.partition(":")[2])
            text = tokenizer.decode(tokens)
            assert fits(json.loads(text), schema), (schema, text)


def test_the_tight_setting_does_preempt_constrained_answers(tokenizer: Tokenizer) -> None:
    """The comparison above means something: contexts are lost, answers finish, states are few."""
    schema = {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3}
    work = mixed_work(tokenizer, [schema] * 5, 7)
    runner = make_constrained_runner(tokenizer, TIGHT, max_states=2)
    tokens, reasons, snapshot = answers_of(runner, work, 3)
    assert snapshot.preemptions_total > 0
    assert tokens == answers_of(make_constrained_runner(tokenizer, ROOMY), work, 4)[0]
    finished = [
        tokenizer.decode(t)
        for (_, order), t, reason in zip(work, tokens, reasons, strict=True)
        if order.grammar and reason is FinishReason.STOP
    ]
    assert finished
    assert all(fits(json.loads(text), schema) for text in finished)


def test_rows_without_a_grammar_draw_what_they_drew_before(tokenizer: Tokenizer) -> None:
    """A constrained neighbour, or a sampler that knows grammars, changes nobody else's token."""
    logits = torch.randn(40, VOCAB, generator=torch.Generator().manual_seed(1)) * 3
    draw = random.Random(5)
    plain = [
        Chunk(
            f"p{i}", 0, (1,), (1,),
            sampling(
                tokenizer, temperature=draw.choice([0.0, 0.7, 1.0]), top_k=draw.choice([0, 5]),
                top_p=draw.choice([1.0, 0.8]), seed=i, logprobs=draw.choice([None, 3]),
            ),
        )
        for i in range(20)
    ]  # fmt: skip
    held = [
        Chunk(f"h{i}", 0, (1,), (1,), sampling(tokenizer, json_schema_grammar(PERSON), seed=i))
        for i in range(20)
    ]
    masks = GrammarMasks(GrammarCompiler.for_tokenizer(tokenizer), VOCAB)
    alone = Sampler(VOCAB).sample(logits[::2], plain)
    rows = [row for pair in zip(plain, held, strict=True) for row in pair]
    mixed = Sampler(VOCAB, grammars=masks).sample(logits, rows)
    assert [token for token in mixed if token.request_id.startswith("p")] == alone
    texts = {tokenizer.decode([token.token_id]) for token in mixed if token.request_id[0] == "h"}
    assert texts
    assert all(text.startswith("{") for text in texts)


def test_a_mask_is_what_the_history_says_whatever_was_asked_before(tokenizer: Tokenizer) -> None:
    """Kept, rebuilt, gone back, taken over by another request: the mask is the same."""
    compiler = GrammarCompiler.for_tokenizer(tokenizer)
    ids = tokenizer.encode('{"name": "a b", "is ok": true}', add_special=False)
    order = sampling(tokenizer, json_schema_grammar(PERSON))

    def row(num: int, name: str = "r", which: SamplingParams = order) -> Chunk:
        return Chunk(name, 0, (1,), (1,), which, num, (), ids[:num])

    fresh = [GrammarMasks(compiler, VOCAB).masks([row(n)]).bits["r"] for n in range(len(ids) + 1)]
    kept = GrammarMasks(compiler, VOCAB, max_states=3)
    draw = random.Random(2)
    for _ in range(60):
        num = draw.randint(0, len(ids))
        name = draw.choice(["r", "s", "t", "u"])
        assert np.array_equal(kept.masks([row(num, name)]).bits[name], fresh[num])
        other = sampling(tokenizer, json_schema_grammar({"type": "object"}))
        kept.masks([row(draw.randint(0, 1), name, other)])
        assert kept.num_states <= 3
    ends = [
        bool(mask[end // 8] >> end % 8 & 1) for mask in fresh for end in tokenizer.stop_token_ids
    ]
    assert ends == [False] * len(ids) + [True]


def test_penalties_are_what_the_bits_say() -> None:
    """Bit i of a row stands for token i, set means allowed."""
    table = np.random.default_rng(0).integers(0, 256, (3, 40), dtype=np.uint8)
    found = mask_penalties(torch.from_numpy(table))
    flags = np.unpackbits(table, axis=1, bitorder="little")
    assert found.shape == (3, 320)
    assert np.array_equal(found.numpy(), np.where(flags, 0.0, -np.inf))


def test_min_tokens_holds_as_far_as_the_grammar_allows(tokenizer: Tokenizer) -> None:
    """It keeps an open word going; where nothing but the end can follow, the answer ends."""
    grammars = [packed(GrammarKind.REGEX, "[a-z]+"), json_schema_grammar({"const": "a"})]
    runner = make_constrained_runner(tokenizer, ROOMY)
    work = [((5, 6, 7), sampling(tokenizer, g, min_tokens=60, temperature=1.0)) for g in grammars]
    (long, short), reasons, _ = answers_of(runner, work, 0)
    assert reasons == [FinishReason.STOP] * 2
    assert len(long) > 60
    assert json.loads(tokenizer.decode(short)) == "a"


def test_a_cut_answer_ends_with_length(tokenizer: Tokenizer) -> None:
    """max_tokens counts before the schema does."""
    runner = make_constrained_runner(tokenizer, ROOMY)
    grammar = json_schema_grammar({"type": "array", "items": {"const": "abc"}, "minItems": 50})
    (tokens,), reasons, _ = answers_of(
        runner, [((1, 2), sampling(tokenizer, grammar, max_tokens=9))], 0
    )
    assert (len(tokens), reasons) == (9, [FinishReason.LENGTH])


@pytest.mark.parametrize("grammar", ["nonsense", "regex:(", 'json_schema:{"type":"foo"}'])
def test_a_grammar_that_cannot_be_followed_fails_its_row_alone(
    tokenizer: Tokenizer, grammar: str
) -> None:
    """No door let it in; still the engine neither stops nor answers without its constraint."""
    runner = make_constrained_runner(tokenizer, ROOMY)
    work = [((1, 2), sampling(tokenizer, grammar)), ((1, 2), sampling(tokenizer, max_tokens=5))]
    (none, five), reasons, _ = answers_of(runner, work, 0)
    assert (none, len(five)) == ([], 5)
    assert reasons == [FinishReason.FAILED, FinishReason.LENGTH]


def test_a_sampler_without_grammars_draws_no_unconstrained_token(tokenizer: Tokenizer) -> None:
    """The row gives no token, its neighbour does."""
    order = sampling(tokenizer)
    rows = [
        Chunk("a", 0, (1,), (1,), replace(order, grammar=json_schema_grammar(PERSON))),
        Chunk("b", 0, (1,), (1,), order),
    ]
    assert [t.request_id for t in Sampler(VOCAB).sample(torch.randn(2, VOCAB), rows)] == ["b"]


def test_regex_and_lark_work_as_well(tokenizer: Tokenizer) -> None:
    """The other kinds of grammar hold an answer, too."""
    runner = make_constrained_runner(tokenizer, ROOMY)
    grammars = [
        packed(GrammarKind.REGEX, "[xyz]{3}-[0-9]{2}"),
        packed(GrammarKind.LARK, 'start: "yes" | "no"'),
    ]
    work = [((3, 4), sampling(tokenizer, grammar, temperature=1.0)) for grammar in grammars]
    (first, second), reasons, _ = answers_of(runner, work, 0)
    assert reasons == [FinishReason.STOP] * 2
    text = tokenizer.decode(first)
    assert (len(text), text[3], set(text[:3]) <= set("xyz")) == (6, "-", True)
    assert tokenizer.decode(second) in ("yes", "no")


def test_text_like_a_special_token_is_written_out(tokenizer: Tokenizer) -> None:
    """A forced "<end>" inside a string comes as letters, and does not end the answer."""
    runner = make_constrained_runner(tokenizer, ROOMY)
    work = [((3,), sampling(tokenizer, json_schema_grammar({"const": "say <end> now"})))]
    (tokens,), reasons, _ = answers_of(runner, work, 0)
    assert reasons == [FinishReason.STOP]
    assert json.loads(tokenizer.decode(tokens)) == "say <end> now"


def test_a_vocabulary_that_is_not_bytes_is_refused(tmp_path: Path) -> None:
    """Tokens whose text depends on their neighbours cannot be matched one by one."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    Backend(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a")).save(
        str(tmp_path / "tokenizer.json")
    )
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(GrammarError, match="not bytes"):
        GrammarCompiler.for_tokenizer(Tokenizer.load(tmp_path))
