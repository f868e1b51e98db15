"""Small caches full of numbers, host pools for them, and every way to carry blocks on a CPU."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from engine.core.batch import Copy
from engine.model.host_cache import HostCache, HostFormat
from engine.model.kernels.native import NativeKernels
from engine.model.kernels.native_swap import NativeMover
from engine.model.kv_cache import KVCache, KVShape
from engine.model.swap import BlockMover, Finished, InlineSwap, SwapEngine, ThreadedSwap, TorchMover

CPU = torch.device("cpu")
RAW, INT8 = HostFormat("raw", 8), HostFormat("int8", 8)
SHAPE = KVShape(num_layers=3, num_kv_heads=2, head_dim=16, dtype=torch.float32)
BLOCK = 8


def full_cache(shape: KVShape = SHAPE, num_blocks: int = 24, seed: int = 0) -> KVCache:
    """A cache whose keys have a few loud channels, as those of real models do."""
    cache = KVCache(shape, num_blocks, BLOCK, CPU)
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randn(cache.data.shape, generator=draw)
    numbers[:, 0, ..., 3] *= 20
    numbers[:, 1, :, 5] *= 7
    cache.data.copy_(numbers)
    return cache


def movers(
    cache: KVCache, host: HostCache, native: NativeKernels | None
) -> dict[str, Callable[[], BlockMover]]:
    """Every way to move blocks here, by name."""
    found: dict[str, Callable[[], BlockMover]] = {"torch": lambda: TorchMover(cache, host)}
    if native is not None:
        found["native"] = lambda: NativeMover(cache, host, native)
    return found


def engines(host: HostCache, mover: BlockMover) -> dict[str, Callable[[], SwapEngine]]:
    """Every way to carry copies here, by name."""
    return {
        "inline": lambda: InlineSwap(host, mover),
        "threaded": lambda: ThreadedSwap(host, mover),
    }


def wait_all(swap: SwapEngine, count: int) -> Finished:
    """Wait until `count` copies are over."""
    copied: list[int] = []
    lost: list[int] = []
    while len(copied) + len(lost) < count:
        found = swap.wait_any()
        copied += found.copied
        lost += found.lost
    return Finished(tuple(copied), tuple(lost))


def random_copy(draw: random.Random, cache: KVCache, host: HostCache, number: int) -> Copy:
    """A copy of random blocks in random order, its last block full up to somewhere."""
    count = draw.randint(1, min(cache.num_blocks, host.num_blocks))
    blocks = tuple(draw.sample(range(1, cache.num_blocks + 1), count))
    host_blocks = tuple(draw.sample(range(1, host.num_blocks + 1), count))
    return Copy("r", blocks, host_blocks, number, count * BLOCK - draw.randrange(BLOCK))
