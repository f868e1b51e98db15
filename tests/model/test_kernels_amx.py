"""The AMX path on a machine without AMX: its tile instructions are emulated, its logic is real."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attention_cases import draw_case

from engine.model.kernels import build
from engine.model.kernels.build import KernelBuildError, find_toolchain
from engine.model.kernels.native import NativeKernels, load_native

TILES = 3


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> NativeKernels:
    """A library of its own, whose tiles are arrays."""
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("the tiles' code is mixed with AVX512_BF16's, which this CPU lacks")
    try:
        find_toolchain()
    except KernelBuildError:
        pytest.skip("no compiler on this machine")
    header = Path(__file__).with_name("emulated_amx.h")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, "-include", str(header)))
        kernels = load_native(tmp_path_factory.mktemp("amx"), threads=2)
    assert kernels is not None
    return kernels


def test_tiles_are_the_best_that_a_machine_can_have(emulated: NativeKernels) -> None:
    assert emulated.bf16_arithmetic == "amx"
    assert not emulated.has_gemm(torch.bfloat16)  # oneDNN has AMX products


@pytest.mark.parametrize("dim", [32, 64, 96, 128, 256])
def test_attention_on_tiles_errs_by_rounding_only(emulated: NativeKernels, dim: int) -> None:
    """Decodes and prompts mixed, windows, soft caps, NaN in every stale slot."""
    for seed in range(12):
        case = draw_case(100 * dim + seed, dim, torch.bfloat16, tiles=True)
        got, want = case.run(emulated, TILES).double(), case.expected()
        torch.testing.assert_close(got, want, atol=2e-2, rtol=1e-2)
        assert float((got - want).square().mean().sqrt()) < 3e-3


def test_sizes_that_fill_no_tile_take_the_next_best(emulated: NativeKernels) -> None:
    """Head sizes of 16 and 80, and blocks of 4 or 5 tokens."""
    for seed in range(8):
        for case in (
            draw_case(seed, 80, torch.bfloat16, tiles=True),
            draw_case(seed, 64, torch.bfloat16),
        ):
            torch.testing.assert_close(
                case.run(emulated).double(), case.expected(), atol=2e-2, rtol=1e-2
            )
            if case.block_size % 16 or case.q.shape[2] % 32:
                with pytest.raises(ValueError, match="arithmetic 3"):
                    case.run(emulated, TILES)
