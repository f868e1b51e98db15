"""Copies beside a GPU's computing: byte for byte, after what was written, before what is written.

Skipped without a GPU, and then nothing here has been shown.
"""

from __future__ import annotations

import random

import pytest
import torch
from engine_run import Setting, make_runner, random_work
from parking_run import ForcedParks, run_parked, with_host
from swap_cases import BLOCK, INT8, RAW, SHAPE, full_cache, random_copy, wait_all
from tiny_models import VOCAB, random_model, tiny_config

from engine.core.batch import Copy
from engine.model.cuda_swap import CudaSwap
from engine.model.hf_model import HFModel
from engine.model.host_cache import HostCache, HostFormat
from engine.model.kv_cache import KVCache
from engine.model.swap import NOTHING, Finished, TorchMover

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
GPU = torch.device("cuda")


def gpu_cache(seed: int = 0) -> KVCache:
    cache = KVCache(SHAPE, 24, BLOCK, GPU)
    cache.data.copy_(full_cache(seed=seed).data)
    return cache


@pytest.mark.parametrize("form", [RAW, INT8], ids=["raw", "int8"])
def test_the_host_gets_the_bytes_that_a_cpu_would_give(form: HostFormat) -> None:
    """Any blocks in any order, and the way back (laws L30, L32)."""
    draw = random.Random(0)
    cache, twin = gpu_cache(), full_cache()
    host, other = (HostCache(SHAPE, 30, BLOCK, form, pinned=p) for p in (True, False))
    swap, mover = CudaSwap(cache, host), TorchMover(twin, other)
    for number in range(1, 40):
        copy = random_copy(draw, cache, host, 2 * number)
        swap.begin([copy], [])
        assert wait_all(swap, 1) == Finished(copied=(copy.number,))
        assert mover.move_out(copy.block_ids, copy.host_block_ids, copy.num_tokens)
        rows = list(copy.host_block_ids)
        assert torch.equal(host.data[rows], other.data[rows])
        there = tuple(draw.sample(range(1, 25), len(rows)))
        swap.begin([], [Copy("r", there, copy.host_block_ids, 2 * number + 1)])
        assert wait_all(swap, 1).lost == ()
        mover.move_back(copy.host_block_ids, there)
        assert torch.equal(cache.data.cpu(), twin.data)


def test_a_park_reads_what_was_launched_before_it_and_a_return_outlives_nothing() -> None:
    """Long work on the compute stream, a copy right behind it, and what it wrote is what comes."""
    cache = gpu_cache()
    host = HostCache(SHAPE, 30, BLOCK, RAW, pinned=True)
    swap = CudaSwap(cache, host)
    for round_ in range(20):
        torch.cuda._sleep(20_000_000)
        cache.data[:, :, 1:5] = float(round_)
        swap.begin([Copy("a", (1, 2, 3, 4), (7, 8, 3, 1), 1)], [])
        assert wait_all(swap, 1) == Finished(copied=(1,))
        cache.data[:, :, 1:5] = -1.0
        torch.cuda._sleep(20_000_000)
        swap.begin([], [Copy("a", (9, 5, 6, 2), (7, 8, 3, 1), 2)])
        assert wait_all(swap, 1) == Finished(copied=(2,))
        assert (cache.data[:, :, [9, 5, 6, 2]] == float(round_)).all()


def test_after_a_drain_nothing_is_reported() -> None:
    cache = gpu_cache()
    swap = CudaSwap(cache, HostCache(SHAPE, 30, BLOCK, RAW, pinned=True))
    swap.begin([Copy("a", (1, 2), (3, 4), 1)], [])
    swap.drain()
    assert swap.poll() == NOTHING
    swap.close()


def test_what_int8_cannot_keep_is_lost() -> None:
    cache = gpu_cache()
    cache.data[0, 1, 2, 3, 1, 1] = float("nan")
    swap = CudaSwap(cache, HostCache(SHAPE, 30, BLOCK, INT8, pinned=True))
    swap.begin([Copy("a", (1, 2), (5, 6), 1), Copy("b", (3,), (7,), 2)], [])
    assert wait_all(swap, 2) == Finished(copied=(2,), lost=(1,))


def test_forced_parks_change_no_token() -> None:
    """The whole engine on a GPU, parked each few tokens, against itself with room for everyone."""
    module = random_model(tiny_config("llama"), 1).cuda()
    work = random_work(random.Random(1), VOCAB, 40, 30)
    roomy = make_runner(HFModel(module), Setting(8, 800, 64, 32, 1))
    still, _ = run_parked(roomy, work, ForcedParks(random.Random(1), 64, every=1 << 30), 1)
    scarce = make_runner(HFModel(module), Setting(8, 60, 64, 32, 1))
    parking = with_host(scarce, 300, RAW, None)
    moved, seen = run_parked(parking, work, ForcedParks(random.Random(1), 64, every=4), 1)
    assert moved == still
    assert seen.parks_total > 80
