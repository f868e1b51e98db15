"""The compiled CPU kernels against plain arithmetic: every path of this machine, odd sizes, NaN."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
import torch
from attention_cases import draw_case

from engine.model.kernels.native import NativeKernels, PackedGemm

PLAIN, DOT, TILES = 1, 2, 3  # codes of the bfloat16 arithmetic
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=[1, 2], scope="module")
def kernels(
    native: NativeKernels | None, request: pytest.FixtureRequest
) -> Iterator[NativeKernels]:
    """With one thread and with two: the work is cut differently."""
    if native is None:
        pytest.skip("the CPU kernels cannot be compiled here")
    before, native.threads = native.threads, request.param
    yield native
    native.threads = before


@pytest.mark.parametrize("dim", [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256])
def test_attention_in_float32_is_exact_to_rounding(kernels: NativeKernels, dim: int) -> None:
    """Decodes and prompts mixed, windows, soft caps, odd blocks, NaN in every stale slot."""
    for seed in range(12):
        case = draw_case(100 * dim + seed, dim, torch.float32)
        torch.testing.assert_close(case.run(kernels).double(), case.expected(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("arithmetic", [PLAIN, DOT, TILES])
@pytest.mark.parametrize("dim", [16, 32, 64, 80, 128, 256])
def test_attention_in_bfloat16_errs_by_rounding_only(
    kernels: NativeKernels, dim: int, arithmetic: int
) -> None:
    """On every arithmetic that this machine has; 3 sigma outputs are rounded to 2^-7."""
    best = kernels.functions["tg_bf16_arithmetic"]()
    if arithmetic > best or (arithmetic == TILES and dim % 32):
        pytest.skip("this machine lacks it")
    for seed in range(12):
        case = draw_case(100 * dim + seed, dim, torch.bfloat16, tiles=arithmetic == TILES)
        got, want = case.run(kernels, arithmetic).double(), case.expected()
        torch.testing.assert_close(got, want, atol=2e-2, rtol=1e-2)
        assert float((got - want).square().mean().sqrt()) < 3e-3


def test_large_scores_do_not_overflow(kernels: NativeKernels) -> None:
    """Scores of +-10,000 leave one key with all the weight, however the chunks fall."""
    case = draw_case(3, 64, torch.float32)
    case.q.mul_(3000.0)
    torch.testing.assert_close(case.run(kernels).double(), case.expected(), atol=1e-3, rtol=0)


def test_a_head_size_that_is_no_multiple_of_16_is_refused(kernels: NativeKernels) -> None:
    case = draw_case(1, 24, torch.float32)
    with pytest.raises(ValueError, match="head size 24"):
        case.run(kernels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [7, 16, 64, 100, 896])
def test_rms_norm_with_and_without_residual(
    kernels: NativeKernels, dtype: torch.dtype, width: int
) -> None:
    """Equal to float64 arithmetic up to the type's rounding; the residual is updated in place."""
    torch.manual_seed(width)
    x, residual = (torch.randn(33, width).to(dtype) for _ in range(2))
    weight = torch.rand(width).to(dtype) + 0.5
    total = (x.float() + residual.float()).to(dtype)
    for given, rows in ((None, x), (residual, total)):
        want = rows.double()
        want = want * (want.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
        got = kernels.rms_norm(x, weight, 1e-5, given)
        _close(got, want)
    assert torch.equal(residual, total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 32, 300])
def test_silu_mul(kernels: NativeKernels, dtype: torch.dtype, width: int) -> None:
    """Halves of one tensor, gates from -200 to 200: no overflow, silu's tails exact."""
    both = torch.randn(70, 2 * width).to(dtype)
    both[:, :width] *= torch.logspace(-2, 2, 70)[:, None].to(dtype)
    gate, up = both[:, :width], both[:, width:]
    _close(
        kernels.silu_mul(gate, up),
        torch.nn.functional.silu(gate.double()) * up.double(),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 24, 64, 80])
@pytest.mark.parametrize("has_norms", [False, True])
def test_rope_write_rotates_and_stores(
    kernels: NativeKernels, dtype: torch.dtype, dim: int, has_norms: bool
) -> None:
    """q in place, k and v at their slots and nowhere else."""
    torch.manual_seed(dim)
    rows, heads, kv_heads = 19, 5, 2
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim).to(dtype)
    angle = torch.rand(64, dim // 2) * 6.28
    table = torch.cat([angle.cos(), angle.sin()], -1)
    positions = torch.randint(0, 64, (rows,))
    slots = torch.randperm(40)[:rows]
    keys, values = (torch.zeros(40, kv_heads, dim, dtype=dtype) for _ in range(2))
    norms = None
    parts = qkv.double().view(rows, -1, dim)
    q, k, v = parts.split([heads, kv_heads, kv_heads], 1)
    if has_norms:
        weights = [torch.rand(dim).to(dtype) + 0.5 for _ in range(2)]
        norms = (weights[0], weights[1], 1e-6)
        q, k = (
            x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w.double()
            for x, w in zip((q, k), weights, strict=True)
        )
    cosine, sine = (t[positions].double().repeat(1, 2)[:, None] for t in table.chunk(2, -1))
    want_q, want_k = (
        x * cosine + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * sine for x in (q, k)
    )
    kernels.rope_write(qkv, (heads, kv_heads, dim), table, positions, slots, keys, values, norms)
    _close(qkv.view(rows, -1, dim)[:, :heads], want_q)
    _close(keys[slots], want_k)
    assert torch.equal(values[slots].double(), v)
    untouched = torch.ones(40, dtype=torch.bool)
    untouched[slots] = False
    assert not keys[untouched].any()
    assert not values[untouched].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_write_kv_copies_strided_rows(kernels: NativeKernels, dtype: torch.dtype) -> None:
    """The transposed views that transformers hands over arrive bit for bit."""
    k, v = (torch.randn(3, 11, 24).to(dtype).transpose(0, 1) for _ in range(2))
    keys, values = (torch.zeros(50, 3, 24, dtype=dtype) for _ in range(2))
    slots = torch.randperm(50)[:11]
    kernels.write_kv(k, v, keys, values, slots)
    assert torch.equal(keys[slots], k)
    assert torch.equal(values[slots], v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("swiglu", [False, True])
def test_packed_products_equal_plain_ones(
    kernels: NativeKernels, dtype: torch.dtype, swiglu: bool
) -> None:
    """1 to 300 rows, widths that fill no panel, odd inputs, with and without bias."""
    if not kernels.has_gemm(dtype):
        pytest.skip("this build leaves these products to oneDNN")
    draw = random.Random(5)
    for rows in (1, 2, 13, 14, 15, 29, 32, 57, 300):
        outputs, inputs = 2 * draw.randint(1, 90), draw.randint(1, 130)
        torch.manual_seed(rows)
        weight, x = torch.randn(outputs, inputs).to(dtype), torch.randn(rows, inputs).to(dtype)
        bias = torch.randn(outputs).to(dtype) if rows % 2 else None
        got = PackedGemm(kernels, weight, bias, swiglu=swiglu)(x)
        want = x.double() @ weight.double().T
        want = want + bias.double() if bias is not None else want
        if swiglu:
            gate, up = want.chunk(2, -1)
            want = torch.nn.functional.silu(gate) * up
        size = float(want.square().mean().sqrt())
        _close(got, want, atol=size * (1e-5 if dtype == torch.float32 else 1e-2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 1000])
def test_argmax_takes_the_first_of_equals(
    kernels: NativeKernels, dtype: torch.dtype, width: int
) -> None:
    """Few different values, so that most rows have ties; rows may be parts of wider ones."""
    logits = torch.randint(-3, 3, (40, width + 3)).to(dtype)[:, :width]
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert kernels.argmax_rows(logits).tolist() == expected


def test_argmax_treats_nan_as_the_largest(kernels: NativeKernels) -> None:
    """As torch does, so that a row that cannot be drawn from is seen to be one."""
    logits = torch.randn(4, 100)
    logits[0, 37] = math.nan
    logits[1, 99] = math.nan
    logits[2] = -math.inf
    found = kernels.argmax_rows(logits).tolist()
    assert found[:3] == [37, 99, 0]
    assert found[3] == int(logits[3].argmax())


def _close(got: torch.Tensor, want: torch.Tensor, atol: float = 1e-5) -> None:
    """Equal up to float32 arithmetic, or to half a bfloat16 step of each number."""
    relative = 1e-5 if got.dtype == torch.float32 else 2.0**-7
    torch.testing.assert_close(got.double(), want, rtol=relative, atol=atol)
