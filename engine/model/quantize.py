"""KV blocks as eight-bit integers with one-byte scales, and back; it knows no pool and no copy.

Keys are scaled per channel over `group` tokens, values per token over neighbouring channels of a
head: key outliers live in channels, those of values in tokens (KIVI, arXiv 2402.02750). Zero is in
the middle: ranges that begin at the lowest number (asymmetric) need a second number per scale, and
at equal bytes, groups twice as large, they lower the error of the built-in model's keys from 0.43
to 0.37 %, which the values' own 0.6 % hides; the groups would then reach beyond their block.

A scale is a code: the place of its step in a fixed table, eight to the octave. So it takes a byte,
a block holds all that it needs to be read again, and every device finds the same code: no logarithm
is computed, only comparisons with the table, products and rounding to even, all of them exact or
correctly rounded in IEEE arithmetic. Code 255 says that a number was not finite or beyond LARGEST:
such a block is worth nothing.

    |x - x'| <= step / 2, and what rounding to the cache's own type adds    step <= max|x| / 116
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

UNSOUND = 255
LARGEST = 65536.0  # as far as float16 reaches
_PER_OCTAVE = 8
_MOST = 127  # of the integers: -127 to 127


def step_of(code: int) -> float:
    """Return the distance between two neighbouring values at a scale's code (0 to 254)."""
    return float(LARGEST / _MOST * 2.0 ** ((code - UNSOUND + 1) / _PER_OCTAVE))


@dataclass(frozen=True, slots=True, eq=False)
class StepTables:
    """The table of steps on one device, float32, by code; `edges` are the largest numbers each
    step reaches. Code 255 has a step of zero.
    """

    steps: torch.Tensor  # [256]
    inverses: torch.Tensor  # [256]
    edges: torch.Tensor  # [255], rising


def step_tables(device: torch.device) -> StepTables:
    """Return the tables; they are computed once, on the host, and copied: equal everywhere."""
    steps = [step_of(code) for code in range(UNSOUND)]
    return StepTables(
        torch.tensor([*steps, 0.0], dtype=torch.float32).to(device),
        torch.tensor([*(1.0 / step for step in steps), 0.0], dtype=torch.float32).to(device),
        torch.tensor([_MOST * step for step in steps], dtype=torch.float32).to(device),
    )


def value_group(group: int, dim: int) -> int:
    """Return over how many channels of a head of `dim` a value's scale reaches.

    Twice the tokens of a key's scale, in steps of 16: then both together cost three bytes for
    every 2 * group numbers of each, where the head allows it.
    """
    fitting = [size for size in range(16, dim, 16) if dim % size == 0 and size >= 2 * group]
    return fitting[0] if fitting else dim


def quantize(
    blocks: torch.Tensor, group: int, tables: StepTables
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return integers, the keys' codes and the values' codes of blocks [n, L, 2, B, Hkv, D].

    The integers are int8 of the same shape, the codes uint8 [n, L, B / group, Hkv, D] and
    [n, L, B, Hkv, D / value_group]. Zeros stay zeros, so positions without a token should be zero
    beforehand.
    """
    numbers = blocks.to(torch.float32, copy=True)
    keys = _grouped(numbers[:, :, 0], group)
    values = _split(numbers[:, :, 1], value_group(group, blocks.shape[-1]))
    key_codes = _codes(keys.abs().amax(3), tables)
    value_codes = _codes(values.abs().amax(-1), tables)
    integers = torch.empty(blocks.shape, dtype=torch.int8, device=blocks.device)
    keys = keys.mul_(tables.inverses[key_codes][:, :, :, None]).round_()
    integers[:, :, 0] = keys.flatten(2, 3)
    integers[:, :, 1] = values.mul_(tables.inverses[value_codes][..., None]).round_().flatten(4)
    return integers, key_codes.to(torch.uint8), value_codes.to(torch.uint8)


def dequantize(
    integers: torch.Tensor,
    key_codes: torch.Tensor,
    value_codes: torch.Tensor,
    tables: StepTables,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the numbers of `quantize` as [n, L, 2, B, Hkv, D] of `dtype`; codes are below 255."""
    numbers = integers.float()
    keys = _grouped(numbers[:, :, 0], integers.shape[3] // key_codes.shape[2])
    keys.mul_(tables.steps[key_codes.int()][:, :, :, None])
    values = _split(numbers[:, :, 1], integers.shape[-1] // value_codes.shape[-1])
    values.mul_(tables.steps[value_codes.int()][..., None])
    if dtype == torch.float16:  # its largest numbers are rounded up to LARGEST, which it lacks
        largest = torch.finfo(dtype).max
        numbers.clamp_(-largest, largest)
    return numbers.to(dtype)


def _grouped(keys: torch.Tensor, group: int) -> torch.Tensor:
    """Return keys [n, L, B, Hkv, D] as a view [n, L, B / group, group, Hkv, D]."""
    n, layers, size, heads, dim = keys.shape
    return keys.view(n, layers, size // group, group, heads, dim)


def _split(values: torch.Tensor, group: int) -> torch.Tensor:
    """Return values [n, L, B, Hkv, D] as a view [n, L, B, Hkv, D / group, group]."""
    n, layers, size, heads, dim = values.shape
    return values.view(n, layers, size, heads, dim // group, group)


def _codes(largest: torch.Tensor, tables: StepTables) -> torch.Tensor:
    """Return per largest number the first code that reaches it; UNSOUND for NaN and what is above.

    int32, so that it can be used as an index.
    """
    return torch.bucketize(largest, tables.edges, out_int32=True)
