"""Copies between device and host: byte for byte, each reported once, none of them touched later."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from swap_cases import (
    BLOCK,
    CPU,
    INT8,
    RAW,
    SHAPE,
    engines,
    full_cache,
    movers,
    random_copy,
    wait_all,
)

from engine.core.batch import Copy
from engine.core.clock import VirtualClock
from engine.core.errors import ModelLoadError
from engine.model.block_packer import TorchPacker
from engine.model.cuda_swap import runs
from engine.model.host_cache import HostCache, HostFormat, host_format
from engine.model.kernels.native import NativeKernels
from engine.model.kernels.native_swap import NativeMover, supports
from engine.model.kv_cache import KVCache, KVShape
from engine.model.quantize import value_group
from engine.model.swap import (
    NOTHING,
    SLICE_BYTES,
    Finished,
    InlineSwap,
    SwapEngine,
    ThreadedSwap,
    TorchMover,
)

WAYS = [(mover, engine) for mover in ("torch", "native") for engine in ("inline", "threaded")]


@pytest.fixture
def cache() -> KVCache:
    return full_cache()


@pytest.fixture
def host() -> HostCache:
    return HostCache(SHAPE, 30, BLOCK, RAW)


@pytest.fixture(params=WAYS, ids=["-".join(way) for way in WAYS])
def swap(
    request: pytest.FixtureRequest, cache: KVCache, host: HostCache, native: NativeKernels | None
) -> Iterator[SwapEngine]:
    """Every way to carry raw copies."""
    mover, engine = request.param
    found = movers(cache, host, native)
    if mover not in found:
        pytest.skip("no compiler")
    made = engines(host, found[mover]())[engine]()
    yield made
    made.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [16, 24])
@pytest.mark.parametrize("mover", ["torch", "native"])
def test_raw_contexts_come_back_byte_for_byte(
    dtype: torch.dtype, dim: int, mover: str, native: NativeKernels | None
) -> None:
    """Any blocks, in any order, to other device blocks, again and again, NaN included (law L30)."""
    shape = KVShape(3, 2, dim, dtype)
    cache = full_cache(shape)
    cache.data[1, 0, 4, 2] = float("nan")
    host = HostCache(shape, 30, BLOCK, RAW)
    found = movers(cache, host, native)
    if mover not in found:
        pytest.skip("no compiler")
    move = found[mover]()
    draw = random.Random(1)
    for _ in range(30):
        copy = random_copy(draw, cache, host, 1)
        want = cache.data[:, :, list(copy.block_ids)].view(torch.uint8).clone()
        untouched = cache.data.view(torch.uint8).clone()
        assert move.move_out(copy.block_ids, copy.host_block_ids, 3)
        assert torch.equal(cache.data.view(torch.uint8), untouched)
        there = draw.sample(range(1, cache.num_blocks + 1), len(copy.block_ids))
        move.move_back(copy.host_block_ids, there)
        assert torch.equal(cache.data[:, :, there].view(torch.uint8), want)
        others = [b for b in range(cache.num_blocks + 1) if b not in there]
        assert torch.equal(
            cache.data[:, :, others].view(torch.uint8),
            untouched.view_as(cache.data.view(torch.uint8))[:, :, others],
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_the_kernel_writes_the_very_bytes_of_torch(
    dtype: torch.dtype, group: int, native: NativeKernels | None
) -> None:
    """The quantiser is one, whoever computes it (law L32), and positions not in use are zeros."""
    if native is None:
        pytest.skip("no compiler")
    shape = KVShape(3, 2, 64, dtype)
    cache = full_cache(shape, seed=group)
    form = HostFormat("int8", group)
    ours, theirs = (HostCache(shape, 30, BLOCK, form) for _ in range(2))
    kernel, torchs = NativeMover(cache, ours, native), TorchMover(cache, theirs)
    draw = random.Random(group)
    for _ in range(40):
        copy = random_copy(draw, cache, ours, 1)
        rows = list(copy.host_block_ids)
        assert kernel.move_out(copy.block_ids, copy.host_block_ids, copy.num_tokens)
        assert torchs.move_out(copy.block_ids, copy.host_block_ids, copy.num_tokens)
        assert torch.equal(ours.data[rows], theirs.data[rows])
        kernel.move_back(rows, copy.block_ids)
        found = cache.data[:, :, list(copy.block_ids)].clone()
        torchs.move_back(rows, copy.block_ids)
        assert torch.equal(cache.data[:, :, list(copy.block_ids)], found)
        rest = copy.num_tokens % BLOCK or BLOCK
        assert not found[:, :, -1, rest:].any()
        cache.data.copy_(full_cache(shape, seed=draw.randrange(99)).data)


@pytest.mark.parametrize("mover", ["torch", "native"])
def test_int8_says_when_it_cannot_keep_a_context_and_ignores_what_is_not_in_use(
    mover: str, native: NativeKernels | None, cache: KVCache
) -> None:
    """NaN in a token is refused; NaN behind the last token has no part in anything (law L33)."""
    host = HostCache(SHAPE, 30, BLOCK, INT8)
    found = movers(cache, host, native)
    if mover not in found:
        pytest.skip("no compiler")
    move = found[mover]()
    cache.data[2, 1, 9, 5, 1, 3] = float("nan")
    assert not move.move_out((8, 9), (1, 2), 2 * BLOCK)
    assert not move.move_out((8, 9), (1, 2), BLOCK + 6)
    assert move.move_out((8, 9), (1, 2), BLOCK + 5)
    move.move_back((1, 2), (3, 4))
    assert cache.data[:, :, [3, 4]].isfinite().all()


def test_every_copy_is_reported_once_and_arrives(
    swap: SwapEngine, cache: KVCache, host: HostCache
) -> None:
    """Parks and returns of many requests, in any mixture, end as what each of them was."""
    draw = random.Random(5)
    before = cache.data.clone()
    parked: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    number = 0
    for _ in range(100):
        free = list(range(1, cache.num_blocks + 1))
        free_host = [b for b in range(1, 31) if all(b not in h for _, h in parked.values())]
        draw.shuffle(free)
        parks, returns, taken = [], [], {}
        for _ in range(draw.randint(0, 3)):
            count = draw.randint(1, 4)
            if count <= len(free_host):
                number += 1
                source = tuple(free.pop() for _ in range(count))
                target = tuple(free_host.pop() for _ in range(count))
                parks.append(Copy("r", source, target, number))
                taken[number] = (source, target)
        for known in draw.sample(list(parked), draw.randint(0, min(2, len(parked)))):
            # Every block of this test always holds the bytes it began with, so it goes home.
            source, target = parked[known]
            if all(b in free for b in source):
                number += 1
                cache.data[:, :, list(source)] = -1
                returns.append(Copy("r", source, target, number))
                free = [b for b in free if b not in source]
                del parked[known]
        swap.begin(parks, returns)
        ended = wait_all(swap, len(parks) + len(returns))
        assert sorted(ended.copied) == sorted(copy.number for copy in (*parks, *returns))
        assert ended.lost == ()
        assert swap.poll(0) == NOTHING
        assert torch.equal(cache.data, before)
        parked.update(taken)
    assert number > 100


class Measured(TorchMover):
    """Takes a millisecond of a clock for every call."""

    def __init__(self, cache: KVCache, host: HostCache, clock: VirtualClock) -> None:
        super().__init__(cache, host)
        self.clock = clock
        self.calls = 0

    def move_out(self, blocks: Sequence[int], host_blocks: Sequence[int], num_tokens: int) -> bool:
        self.calls += 1
        self.clock.advance_to(self.clock.now_ns() + 1_000_000)
        return super().move_out(blocks, host_blocks, num_tokens)


def test_a_long_copy_takes_several_steps_where_no_core_is_to_spare() -> None:
    """A slice, and more while it takes a tenth of the step's time; the others wait in order."""
    wide = KVShape(4, 8, 128, torch.float32)
    cache = KVCache(wide, 40, 16, CPU)
    host = HostCache(wide, 40, 16, HostFormat("raw", 16))
    mover = Measured(cache, host, VirtualClock())
    swap = InlineSwap(host, mover, mover.clock)
    blocks = tuple(range(1, 41))
    num_slices = -(-39 * host.block_bytes // SLICE_BYTES)
    assert num_slices > 12
    swap.begin([Copy("a", blocks[:39], blocks[:39], 1), Copy("b", (40,), (40,), 2)], [])
    assert (swap.poll(0), mover.calls) == (NOTHING, 1)
    assert (swap.poll(9_000_000), mover.calls) == (NOTHING, 2)
    assert (swap.poll(50_000_000), mover.calls) == (NOTHING, 7)
    assert swap.wait_any() == Finished(copied=(1,))
    assert mover.calls == num_slices
    assert swap.poll(1_000_000_000) == Finished(copied=(2,))


def test_after_a_drain_nothing_moves_and_nothing_is_reported(
    swap: SwapEngine, cache: KVCache, host: HostCache
) -> None:
    """What was under way counts as lost, so it may neither arrive later nor be told of."""
    for _ in range(20):
        swap.begin([Copy("a", (1, 2, 3), (1, 2, 3), 1), Copy("b", (4,), (4,), 2)], [])
        swap.drain()
        host.data.fill_(7)
        assert swap.poll(0) == NOTHING
        swap.begin([Copy("c", (9,), (9,), 3)], [])
        assert wait_all(swap, 1) == Finished(copied=(3,))
        assert (host.data[[1, 2, 3, 4]] == 7).all()


def test_a_changed_block_is_lost_and_not_delivered(cache: KVCache) -> None:
    """With checksums a corrupt swap-in falls back to computing again (law L33)."""
    host = HostCache(SHAPE, 30, BLOCK, RAW, checksums=True)
    for make in engines(host, TorchMover(cache, host)).values():
        swap = make()
        swap.begin([Copy("a", (1, 2), (5, 6), 1), Copy("b", (3,), (7,), 2)], [])
        assert wait_all(swap, 2).lost == ()
        host.data[6, 100] ^= 1
        swap.begin([], [Copy("a", (8, 9), (5, 6), 3), Copy("b", (10,), (7,), 4)])
        assert wait_all(swap, 2) == Finished(copied=(4,), lost=(3,))
        swap.close()


def test_numbers_that_int8_cannot_keep_are_a_lost_copy(
    cache: KVCache, native: NativeKernels | None
) -> None:
    host = HostCache(SHAPE, 30, BLOCK, INT8)
    cache.data[0, 0, 2, 1, 1, 1] = float("inf")
    for mover in movers(cache, host, native).values():
        for make in engines(host, mover()).values():
            swap = make()
            swap.begin([Copy("a", (1, 2), (5, 6), 1), Copy("b", (3,), (7,), 2)], [])
            assert wait_all(swap, 2) == Finished(copied=(2,), lost=(1,))
            swap.close()


class Broken(TorchMover):
    """Cannot move anything back."""

    def move_back(self, host_blocks: Sequence[int], blocks: Sequence[int]) -> None:
        raise RuntimeError("no such memory")


def test_an_error_in_the_thread_reaches_the_engine(cache: KVCache, host: HostCache) -> None:
    """Waiting for a copy must not last for ever because the one who carries it is gone."""
    swap = ThreadedSwap(host, Broken(cache, host))
    swap.begin([], [Copy("a", (1,), (1,), 1)])
    with pytest.raises(RuntimeError, match="no such memory"):
        swap.wait_any()
    swap.close()


def test_closing_leaves_no_thread(cache: KVCache, host: HostCache) -> None:
    before = set(threading.enumerate())
    swap = ThreadedSwap(host, TorchMover(cache, host))
    swap.begin([Copy("a", (1, 2), (1, 2), 1)], [])
    swap.close()
    swap.close()
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(
    ("dtype", "dim", "block", "group", "ratio"),
    [
        (torch.bfloat16, 64, 16, 16, 1.91),
        (torch.bfloat16, 64, 16, 8, 1.82),
        (torch.bfloat16, 128, 16, 16, 1.91),
        (torch.bfloat16, 128, 32, 32, 1.95),
        (torch.float32, 64, 16, 16, 3.82),
    ],
)
def test_int8_takes_the_bytes_that_are_stated(
    dtype: torch.dtype, dim: int, block: int, group: int, ratio: float
) -> None:
    """A scale costs a byte: of keys per channel and group, of values per token and its group."""
    shape = KVShape(4, 2, dim, dtype)
    host = HostCache(shape, 3, block, HostFormat("int8", group))
    together = value_group(group, dim)
    assert host.bytes_per_token == 4 * 2 * dim * (2 + 1 / group + 1 / together)
    assert host.data.shape == (4, host.block_bytes)
    assert shape.bytes_per_token / host.bytes_per_token >= ratio


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("int4", 16, "--host-kv-format int4 is unknown: use raw or int8"),
        ("int8", 32, "--host-kv-group 32 does not divide a block of 16 tokens"),
        ("int8", 0, "--host-kv-group 0 does not divide a block of 16 tokens"),
        ("raw", -4, "--host-kv-group -4 does not divide a block of 16 tokens"),
    ],
)
def test_a_format_that_cannot_be_is_one_clear_line(name: str, group: int, message: str) -> None:
    with pytest.raises(ModelLoadError, match=f"^{message}$"):
        host_format(name, group, 16)


def test_the_kernel_leaves_to_torch_what_it_cannot_do() -> None:
    """Head sizes that are no multiple of 16, and float16, as int8: slower, and still right."""
    for shape in (KVShape(1, 1, 24, torch.float32), KVShape(1, 1, 16, torch.float16)):
        cache = KVCache(shape, 4, BLOCK, CPU)
        assert not supports(cache, HostCache(shape, 4, BLOCK, INT8))
        assert supports(cache, HostCache(shape, 4, BLOCK, RAW))
        packer = TorchPacker(cache, INT8)
        rows = torch.zeros((2, INT8.block_bytes(shape, BLOCK)), dtype=torch.uint8)
        packer.pack(torch.tensor([1, 2]), rows, 2 * BLOCK)
        assert packer.is_sound(rows)


def test_runs_are_the_longest_stretches_of_neighbours() -> None:
    """Each is one transfer over a GPU's link."""
    assert list(runs((4, 5, 6, 9, 2, 3))) == [(0, 4, 3), (3, 9, 1), (4, 2, 2)]
    assert list(runs((7,))) == [(0, 7, 1)]
