"""The torch reference computes the definition of attention, whatever blocks, chunks and NaNs do."""

from __future__ import annotations

import math
import random

import pytest
import torch

from engine.core.batch import Batch, Chunk
from engine.model import attention
from engine.model.attention import TorchAttention
from engine.model.kv_cache import KVCache, KVShape
from engine.model.step_input import StepInput, StepInputBuilder

CPU = torch.device("cpu")


def by_definition(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of the last len(q) tokens of one sequence, in float64, one query at a time."""
    group = q.shape[1] // keys.shape[1]
    keys = keys.double().repeat_interleave(group, 1)
    values = values.double().repeat_interleave(group, 1)
    out = torch.empty(q.shape, dtype=torch.float64)
    for i, row in enumerate(q.double()):
        last = len(keys) - len(q) + i + 1
        first = max(0, last - window) if window else 0
        scores = torch.einsum("hd,nhd->hn", row, keys[first:last]) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        out[i] = torch.einsum("hn,nhd->hd", scores.softmax(-1), values[first:last])
    return out


class Case:
    """One step over sequences with a past, on scattered blocks of a pool that is otherwise NaN."""

    def __init__(self, seed: int, block_size: int, heads: tuple[int, int], head_dim: int) -> None:
        draw = random.Random(seed)
        torch.manual_seed(seed)
        decodes = [(draw.randint(0, 70), 1) for _ in range(draw.randint(0, 6))]
        prompts = [(draw.choice([0, 0, draw.randint(1, 50)]), draw.randint(2, 40)) for _ in "abc"]
        self.work = decodes + prompts
        needed = [-(-(start + count) // block_size) for start, count in self.work]
        num_blocks = sum(needed) + 3
        self.cache = KVCache(
            KVShape(1, heads[1], head_dim, torch.float32), num_blocks, block_size, CPU
        )
        self.cache.data.fill_(float("nan"))
        ids = iter(draw.sample(range(1, num_blocks + 1), num_blocks))
        self.k = [torch.randn(start + count, heads[1], head_dim) for start, count in self.work]
        self.v = [torch.randn(start + count, heads[1], head_dim) for start, count in self.work]
        chunks = []
        for i, (start, count) in enumerate(self.work):
            table = tuple(next(ids) for _ in range(needed[i]))
            slots = [table[p // block_size] * block_size + p % block_size for p in range(start)]
            self.cache.keys[0][slots] = self.k[i][:start]
            self.cache.values[0][slots] = self.v[i][:start]
            chunks.append(Chunk(str(i), start, tuple([0] * count), table, None))
        self.step: StepInput = StepInputBuilder(block_size, CPU).build(Batch(0, tuple(chunks)))
        self.q = torch.randn(self.step.num_tokens, heads[0], head_dim)

    def run(self, scale: float, window: int | None, softcap: float | None) -> torch.Tensor:
        under_test = TorchAttention(self.cache)
        under_test.begin(self.step)
        new = [start for start, _ in self.work]
        under_test.write(
            0,
            torch.cat([k[s:] for k, s in zip(self.k, new, strict=True)]),
            torch.cat([v[s:] for v, s in zip(self.v, new, strict=True)]),
        )
        return under_test.attend(0, self.q, scale, window, softcap)

    def expected(self, scale: float, window: int | None, softcap: float | None) -> torch.Tensor:
        rows = self.q.split([count for _, count in self.work])
        pieces = zip(rows, self.k, self.v, strict=True)
        return torch.cat([by_definition(q, k, v, scale, window, softcap) for q, k, v in pieces])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 1, 7, 1000])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_equals_the_definition(
    heads: tuple[int, int], window: int | None, softcap: float | None
) -> None:
    """Blocks of every size, chunks with and without a past, shared heads; NaN everywhere else."""
    for seed, block_size in enumerate((1, 4, 7, 16)):
        case = Case(seed, block_size, heads, head_dim=16)
        scale = 1 / math.sqrt(16)
        out = case.run(scale, window, softcap)
        torch.testing.assert_close(
            out.double(), case.expected(scale, window, softcap), atol=2e-5, rtol=1e-4
        )


def test_work_beyond_the_bounds_is_done_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long contexts neither gather nor mask more than the bounds, and say the same."""
    case = Case(5, 4, (4, 2), 8)
    whole = case.run(0.3, None, None)
    monkeypatch.setattr(attention, "MAX_GATHERED_TOKENS", 40)
    monkeypatch.setattr(attention, "MAX_MASK_ELEMENTS", 100)
    under_test = TorchAttention(case.cache)
    under_test.begin(case.step)
    assert len(under_test._decodes) > 1
    torch.testing.assert_close(case.run(0.3, None, None), whole, atol=1e-5, rtol=1e-4)


def test_nan_of_a_former_owner_does_not_reach_the_next_one() -> None:
    """Slots behind the context, in the request's own last block and in padding, hold NaN."""
    for seed in range(5):
        assert torch.isfinite(Case(seed, 16, (4, 2), 16).run(0.25, 9, None)).all()


def test_nan_of_a_neighbour_in_the_same_batch_stays_with_it() -> None:
    """A sequence whose own values are NaN spoils its own rows and no others."""
    case = Case(1, 4, (4, 2), 16)
    sick = len(case.work) - 1
    case.v[sick].fill_(float("nan"))
    out = case.run(0.25, None, None)
    first, last = (int(case.step.cu_q_host[i]) for i in (sick, sick + 1))
    assert torch.isnan(out[first:last]).all()
    assert torch.isfinite(out[:first]).all()


def test_bfloat16_is_as_close_as_bfloat16_can_be() -> None:
    case = Case(2, 8, (4, 2), 16)
    case.cache = KVCache(KVShape(1, 2, 16, torch.bfloat16), case.cache.num_blocks, 8, CPU)
    whole = [(0, count) for start, count in case.work if start == 0]
    keep = [i for i, (start, _) in enumerate(case.work) if start == 0]
    case.work, case.k, case.v = whole, [case.k[i] for i in keep], [case.v[i] for i in keep]
    tables, chunks = 1, []
    for i, (_, count) in enumerate(whole):
        blocks = -(-count // 8)
        chunks.append(
            Chunk(str(i), 0, tuple([0] * count), tuple(range(tables, tables + blocks)), None)
        )
        tables += blocks
    case.step = StepInputBuilder(8, CPU).build(Batch(0, tuple(chunks)))
    case.q = case.q[: case.step.num_tokens]
    expected = case.expected(0.25, None, None)
    case.q = case.q.bfloat16()
    case.k = [k.bfloat16() for k in case.k]
    case.v = [v.bfloat16() for v in case.v]
    torch.testing.assert_close(case.run(0.25, None, None).double(), expected, atol=0.03, rtol=0.03)
