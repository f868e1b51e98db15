"""Moves KV blocks between device and host with the compiled kernel; it knows ids and no request."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.model.host_cache import HostCache
from engine.model.kernels.native import NativeKernels
from engine.model.kv_cache import KVCache
from engine.model.quantize import step_tables, value_group

_INT8_CODES = {torch.float32: 0, torch.bfloat16: 1}


def supports(cache: KVCache, host: HostCache) -> bool:
    """True if the kernel moves blocks of this device, type, head size and format."""
    if cache.device.type != "cpu" or cache.shape.dtype.itemsize not in (2, 4):
        return False
    return host.form.is_exact or (
        cache.shape.dtype in _INT8_CODES and cache.shape.head_dim % 16 == 0
    )


class NativeMover:
    """The compiled kernel as an engine.model.swap.BlockMover: one pass, one thread, no staging."""

    def __init__(self, cache: KVCache, host: HostCache, native: NativeKernels) -> None:
        assert supports(cache, host)
        shape = cache.shape
        assert cache.data.is_contiguous()
        self._cache = cache  # held because the kernel is given addresses
        self._host = host
        self._tables = step_tables(cache.device)
        # The kernel compares 16 edges at once; no number is above NaN, read as an integer.
        self._edges = torch.cat([self._tables.edges, torch.full((16,), float("nan"))])
        self._pack = native.functions["tg_pack_blocks"]
        self._unpack = native.functions["tg_unpack_blocks"]
        self._source = (
            _INT8_CODES.get(shape.dtype, 1),
            cache.data.data_ptr(),
            cache.data.stride(1),
            2 * shape.num_layers,
            cache.block_size,
            shape.num_kv_heads * shape.head_dim,
            0 if host.form.is_exact else host.form.group,
            value_group(host.form.group, shape.head_dim),
        )
        self._rows = (host.data.data_ptr(), host.block_bytes)

    def move_out(self, blocks: Sequence[int], host_blocks: Sequence[int], num_tokens: int) -> bool:
        """See BlockMover."""
        ids, rows = self._ids(blocks, host_blocks)
        status = self._pack(
            *self._source,
            ids.data_ptr(),
            *self._rows,
            rows.data_ptr(),
            len(blocks),
            num_tokens,
            self._tables.inverses.data_ptr(),
            self._edges.data_ptr(),
        )
        return not status

    def move_back(self, host_blocks: Sequence[int], blocks: Sequence[int]) -> None:
        """See BlockMover."""
        ids, rows = self._ids(blocks, host_blocks)
        self._unpack(
            *self._source,
            ids.data_ptr(),
            *self._rows,
            rows.data_ptr(),
            len(blocks),
            self._tables.steps.data_ptr(),
        )

    def _ids(
        self, blocks: Sequence[int], host_blocks: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both as int64; the kernel checks no bounds."""
        assert len(blocks) == len(host_blocks)
        assert 0 < min(blocks) <= max(blocks) <= self._cache.num_blocks
        assert 0 < min(host_blocks) <= max(host_blocks) <= self._host.num_blocks
        return torch.tensor(blocks), torch.tensor(host_blocks)
