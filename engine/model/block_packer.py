"""Device blocks to rows of bytes and back, over all layers at once; it knows no host pool.

This is the way that runs on every device, with torch's own operators.
"""

from __future__ import annotations

import torch

from engine.model.host_cache import HostFormat
from engine.model.kv_cache import KVCache
from engine.model.quantize import UNSOUND, dequantize, quantize, step_tables, value_group


class TorchPacker:
    """Packs blocks of one cache in one format."""

    def __init__(self, cache: KVCache, form: HostFormat) -> None:
        self._cache = cache
        self._form = form
        self._tables = step_tables(cache.device)
        # [blocks, L, 2, B, Hkv, D]: a view in the order in which a host block keeps it.
        self._blocks = cache.data.permute(2, 0, 1, 3, 4, 5)
        shape, size = cache.shape, cache.block_size
        heads, dim = shape.num_kv_heads, shape.head_dim
        self._shape = tuple(self._blocks.shape[1:])
        self._key_codes = (shape.num_layers, size // form.group, heads, dim)
        per_head = dim // value_group(form.group, dim)
        self._value_codes = (shape.num_layers, size, heads, per_head)
        numbers = shape.num_layers * 2 * size * heads * dim
        keys = shape.num_layers * (size // form.group) * heads * dim
        self._cuts = (numbers, numbers + keys)

    def pack(self, blocks: torch.Tensor, out: torch.Tensor, num_tokens: int) -> None:
        """Write the device blocks `blocks` [n] (int64) into the rows `out` [n, block_bytes].

        `num_tokens` of their positions are in use, the first ones; in int8 the others become zero,
        so that what lies there has no part in any scale. A row that cannot be kept is found by
        `is_sound`.
        """
        found = self._blocks.index_select(0, blocks)
        if self._form.is_exact:
            out.copy_(found.view(torch.uint8).view(out.shape))
            return
        self._blank(found, num_tokens)
        integers, key_codes, value_codes = quantize(found, self._form.group, self._tables)
        first, second = self._cuts
        count = len(out)
        out[:, :first] = integers.view(torch.uint8).view(count, -1)
        out[:, first:second] = key_codes.view(count, -1)
        out[:, second:] = value_codes.view(count, -1)

    def unpack(self, packed: torch.Tensor, blocks: torch.Tensor) -> None:
        """Write the rows `packed` [n, block_bytes] into the device blocks `blocks` [n] (int64)."""
        count = len(packed)
        dtype = self._cache.shape.dtype
        if self._form.is_exact:
            found = packed.view(dtype).view(count, *self._shape)
        else:
            first, second = self._cuts
            found = dequantize(
                packed[:, :first].view(torch.int8).reshape(count, *self._shape),
                packed[:, first:second].reshape(count, *self._key_codes),
                packed[:, second:].reshape(count, *self._value_codes),
                self._tables,
                dtype,
            )
        self._blocks[blocks] = found

    def is_sound(self, packed: torch.Tensor) -> bool:
        """False if rows in host memory hold a number that was not finite, or far too large."""
        if self._form.is_exact:
            return True
        return not bool((packed[:, self._cuts[0] :] == UNSOUND).any())

    def _blank(self, found: torch.Tensor, num_tokens: int) -> None:
        """Set the positions behind the first `num_tokens` of found [n, L, 2, B, Hkv, D] to zero."""
        size = self._cache.block_size
        full, rest = divmod(num_tokens, size)
        if full < len(found):
            found[full, :, :, rest:] = 0
            found[full + 1 :] = 0
