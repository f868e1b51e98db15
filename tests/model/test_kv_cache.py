"""The pools have the layout kernels rely on, and their size is what was asked for."""

from __future__ import annotations

import torch

from engine.model.kv_cache import KVCache, KVShape


def test_slots_and_blocks_are_two_views_of_the_same_memory() -> None:
    cache = KVCache(KVShape(3, 2, 8, torch.float32), 5, 4, torch.device("cpu"))
    assert cache.keys[1].shape == (24, 2, 8)
    assert cache.value_blocks(1).shape == (6, 4, 2, 8)
    cache.keys[1][2 * 4 + 3] = 7.0
    cache.values[2][5 * 4] = 9.0
    assert (cache.key_blocks(1)[2, 3] == 7.0).all()
    assert (cache.value_blocks(2)[5, 0] == 9.0).all()
    assert int((cache.data != 0).sum()) == 2 * 2 * 8
    assert cache.keys[0].is_contiguous()


def test_the_planned_number_of_blocks_takes_the_planned_memory() -> None:
    """blocks_in counts the padding block, so a cache of that many blocks stays within the bytes."""
    shape = KVShape(2, 2, 8, torch.bfloat16)
    assert shape.bytes_per_token == 2 * 2 * 2 * 8 * 2
    budget = 100_000
    num_blocks = shape.blocks_in(budget, 16)
    cache = KVCache(shape, num_blocks, 16, torch.device("cpu"))
    assert cache.num_bytes <= budget < cache.num_bytes + 16 * shape.bytes_per_token
