"""Step prices: the sum is the documented one, and the affordable prompt is exact."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.core.batch import Batch, Chunk, Copy
from engine.core.latency_model import LatencyModel, StepCost
from engine.core.latency_profile import LatencyProfile
from engine.core.request import SamplingParams

prices = st.floats(0, 1e7, allow_subnormal=False)
factors = st.floats(1, 4)


@st.composite
def profiles(draw: st.DrawFn) -> LatencyProfile:
    return LatencyProfile(
        "drawn",
        base_ns=draw(st.floats(1, 1e8)),
        floor_ns=draw(prices),
        token_ns=draw(prices),
        tile_tokens=draw(st.integers(1, 300)),
        tile_ns=draw(prices),
        knee_tokens=draw(st.integers(0, 300)),
        knee_token_ns=draw(prices),
        decode_kv_ns=draw(prices),
        mixed_kv_factor=draw(factors),
        pair_ns=draw(prices),
        prompt_kv_ns=draw(prices),
        prompt_ns=draw(prices),
        row_ns=draw(prices),
    )


models = st.builds(LatencyModel, profiles())
decodes = st.lists(st.integers(1, 4000), max_size=8)
prompts = st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 600)), max_size=4)


def documented_ns(p: LatencyProfile, contexts: list[int], chunks: list[tuple[int, int]]) -> float:
    """The formula of engine/core/latency_profile.py, written once more from its text."""
    n = len(contexts) + sum(size for _, size in chunks)
    linear = p.base_ns + p.token_ns * n + p.tile_ns * math.ceil(n / p.tile_tokens)
    linear += p.knee_token_ns * max(0, n - p.knee_tokens)
    attention = p.decode_kv_ns * sum(contexts) * (p.mixed_kv_factor if chunks else 1)
    attention += p.pair_ns * sum(size * (start + size / 2) for start, size in chunks)
    attention += p.prompt_kv_ns * sum(start for start, _ in chunks)
    attention += p.prompt_ns if chunks else 0
    return max(linear + attention + p.row_ns * (len(contexts) + len(chunks)), p.floor_ns)


def planned(
    model: LatencyModel | None, contexts: list[int], chunks: list[tuple[int, int]]
) -> StepCost:
    cost = StepCost(model)
    cost.add_decodes(len(contexts), sum(contexts))
    for start, size in chunks:
        cost.add_prefill(start, size)
    return cost


@given(models, decodes, prompts, st.floats(0.1, 10))
def test_a_step_costs_what_the_documented_formula_says(
    model: LatencyModel, contexts: list[int], chunks: list[tuple[int, int]], factor: float
) -> None:
    assume(contexts or chunks)
    model.factor = factor
    expected = factor * documented_ns(model.profile, contexts, chunks)
    assert planned(model, contexts, chunks).total_ns == pytest.approx(expected, rel=1e-9)


@given(models, st.lists(st.integers(1, 4000), max_size=8), prompts)
def test_a_batch_costs_the_same_as_the_plan_that_made_it(
    model: LatencyModel, contexts: list[int], chunks: list[tuple[int, int]]
) -> None:
    greedy = SamplingParams(max_tokens=9)
    parts = [
        Chunk(f"d{i}", context, (1,), (), greedy, output_index=1)
        for i, context in enumerate(contexts)
    ]
    parts += [
        Chunk(f"p{i}", start, (1,) * size, (), None) for i, (start, size) in enumerate(chunks)
    ]
    expected = int(planned(model, contexts, chunks).total_ns)
    assert model.step_ns(Batch(1, tuple(parts))) == expected


@given(models, decodes, prompts)
def test_taking_out_what_was_added_leaves_the_step_as_it_was(
    model: LatencyModel, contexts: list[int], chunks: list[tuple[int, int]]
) -> None:
    cost = planned(model, [7], [(3, 5)])
    before = cost.total_ns
    for start, size in chunks:
        cost.add_prefill(start, size)
    cost.add_decodes(len(contexts), sum(contexts))
    for start, size in reversed(chunks):
        cost.add_prefill(start, size, -1)
    cost.add_decodes(-len(contexts), -sum(contexts))
    assert cost.total_ns == before


@given(
    models,
    decodes,
    prompts,
    st.integers(0, 4000),
    st.integers(-2, 300),
    st.one_of(st.floats(-1e9, 1e13), st.integers(1, 300)),
)
def test_the_affordable_prompt_is_the_largest_that_stays_within_the_limit(
    model: LatencyModel,
    contexts: list[int],
    chunks: list[tuple[int, int]],
    start: int,
    most: int,
    limit: float,
) -> None:
    """Brute force over every size; a whole `limit` is the price of that size, to hit the border."""
    cost = planned(model, contexts, chunks)
    if isinstance(limit, int):
        limit = planned(model, contexts, [*chunks, (start, limit)]).total_ns
    fitting = [
        size
        for size in range(1, most + 1)
        if planned(model, contexts, [*chunks, (start, size)]).total_ns <= limit
    ]
    assert cost.affordable_prefill(start, most, limit) == max(fitting, default=0)
    assert cost.total_ns == planned(model, contexts, chunks).total_ns, "asking changes nothing"


@given(models, decodes, prompts, st.integers(1, 500), st.floats(0, 1e12), st.floats(0, 1e12))
def test_more_time_never_affords_fewer_tokens(
    model: LatencyModel,
    contexts: list[int],
    chunks: list[tuple[int, int]],
    most: int,
    limit: float,
    extra: float,
) -> None:
    cost = planned(model, contexts, chunks)
    assert cost.affordable_prefill(5, most, limit) <= cost.affordable_prefill(
        5, most, limit + extra
    )


@given(models, decodes, prompts, st.integers(0, 4000), st.integers(1, 600))
def test_nothing_that_is_added_makes_a_step_shorter(
    model: LatencyModel,
    contexts: list[int],
    chunks: list[tuple[int, int]],
    start: int,
    size: int,
) -> None:
    before = planned(model, contexts, chunks).total_ns
    assert planned(model, [*contexts, 1 + start], chunks).total_ns >= before * (1 - 1e-12)
    assert planned(model, contexts, [*chunks, (start, size)]).total_ns >= before * (1 - 1e-12)


def test_without_a_model_time_costs_nothing_and_all_is_affordable() -> None:
    cost = planned(None, [5, 6], [(0, 10)])
    assert cost.total_ns == 0.0
    assert cost.affordable_prefill(0, 500, 1.0) == 500


def test_an_empty_step_takes_no_time() -> None:
    assert StepCost(LatencyModel(LatencyProfile("base", base_ns=5.0))).total_ns == 0.0


def test_copies_run_beside_the_compute_and_beside_each_other() -> None:
    """A step lasts as long as the slowest of compute, link out and link in."""
    model = LatencyModel(
        LatencyProfile(
            "link",
            base_ns=1000.0,
            link_ns=10.0,
            link_out_ns_per_token=2.0,
            link_in_ns_per_token=3.0,
            block_size=4,
        )
    )
    chunk = Chunk("a", 3, (1,), (1,), SamplingParams(max_tokens=9), output_index=1)
    out = Copy("b", (1,) * 100, (1,) * 100)  # 100 blocks of 4 tokens at 2 ns
    back = Copy("c", (2,) * 100, (2,) * 100)
    assert model.step_ns(Batch(1, (chunk,))) == 1000
    assert model.step_ns(Batch(1, (chunk,), parks=(out, out), returns=(back,))) == 1000
    assert model.copy_ns(400, is_return=False) == 800 + 10
    assert model.copy_ns(400, is_return=True) == 1200 + 10
    assert model.park_ns(400) == 2 * 10 + 400 * 5


@given(models, st.integers(0, 4000), st.integers(1, 600))
def test_a_marginal_prompt_costs_at_least_its_share_of_a_full_step(
    model: LatencyModel, start: int, size: int
) -> None:
    """What `prefill_ns` says is what a step past knee and floor grows by, tiles smoothed out."""
    p = replace(model.profile, floor_ns=0.0, mixed_kv_factor=1.0)
    p = replace(p, prompt_kv_ns=0.0, prompt_ns=0.0, row_ns=0.0)
    model = LatencyModel(p)
    full = planned(model, [1] * 400, [])
    before = full.total_ns
    full.add_prefill(start, size)
    grown = full.total_ns - before
    assert abs(grown - model.prefill_ns(start, size)) <= p.tile_ns + 1e-6 * full.total_ns
