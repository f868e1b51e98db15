"""The quantiser: a bound for every number, the same bytes everywhere, nothing stored silently."""

from __future__ import annotations

import pytest
import torch

from engine.model.quantize import (
    LARGEST,
    UNSOUND,
    dequantize,
    quantize,
    step_of,
    step_tables,
    value_group,
)

CPU = torch.device("cpu")
TABLES = step_tables(CPU)


def blocks_of(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Blocks [5, L 2, 2, B 8, Hkv 2, D 48] with loud channels and loud tokens."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randn((5, 2, 2, 8, 2, 48), generator=draw) * scale
    numbers[:, :, 0, ..., 7] *= 30
    numbers[:, :, 1, 2] *= 9
    return numbers.to(dtype)


def steps_of(codes: tuple[torch.Tensor, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The step of every number of `like`, from the codes of keys and values."""
    keys, values = codes
    steps = torch.empty(like.shape)
    per_group = TABLES.steps[keys.int()]
    steps[:, :, 0] = per_group.repeat_interleave(like.shape[3] // keys.shape[2], dim=2)
    per_value = TABLES.steps[values.int()]
    steps[:, :, 1] = per_value.repeat_interleave(like.shape[5] // values.shape[4], dim=4)
    return steps


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
def test_no_number_is_off_by_more_than_half_its_step(group: int, scale: float) -> None:
    """|x - x'| <= step / 2 for every head, channel and token (law L32)."""
    blocks = blocks_of(1, scale)
    integers, *codes = quantize(blocks, group, TABLES)
    back = dequantize(integers, codes[0], codes[1], TABLES, torch.float32)
    half = steps_of((codes[0], codes[1]), blocks) / 2
    assert ((blocks - back).abs() <= half * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_add_their_own_rounding_and_no_more(dtype: torch.dtype) -> None:
    """Half a step before the result is rounded to the cache's type, half a last place after it."""
    blocks = blocks_of(2, dtype=dtype)
    integers, *codes = quantize(blocks, 8, TABLES)
    back = dequantize(integers, codes[0], codes[1], TABLES, dtype)
    bound = steps_of((codes[0], codes[1]), blocks) / 2 * (1 + 1e-5)
    bound += back.float().abs() * torch.finfo(dtype).eps / 2
    assert ((blocks.float() - back.float()).abs() <= bound).all()


def test_a_step_is_no_larger_than_its_numbers_ask_for() -> None:
    """A scale's code is the first that reaches its largest number: steps <= max|x| / 116."""
    blocks = blocks_of(3)
    _, *codes = quantize(blocks, 8, TABLES)
    largest = blocks[:, :, 0].abs().amax(2, keepdim=True)
    assert (TABLES.steps[codes[0].int()] <= largest / 116).all()
    assert (TABLES.steps[codes[0].int()] * 127 >= largest * (1 - 1e-6)).all()


def test_loud_channels_of_keys_and_loud_tokens_of_values_leave_the_others_alone() -> None:
    """What keys do per channel and values per token is what keeps their quiet numbers exact."""
    blocks = blocks_of(4)
    quiet = blocks.clone()
    quiet[:, :, 0, ..., 7] = 0
    quiet[:, :, 1, 2] = 0
    loud_back = dequantize(*quantize(blocks, 8, TABLES), TABLES, torch.float32)
    quiet_back = dequantize(*quantize(quiet, 8, TABLES), TABLES, torch.float32)
    loud_back[:, :, 0, ..., 7] = 0
    loud_back[:, :, 1, 2] = 0
    assert torch.equal(loud_back, quiet_back)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 2 * LARGEST])
@pytest.mark.parametrize("which", [0, 1])
def test_what_cannot_be_kept_is_marked(bad: float, which: int) -> None:
    """One number that is not finite, or too large, gives its scale the code that says so."""
    blocks = blocks_of(5)
    assert all((code != UNSOUND).all() for code in quantize(blocks, 4, TABLES)[1:])
    blocks[2, 1, which, 6, 1, 9] = bad
    codes = quantize(blocks, 4, TABLES)[1 + which]
    assert int((codes == UNSOUND).sum()) == 1


@pytest.mark.parametrize("number", [65280.0, -65504.0])
def test_the_largest_numbers_of_float16_stay_finite(number: float) -> None:
    """Rounded up, 127 steps of the last code are 65,536, which float16 does not have."""
    blocks = torch.full((1, 1, 2, 16, 1, 64), number, dtype=torch.float16)
    found = dequantize(*quantize(blocks, 16, TABLES), TABLES, torch.float16)
    assert (found.float() - number).abs().max() <= 259


def test_parking_again_and_again_does_not_drift() -> None:
    """Twenty round trips cost little more than one: what came back lies on the grid already.

    Only where a largest number has just sunk below its step's edge, the grid changes once.
    """
    blocks = blocks_of(6, dtype=torch.bfloat16)
    now, errors = blocks, []
    for _ in range(20):
        now = dequantize(*quantize(now, 8, TABLES), TABLES, torch.bfloat16)
        errors.append(float((now.float() - blocks.float()).square().mean().sqrt()))
    assert errors[-1] <= 1.1 * errors[0]
    assert errors[-1] == errors[-2]


@pytest.mark.parametrize(
    ("group", "dim", "together"),
    [
        (16, 64, 32),
        (16, 128, 32),
        (8, 64, 16),
        (1, 64, 16),
        (16, 80, 80),
        (16, 16, 16),
        (4, 24, 24),
    ],
)
def test_values_share_a_scale_over_twice_as_many_channels(
    group: int, dim: int, together: int
) -> None:
    """As far as the head can be cut into pieces that a vector register holds."""
    assert value_group(group, dim) == together


def test_input_is_left_as_it_was() -> None:
    blocks = blocks_of(7)
    before = blocks.clone()
    quantize(blocks, 8, TABLES)
    assert torch.equal(blocks, before)


def test_zeros_and_tiny_numbers_come_back_as_zeros() -> None:
    """Below the smallest step nothing is lost but what is smaller than 1e-7."""
    zeros = torch.zeros(1, 1, 2, 8, 2, 16)
    tiny = zeros + step_of(0) / 4
    for blocks in (zeros, tiny):
        back = dequantize(*quantize(blocks, 8, TABLES), TABLES, torch.float32)
        assert torch.equal(back, zeros)


def test_steps_double_every_eighth_code() -> None:
    assert step_of(16) == 2 * step_of(8)
    assert step_of(254) * 127 == LARGEST
    assert step_of(0) < 2e-7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_the_same_bytes(dtype: torch.dtype) -> None:
    """Where a context was parked must not be seen in an answer (law L32)."""
    blocks = blocks_of(8, dtype=dtype)
    tables = step_tables(torch.device("cuda"))
    here = quantize(blocks, 4, TABLES)
    there = quantize(blocks.cuda(), 4, tables)
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours, theirs.cpu())
    back = dequantize(*there, tables, dtype).cpu()
    assert torch.equal(back, dequantize(*here, TABLES, dtype))
