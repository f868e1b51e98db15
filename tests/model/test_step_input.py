"""A batch becomes the tensors a forward pass needs, and block rows are converted only when new."""

from __future__ import annotations

import random

import pytest
import torch

from engine.core.batch import Batch, Chunk
from engine.core.request import SamplingParams
from engine.model.step_input import StepInputBuilder

SAMPLE = SamplingParams(max_tokens=1)


def test_a_mixed_batch_packs_decodes_and_prompt_chunks_side_by_side() -> None:
    builder = StepInputBuilder(4, torch.device("cpu"))
    batch = Batch(
        7,
        (
            Chunk("a", 5, (50,), (3, 9), SAMPLE),
            Chunk("b", 0, (60,), (2,), SAMPLE),
            Chunk("c", 2, (70, 71, 72), (1, 4, 8), None),
            Chunk("d", 0, (80, 81), (5,), SAMPLE),
        ),
    )
    step = builder.build(batch)
    assert step.token_ids.tolist() == [50, 60, 70, 71, 72, 80, 81]
    assert step.positions.tolist() == [5, 0, 2, 3, 4, 0, 1]
    assert step.slot_mapping.tolist() == [37, 8, 6, 7, 16, 20, 21]
    assert step.cu_q.tolist() == [0, 1, 2, 5, 7]
    assert step.context_lens.tolist() == [6, 1, 5, 2]
    assert step.block_tables.tolist() == [[3, 9, 0], [2, 0, 0], [1, 4, 8], [5, 0, 0]]
    assert step.sample_rows.tolist() == [0, 1, 6]
    assert (step.num_decodes, step.num_tokens, step.num_chunks) == (2, 7, 4)
    assert (step.cu_q.dtype, step.block_tables.dtype) == (torch.int32, torch.int32)


def test_random_batches_agree_with_a_list_per_token() -> None:
    """The vectorised arithmetic equals the obvious loops, with rows remembered between batches."""
    draw = random.Random(3)
    for _ in range(20):
        size = draw.choice([1, 3, 16])
        builder = StepInputBuilder(size, torch.device("cpu"), max_rows=3)
        tables = {name: tuple(draw.sample(range(1, 500), 40)) for name in "abcdef"}
        for _ in range(5):
            names = draw.sample("abcdef", draw.randint(1, 6))
            chunks = []
            for name in names:
                start = draw.randrange(20)
                ids = tuple(draw.randrange(99) for _ in range(draw.randint(1, 20)))
                chunks.append(Chunk(name, start, ids, tables[name], draw.choice([None, SAMPLE])))
            step = builder.build(Batch(0, tuple(chunks)))
            places = [(c, c.start + i) for c in chunks for i in range(c.num_tokens)]
            slots = [c.block_ids[p // size] * size + p % size for c, p in places]
            assert step.slot_mapping.tolist() == slots
            assert step.positions.tolist() == [p for _, p in places]
            assert step.context_lens.tolist() == [c.end for c in chunks]


def test_a_row_is_made_again_only_when_the_table_is_another_object() -> None:
    builder = StepInputBuilder(4, torch.device("cpu"))
    table = (1, 2)
    builder.build(Batch(0, (Chunk("a", 0, (5,), table, None),)))
    row = builder._rows["a"][1]
    builder.build(Batch(1, (Chunk("a", 1, (5,), table, None),)))
    assert builder._rows["a"][1] is row
    longer = builder.build(Batch(2, (Chunk("a", 2, (5,), (1, 2, 3), None),)))
    assert longer.block_tables.tolist() == [[1, 2, 3]]


def test_rows_of_gone_requests_are_forgotten() -> None:
    builder = StepInputBuilder(4, torch.device("cpu"), max_rows=8)
    for i in range(100):
        builder.build(Batch(i, (Chunk(f"r{i}", 0, (5,), (1,), None),)))
        assert builder.num_cached_rows <= 8


def test_a_table_that_does_not_cover_its_chunk_is_a_programming_error() -> None:
    builder = StepInputBuilder(4, torch.device("cpu"))
    with pytest.raises(AssertionError, match="no block"):
        builder.build(Batch(0, (Chunk("a", 3, (1, 2), (1,), None),)))
