"""Random steps of paged attention, and what plain arithmetic says of them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

from engine.model.kernels.native import NativeKernels


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A step of several chunks over scattered blocks; slots that belong to nobody hold NaN."""

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    first_rows: torch.Tensor
    contexts: torch.Tensor
    block_size: int
    window: int | None
    softcap: float | None

    @property
    def scale(self) -> float:
        return float(self.q.shape[-1] ** -0.5)

    def run(self, kernels: NativeKernels, arithmetic: int = 0) -> torch.Tensor:
        return kernels.paged_attention(
            self.q,
            self.keys,
            self.values,
            self.tables,
            self.first_rows,
            self.contexts,
            self.block_size,
            self.scale,
            window=self.window,
            softcap=self.softcap,
            arithmetic=arithmetic,
        )

    def expected(self) -> torch.Tensor:
        """In float64, one chunk at a time."""
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        group = self.q.shape[1] // self.keys.shape[1]
        for s, context in enumerate(self.contexts.tolist()):
            position = torch.arange(context)
            block = self.tables[s][position // self.block_size].long()
            slots = block * self.block_size + position % self.block_size
            k = self.keys[slots].double().repeat_interleave(group, 1)
            v = self.values[slots].double().repeat_interleave(group, 1)
            first, last = int(self.first_rows[s]), int(self.first_rows[s + 1])
            scores = torch.einsum("qhd,khd->hqk", self.q[first:last].double(), k) * self.scale
            if self.softcap is not None:
                scores = self.softcap * torch.tanh(scores / self.softcap)
            own = torch.arange(context - (last - first), context)[:, None]
            seen = position <= own
            if self.window is not None:
                seen &= position > own - self.window
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            out[first:last] = torch.einsum("hqk,khd->qhd", weights, v)
        return out


def draw_case(seed: int, dim: int, dtype: torch.dtype, *, tiles: bool = False) -> Case:
    """Any mix of decodes and prompt chunks, GQA groups of 1 to 20, any block size."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    group, kv_heads = draw.choice([1, 2, 3, 7, 8, 16, 20]), draw.choice([1, 2, 3])
    block_size = draw.choice([16, 32] if tiles else [1, 4, 5, 16, 32])
    lengths = [draw.choice([1, 1, 1, draw.randint(2, 90)]) for _ in range(draw.randint(1, 5))]
    contexts = [length + draw.choice([0, draw.randint(0, 200)]) for length in lengths]
    widest = max(-(-context // block_size) for context in contexts)
    num_blocks = len(lengths) * widest + 1
    spare = list(range(1, num_blocks))
    draw.shuffle(spare)
    tables = torch.zeros(len(lengths), widest, dtype=torch.int32)
    keys = torch.full((num_blocks * block_size, kv_heads, dim), math.nan)
    values = keys.clone()
    for s, context in enumerate(contexts):
        used = [spare.pop() for _ in range(-(-context // block_size))]
        tables[s, : len(used)] = torch.tensor(used, dtype=torch.int32)
        position = torch.arange(context)
        slots = tables[s][position // block_size].long() * block_size + position % block_size
        keys[slots] = torch.randn(context, kv_heads, dim, generator=generator)
        values[slots] = torch.randn(context, kv_heads, dim, generator=generator)
    first_rows = torch.tensor([0, *lengths]).cumsum(0).int()
    wide = torch.randn(int(first_rows[-1]), group * kv_heads + 2, dim, generator=generator)
    return Case(
        q=wide.to(dtype)[:, : group * kv_heads],  # rows further apart than they are wide
        keys=keys.to(dtype),
        values=values.to(dtype),
        tables=tables,
        first_rows=first_rows,
        contexts=torch.tensor(contexts, dtype=torch.int32),
        block_size=block_size,
        window=draw.choice([None, None, 3, 40, 70]),
        softcap=draw.choice([None, None, 20.0]),
    )
