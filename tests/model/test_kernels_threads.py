"""The kernels' own threads: any number of callers, forked children, more threads than work."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine.model.kernels.native import NativeKernels, PackedGemm


@pytest.fixture
def kernels(native: NativeKernels | None, monkeypatch: pytest.MonkeyPatch) -> NativeKernels:
    if native is None:
        pytest.skip("the CPU kernels cannot be compiled here")
    monkeypatch.setattr(native, "threads", 4)
    return native


def _right(kernels: NativeKernels, seed: int) -> bool:
    """Argmax over rows, and a product where the machine has one, of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(37, 301, generator=generator)
    good = torch.equal(kernels.argmax_rows(x), x.argmax(-1))
    if kernels.has_gemm(torch.float32):
        weight = torch.randn(500, 301, generator=generator)
        got = PackedGemm(kernels, weight)(x).double()
        good &= bool(torch.allclose(got, x.double() @ weight.double().T, atol=1e-3))
    return good


def test_a_thousand_jobs_in_a_row_are_all_done(kernels: NativeKernels) -> None:
    """No item is lost or done twice, with more threads than cores."""
    assert all(_right(kernels, seed) for seed in range(1000))


def test_callers_do_not_disturb_each_other(kernels: NativeKernels) -> None:
    """Ctypes lets other Python threads run: whoever finds the workers busy works alone."""
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda seed: _right(kernels, seed), range(400)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_works_alone(kernels: NativeKernels) -> None:
    """The workers are the parent's; the child must not wait for them."""
    assert _right(kernels, 1)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_fork_check, args=(kernels,))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _fork_check(kernels: NativeKernels) -> None:
    x = torch.arange(600.0).view(6, 100)
    assert kernels.argmax_rows(x).tolist() == [99] * 6
