"""The paged KV cache's memory, a K and a V pool per layer; it does not know who owns a block.

Layout (token-major, as paged attention kernels want it; PagedAttention, arXiv 2309.06180):

    data [num_layers, 2, num_blocks + 1, block_size, Hkv, D]
                      K, V                                   block 0 is padding, never a request's
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token leaves behind in the cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V over all layers."""
        per_layer = 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        return self.num_layers * per_layer

    def blocks_in(self, num_bytes: int, block_size: int) -> int:
        """Return how many usable blocks `num_bytes` hold, beside the padding block."""
        return num_bytes // (self.bytes_per_token * block_size) - 1


class KVCache:
    """`num_blocks` usable blocks with ids 1..num_blocks, and the padding block 0.

    `keys[layer]` and `values[layer]` are flat views [(num_blocks + 1) * block_size, Hkv, D],
    indexed by slot = block * block_size + offset. The memory is touched at once, so that a machine
    that cannot hold it says so at the start and not under load.
    """

    def __init__(
        self, shape: KVShape, num_blocks: int, block_size: int, device: torch.device
    ) -> None:
        assert num_blocks > 0, f"no room for a block: {num_blocks}"
        assert block_size > 0, f"block size {block_size}"
        self.shape = shape
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = device
        self.data = torch.zeros(
            (shape.num_layers, 2, num_blocks + 1, block_size, shape.num_kv_heads, shape.head_dim),
            dtype=shape.dtype,
            device=device,
        )
        flat = self.data.flatten(2, 3)
        self.keys = [flat[layer, 0] for layer in range(shape.num_layers)]
        self.values = [flat[layer, 1] for layer in range(shape.num_layers)]

    @property
    def num_bytes(self) -> int:
        """Memory held by the pools."""
        return self.data.numel() * self.data.element_size()

    def key_blocks(self, layer: int) -> torch.Tensor:
        """Return the keys of `layer` as [num_blocks + 1, block_size, Hkv, D]."""
        return self.data[layer, 0]

    def value_blocks(self, layer: int) -> torch.Tensor:
        """Return the values of `layer` as [num_blocks + 1, block_size, Hkv, D]."""
        return self.data[layer, 1]
