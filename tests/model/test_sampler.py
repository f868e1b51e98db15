"""The sampler draws what a slow, obvious reference draws, and each row is alone in the world."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import sampler_reference as reference
import torch

from engine.core.batch import Chunk
from engine.core.request import SamplingParams
from engine.model.sampler import Sampler

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)


def chi_square_limit(freedom: int) -> float:
    """Return what a fitting chi-square statistic exceeds once in 10 000 times (Wilson-Hilferty)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.719 * part**0.5) ** 3


def chunk(
    sampling: SamplingParams,
    name: str = "r",
    output_index: int = 0,
    prompt_ids: tuple[int, ...] = (),
    output_ids: tuple[int, ...] = (),
) -> Chunk:
    history = (prompt_ids, output_ids) if sampling.has_penalties else ((), ())
    return Chunk(name, 0, (1,), (1,), sampling, output_index, *history)


def random_logits(rows: int, vocab: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator) * scale


def random_chunk(rng: random.Random, vocab: int, name: str) -> Chunk:
    """Any combination of filters, penalties, bias and bans."""

    def maybe(value: float, default: float) -> float:
        return value if rng.random() < 0.5 else default

    output = tuple(rng.randrange(vocab) for _ in range(rng.randrange(12)))
    sampling = SamplingParams(
        max_tokens=64,
        seed=rng.getrandbits(64),
        min_tokens=rng.choice([0, 0, 6]),
        temperature=rng.choice([0.0, 0.3, 0.7, 1.0, 1.0, 2.0]),
        top_p=maybe(rng.choice([0.02, 0.1, 0.5, 0.9, 0.95, 0.999]), 1.0),
        top_k=int(maybe(rng.choice([1, 2, 5, 40, 100, 127, 128, 129, 500, 10**6]), 0)),
        min_p=maybe(rng.choice([0.001, 0.05, 0.3, 1.0]), 0.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        repetition_penalty=maybe(rng.choice([0.8, 1.1, 1.7]), 1.0),
        logit_bias=tuple(
            (rng.randrange(vocab), rng.uniform(-5, 5)) for _ in range(rng.choice([0, 0, 3]))
        ),
        stop_token_ids=(rng.randrange(vocab), rng.randrange(vocab)),
    )
    prompt = tuple(rng.randrange(vocab) for _ in range(rng.randrange(1, 30)))
    return chunk(sampling, name, len(output), prompt, output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [7, 64, 130, 1000, 20_000])
def test_every_mixture_of_orders_draws_what_the_reference_draws(
    vocab: int, dtype: torch.dtype
) -> None:
    """bf16 logits are full of ties, so this also fixes how ties are broken, on every border."""
    rng = random.Random(vocab)
    for trial in range(3 if vocab > 10_000 else 20):
        rows = [random_chunk(rng, vocab, f"r{i}") for i in range(8)]
        logits = random_logits(8, vocab, trial, rng.choice([0.1, 1.0, 4.0])).to(dtype)
        expected = [reference.draw(logits[i].float().numpy(), row) for i, row in enumerate(rows)]
        drawn = Sampler(vocab).sample(logits, rows)
        assert [token.token_id for token in drawn] == expected
        assert [token.request_id for token in drawn] == [row.request_id for row in rows]


def test_a_row_draws_the_same_alone_in_company_and_in_any_order() -> None:
    """Neither the neighbours nor their order reach a row's draw or its reported numbers."""
    rng = random.Random(5)
    vocab = 3000
    rows = [
        replace(c, sampling=replace(c.sampling, logprobs=rng.choice([None, 0, 5])))
        for c in (random_chunk(rng, vocab, f"r{i}") for i in range(24))
        if c.sampling is not None
    ]
    logits = random_logits(24, vocab, 1).bfloat16()
    sampler = Sampler(vocab)
    together = sampler.sample(logits, rows)
    alone = [sampler.sample(logits[i : i + 1], rows[i : i + 1])[0] for i in range(24)]
    order = rng.sample(range(24), 24)
    shuffled = sampler.sample(logits[order], [rows[i] for i in order])
    assert together == alone
    assert shuffled == [together[i] for i in order]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 6},
        {"top_p": 0.7},
        {"min_p": 0.1, "temperature": 1.5},
        {"top_k": 9, "top_p": 0.8, "min_p": 0.02},
    ],
)
def test_draws_follow_the_distribution(filters: dict[str, float]) -> None:
    """Over 20 000 seeds the counts fit the reference's probabilities (chi-square, p = 1e-4)."""
    vocab, rounds, per_round = 12, 10, 2000
    sampling = SamplingParams(max_tokens=1, **filters)  # type: ignore[arg-type]
    row = random_logits(1, vocab, 3, 1.5)
    kept = reference.kept_tokens(row[0].numpy(), sampling)
    total = math.fsum(weight for _, weight in kept)
    counts = np.zeros(vocab)
    for turn in range(rounds):
        rows = [chunk(replace(sampling, seed=s), "r", turn) for s in range(per_round)]
        for token in Sampler(vocab).sample(row.expand(per_round, -1), rows):
            counts[token.token_id] += 1
    assert counts.sum() == sum(counts[token] for token, _ in kept) == rounds * per_round
    statistic = 0.0
    for token, weight in kept:
        expected = rounds * per_round * weight / total
        statistic += (counts[token] - expected) ** 2 / expected
    assert statistic < chi_square_limit(len(kept) - 1)


def test_one_request_draws_evenly_along_its_own_stream() -> None:
    """With one seed and a growing counter the draws fit the distribution as well."""
    vocab, steps = 16, 16_000
    sampling = SamplingParams(max_tokens=steps, seed=77)
    rows = [chunk(sampling, "r", index) for index in range(steps)]
    drawn = Sampler(vocab).sample(torch.zeros(1, vocab).expand(steps, -1), rows)
    counts = np.bincount([token.token_id for token in drawn], minlength=vocab)
    statistic = float(((counts - steps / vocab) ** 2 / (steps / vocab)).sum())
    assert statistic < chi_square_limit(vocab - 1)


def test_equal_seeds_give_equal_tokens_and_other_seeds_others() -> None:
    """The seed alone decides between equal orders."""
    logits = torch.zeros(3, 5000)
    rows = [chunk(SamplingParams(max_tokens=1, seed=s), f"r{s}") for s in (1, 1, 2)]
    first, again, other = (token.token_id for token in Sampler(5000).sample(logits, rows))
    assert first == again != other


def test_end_tokens_are_banned_until_min_tokens_and_free_afterwards() -> None:
    """A stop token that would win every draw cannot come before `min_tokens`, greedy or not."""
    logits = torch.zeros(2, 100)
    logits[:, [3, 9]] = 50.0
    base = replace(GREEDY, min_tokens=4, stop_token_ids=(3, 9, 10_000, -1))
    for index in range(8):
        rows = [
            chunk(base, "greedy", index),
            chunk(replace(base, temperature=1.0, seed=index), "drawn", index),
        ]
        tokens = {token.token_id for token in Sampler(100).sample(logits, rows)}
        assert bool(tokens & {3, 9}) == (index >= 4)


def test_bias_of_minus_a_hundred_bans_and_plus_a_hundred_forces() -> None:
    """The two uses the OpenAI API documents, with ids outside the vocabulary ignored."""
    logits = random_logits(2, 50, 8)
    best = int(logits[0].argmax())
    rows = [
        chunk(replace(GREEDY, logit_bias=((best, -100.0), (50, 100.0)))),
        chunk(SamplingParams(max_tokens=1, seed=4, logit_bias=((17, 100.0), (-3, 100.0)))),
    ]
    first, second = Sampler(50).sample(logits, rows)
    assert first.token_id == int(logits[0].topk(2).indices[1])
    assert second.token_id == 17


def test_a_prompt_that_changes_under_the_same_name_is_read_again() -> None:
    """The remembered set of prompt tokens belongs to one tuple, not to a request's name."""
    sampler = Sampler(10)
    logits = torch.zeros(1, 10)
    logits[0, 4], logits[0, 5] = 2.0, 1.5
    sampling = replace(GREEDY, repetition_penalty=2.0)
    first = sampler.sample(logits, [chunk(sampling, "same", 0, (4,))])
    second = sampler.sample(logits, [chunk(sampling, "same", 0, (5,))])
    assert (first[0].token_id, second[0].token_id) == (5, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_the_models_own(dtype: torch.dtype) -> None:
    """Temperature, bias, penalties and filters change the draw but not what is reported."""
    vocab = 700
    logits = random_logits(4, vocab, 9).to(dtype)
    before = logits.clone()
    sampling = SamplingParams(
        max_tokens=9, seed=1, temperature=1.7, top_k=30, logprobs=20,
        frequency_penalty=1.0, logit_bias=((5, 9.0),), min_tokens=3, stop_token_ids=(2,),
    )  # fmt: skip
    orders = [sampling, replace(sampling, logprobs=0), replace(GREEDY, logprobs=3), GREEDY]
    rows = [chunk(order, f"r{i}", 2, (1, 2), (5, 5)) for i, order in enumerate(orders)]
    drawn = Sampler(vocab).sample(logits, rows)
    assert torch.equal(logits, before)
    for i, wanted in enumerate((20, 0, 3)):
        expected = reference.logprobs(logits[i].float().numpy())
        ranked = sorted(range(vocab), key=lambda t: (-float(logits[i, t]), t))[:wanted]
        assert drawn[i].logprob == pytest.approx(expected[drawn[i].token_id], abs=2e-6)
        assert [top.token_id for top in drawn[i].top] == ranked
        for top in drawn[i].top:
            assert top.logprob == pytest.approx(expected[top.token_id], abs=2e-6)
    assert drawn[2].top[0].token_id == drawn[2].token_id
    assert drawn[3].logprob is None
    assert drawn[3].top == ()


def test_more_alternatives_than_words_are_cut_to_the_vocabulary() -> None:
    """A vocabulary of 7 has 7 alternatives, and their probabilities sum to one."""
    drawn = Sampler(7).sample(random_logits(1, 7, 2), [chunk(replace(GREEDY, logprobs=20))])
    assert len(drawn[0].top) == 7
    assert math.fsum(math.exp(top.logprob) for top in drawn[0].top) == pytest.approx(1, abs=1e-6)


def test_rows_that_cannot_be_computed_are_left_out() -> None:
    """NaN, +inf or nothing but -inf fails its own row only, greedy or drawn, on either path."""
    orders = [
        GREEDY,
        SamplingParams(max_tokens=1),
        SamplingParams(max_tokens=1, top_k=5),
        SamplingParams(max_tokens=1, top_p=0.9, logprobs=2),
    ]
    rows = [
        chunk(order, f"{kind}{i}")
        for kind in ("ok", "nan", "inf", "none")
        for i, order in enumerate(orders)
    ]
    logits = random_logits(16, 1000, 4)
    logits[4:8, 500] = math.nan
    logits[8:12, 500] = math.inf
    logits[12:16] = -math.inf
    assert [token.request_id for token in Sampler(1000).sample(logits, rows)] == [
        f"ok{i}" for i in range(4)
    ]


def test_padding_columns_are_never_drawn_or_reported() -> None:
    """Checkpoints pad the vocabulary; whatever their last columns hold does not matter."""
    logits = torch.zeros(3, 128)
    logits[:, 100:] = 60.0
    orders = [GREEDY, SamplingParams(max_tokens=1), SamplingParams(max_tokens=1, top_p=0.9)]
    rows = [chunk(replace(order, logprobs=20), f"r{i}") for i, order in enumerate(orders)]
    for token in Sampler(100).sample(logits, rows):
        assert token.token_id < 100
        assert token.logprob == pytest.approx(-math.log(100), abs=1e-5)
        assert all(top.token_id < 100 for top in token.top)


def test_an_empty_batch_is_an_empty_answer() -> None:
    """A step without rows to draw touches nothing."""
    assert Sampler(10).sample(torch.zeros(0, 10), []) == []


class GreedyKernels:
    """Stands for the compiled kernels; notes which rows came to it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[int, ...], torch.dtype]] = []

    def argmax_rows(self, logits: torch.Tensor) -> torch.Tensor:
        assert logits.stride(1) == 1
        self.seen.append(("argmax", tuple(logits.shape), logits.dtype))
        return logits.argmax(-1)


class DrawingKernels(GreedyKernels):
    """Draws by the slow reference from what the kernel is given: logits and parameters only."""

    def sample_rows(
        self,
        logits: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        uniform: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(("sample", tuple(logits.shape), logits.dtype))
        tokens, logprobs = [], []
        for i, row in enumerate(logits.float().numpy()):
            sampling = SamplingParams(
                max_tokens=1,
                temperature=float(temperature[i]),
                top_k=int(top_k[i]),
                top_p=float(top_p[i]),
                min_p=float(min_p[i]),
            )
            finite = bool(np.isfinite(row.max()))
            tokens.append(reference.draw_at(row, sampling, float(uniform[i])) if finite else 0)
            logprobs.append(reference.logprobs(row)[tokens[-1]] if finite else math.nan)
        return torch.tensor(tokens), torch.tensor(logprobs)


def test_kernels_handed_in_answer_for_greedy_rows() -> None:
    """The kernel gets exactly the vocabulary's columns, and its answer is used."""
    kernels = GreedyKernels()
    logits = random_logits(3, 90, 6)
    rows = [chunk(GREEDY, "a"), chunk(SamplingParams(max_tokens=1), "b"), chunk(GREEDY, "c")]
    drawn = Sampler(80, kernels).sample(logits, rows)
    assert kernels.seen == [("argmax", (2, 80), torch.float32)]
    assert drawn == Sampler(80).sample(logits, rows)


def test_kernels_that_draw_get_raw_rows_and_changed_ones_apart() -> None:
    """Every mixture gives what torch gives; only rows with changed logits cost a float32 copy."""
    rng = random.Random(11)
    kernels = DrawingKernels()
    for trial in range(20):
        rows = [*(random_chunk(rng, 200, f"r{i}") for i in range(7)), chunk(GREEDY, "greedy")]
        logits = random_logits(8, 256, trial).bfloat16()
        logits[3, ::3] = math.nan
        drawn = Sampler(200, kernels).sample(logits, rows)
        assert drawn == Sampler(200).sample(logits, rows)
        assert all(token.request_id != "r3" for token in drawn)
    assert {(kind, dtype) for kind, _, dtype in kernels.seen} == {
        ("argmax", torch.bfloat16),
        ("sample", torch.bfloat16),
        ("sample", torch.float32),
    }
    assert {shape[1] for _, shape, _ in kernels.seen} == {200}


def test_logits_that_kernels_cannot_take_go_to_torch() -> None:
    """float16 has no kernel."""
    kernels = DrawingKernels()
    rows = [chunk(GREEDY, "a"), chunk(SamplingParams(max_tokens=1), "b")]
    assert len(Sampler(80, kernels).sample(random_logits(2, 80, 6).half(), rows)) == 2
    assert kernels.seen == []
