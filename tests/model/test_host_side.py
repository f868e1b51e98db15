"""The host's memory for parked contexts: how much of it, who carries, and what the runner says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from swap_cases import BLOCK, CPU, INT8, RAW, SHAPE, full_cache

from engine.core.batch import Batch, Copy
from engine.core.errors import ModelLoadError
from engine.model import host_side
from engine.model.host_cache import HostCache
from engine.model.host_side import HostOptions, make_host_side
from engine.model.kernels.native import NativeKernels
from engine.model.kv_cache import KVCache, KVShape
from engine.model.loader import load_runner
from engine.model.memory import GIB, HOST_CAP, HOST_PER_DEVICE, plan_host
from engine.model.swap import InlineSwap, ThreadedSwap, TorchMover


def plan(
    block_bytes: int,
    wanted: int | None,
    available: int,
    *,
    device: int = 1000,
    pinned: bool = False,
) -> int:
    return plan_host(
        block_bytes,
        num_device_blocks=device,
        wanted_bytes=wanted,
        available=available,
        is_pinned=pinned,
    )


def test_unasked_the_host_gives_a_bounded_share_of_what_is_free() -> None:
    """Never more than a tenth, the cap, or twice the device's blocks; pinned memory by its own."""
    assert plan(1000, None, 10_000_000, device=10**6) == 999
    assert plan(1 << 20, None, 100 * GIB, device=10**6) == HOST_CAP // (1 << 20) - 1
    assert plan(1000, None, 100 * GIB, device=70) == HOST_PER_DEVICE * 70
    assert plan(1000, None, 10_000_000, device=10**6, pinned=True) == (2 << 20) // 1000 - 1
    assert plan(1000, None, 5000) == 0


def test_an_operators_size_is_kept_to_and_never_exceeded() -> None:
    assert plan(1000, 10_500, GIB) == 9
    assert plan(1000, 0, GIB) == 0
    assert plan(1000, 2000, GIB) == 1
    with pytest.raises(ModelLoadError, match=r"asks for 2\.00 GiB, the host has 1\.00"):
        plan(1000, 2 * GIB, GIB)
    with pytest.raises(ModelLoadError, match="1999 bytes do not hold two blocks of 1000"):
        plan(1000, 1999, GIB)


def test_a_spare_core_carries_and_torch_always_carries_inline(
    native: NativeKernels | None,
) -> None:
    """The kernel may run beside the compute; torch would start threads of its own there."""
    cache = full_cache()
    side = make_host_side(cache, HostOptions(1 << 20, RAW, spare_core=True), None)
    assert side is not None
    assert isinstance(side.swap, InlineSwap)
    if native is None:
        pytest.skip("no compiler")
    for spare_core, kind in ((True, ThreadedSwap), (False, InlineSwap)):
        options = HostOptions(1 << 20, RAW, spare_core=spare_core)
        side = make_host_side(cache, options, native)
        assert side is not None
        assert isinstance(side.swap, kind)
        assert side.cache.num_bytes <= 1 << 20
        side.swap.close()
    # A head of 24 channels as int8 is torch's.
    odd = KVCache(KVShape(1, 1, 24, torch.float32), 4, BLOCK, CPU)
    side = make_host_side(odd, HostOptions(1 << 20, INT8, spare_core=True), native)
    assert side is not None
    assert isinstance(side.swap, InlineSwap)


def test_no_room_means_that_nothing_is_parked() -> None:
    assert make_host_side(full_cache(), HostOptions(0, RAW), None) is None


def test_memory_that_cannot_be_pinned_is_used_unpinned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed pinned allocation is slow copies, not a dead engine."""

    class Fussy(HostCache):
        def __init__(self, *args: object, pinned: bool = False, **more: object) -> None:
            if pinned:
                raise RuntimeError("CUDA error: out of memory\nand more")
            super().__init__(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(host_side, "HostCache", Fussy)
    with caplog.at_level(logging.WARNING):
        made = host_side._host_cache(full_cache(), 4, HostOptions(None, RAW), pinned=True)
    assert made.num_blocks == 4
    assert "cannot be pinned" in caplog.text


def test_a_loaded_runner_tells_of_its_host_and_parks_there(
    llama_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Capacity, info and one line of the log say what there is; copies work at once."""
    with caplog.at_level(logging.INFO):
        runner = load_runner(
            str(llama_folder),
            "cpu",
            kv_cache_bytes=1 << 20,
            host_kv_bytes=1 << 20,
            host_kv_format="int8",
            host_kv_group=8,
            host_kv_checksums=True,
        )
    capacity, info = runner.capacity, runner.info
    assert capacity.num_host_blocks > 2 * capacity.num_blocks
    assert not capacity.host_is_exact
    assert 0 < info.host_kv_bytes <= 1 << 20
    assert info.host_kv_format == "int8"
    assert f"parked contexts: {capacity.num_host_blocks * 16} tokens" in caplog.text
    runner.attention.kv_cache.data[:, :, 1] = 1.0
    assert runner.execute(Batch(0, (), (Copy("a", (1,), (2,), 1),))).copied == (1,)
    assert runner.execute(Batch(1, (), (), (Copy("a", (3,), (2,), 2),))).copied == (2,)
    assert (runner.attention.kv_cache.data[:, :, 3] == 1.0).all()
    runner.close()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"host_kv_bytes": -1}, "--host-kv-gib: -1 bytes make no sense"),
        ({"host_kv_bytes": 100}, "--host-kv-gib: 100 bytes do not hold two blocks"),
        ({"host_kv_bytes": 1 << 60}, "--host-kv-gib asks for"),
        ({"host_kv_format": "int4"}, "--host-kv-format int4 is unknown: use raw or int8"),
        ({"host_kv_group": 5}, "--host-kv-group 5 does not divide a block of 16 tokens"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(
    flags: dict[str, int | str], expected: str, llama_folder: Path
) -> None:
    with pytest.raises(ModelLoadError, match=expected) as caught:
        load_runner(str(llama_folder), "cpu", **flags)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_without_a_host_pool_the_capacity_says_so(llama_folder: Path) -> None:
    runner = load_runner(str(llama_folder), "cpu", kv_cache_bytes=1 << 20, host_kv_bytes=0)
    assert runner.capacity.num_host_blocks == 0
    assert runner.info.host_kv_bytes == 0
    runner.close()


def test_torch_and_the_kernel_agree_on_what_a_block_is(native: NativeKernels | None) -> None:
    """A context parked by one can be brought back by the other, raw and as int8."""
    if native is None:
        pytest.skip("no compiler")
    from engine.model.kernels.native_swap import NativeMover

    for form in (RAW, INT8):
        cache = full_cache()
        host = HostCache(SHAPE, 8, BLOCK, form)
        first, second = TorchMover(cache, host), NativeMover(cache, host, native)
        assert first.move_out((1, 2), (3, 4), 2 * BLOCK)
        first.move_back((3, 4), (5, 6))
        second.move_back((3, 4), (7, 8))
        assert torch.equal(cache.data[:, :, [5, 6]], cache.data[:, :, [7, 8]])
