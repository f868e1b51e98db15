"""The host's memory for parked contexts, block by block; it does not know whose they are.

A block is one row of bytes that holds all it needs to be read again, in one of two formats:

    raw    [L, 2, B, Hkv, D] in the cache's own type, byte for byte
    int8   [L, 2, B, Hkv, D] integers, [L, B / group, Hkv, D] codes of the keys' scales,
           [L, B, Hkv, D / value group] codes of the values' scales (see quantize.py)

Bytes a token over all layers, with a cache of 2 bytes a number: raw 4 L Hkv D; int8
L Hkv D (2 + 1 / group + 1 / value group). For D = 64 or 128 a group of 16 tokens (and 32 channels)
makes that 1.91 times less, of 8 (and 16) 1.83 times. A cache of float32 gives twice these ratios.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.core.errors import ModelLoadError
from engine.model.kv_cache import KVShape
from engine.model.quantize import value_group

FORMATS = ("raw", "int8")


@dataclass(frozen=True, slots=True)
class HostFormat:
    """How a block is kept; `group` is how many tokens share the scales of their keys (int8)."""

    name: str = "raw"
    group: int = 16

    @property
    def is_exact(self) -> bool:
        """True where what comes back is what was copied out."""
        return self.name == "raw"

    def block_bytes(self, shape: KVShape, block_size: int) -> int:
        """Return the bytes of one block."""
        if self.is_exact:
            return shape.bytes_per_token * block_size
        numbers = shape.num_kv_heads * shape.head_dim * block_size
        scales = numbers // self.group + numbers // value_group(self.group, shape.head_dim)
        return shape.num_layers * (2 * numbers + scales)


def host_format(name: str, group: int, block_size: int) -> HostFormat:
    """Return the format that an operator asked for; ModelLoadError, one line, where there is none.

    A group never reaches beyond its block, so that every block can be read alone.
    """
    if name not in FORMATS:
        raise ModelLoadError(f"--host-kv-format {name} is unknown: use {' or '.join(FORMATS)}")
    if group < 1 or block_size % group:
        raise ModelLoadError(
            f"--host-kv-group {group} does not divide a block of {block_size} tokens"
        )
    return HostFormat(name, group)


class HostCache:
    """`num_blocks` blocks with ids 1..num_blocks as rows of `data` [num_blocks + 1, block_bytes].

    Row 0 is nobody's, as on the device. The memory is not touched before it is used: a policy that
    never parks costs none. `pinned` asks for memory that a GPU copies to and from beside its
    computing. With `checksums` (a debugging aid: it reads every byte once more, each way) a block
    that was changed by anybody else is recognised.
    """

    def __init__(
        self,
        shape: KVShape,
        num_blocks: int,
        block_size: int,
        form: HostFormat,
        *,
        pinned: bool = False,
        checksums: bool = False,
    ) -> None:
        assert num_blocks > 0, f"no room for a block: {num_blocks}"
        assert block_size % form.group == 0, f"group {form.group} in a block of {block_size}"
        self.shape = shape
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.form = form
        self.block_bytes = form.block_bytes(shape, block_size)
        self.data = torch.empty(
            (num_blocks + 1, self.block_bytes), dtype=torch.uint8, pin_memory=pinned
        )
        self._sums: dict[int, int] | None = {} if checksums else None

    @property
    def num_bytes(self) -> int:
        """Memory that the blocks take once all have been used."""
        return self.data.numel()

    @property
    def bytes_per_token(self) -> float:
        """Bytes of one token, its share of the scales included."""
        return self.block_bytes / self.block_size

    def seal(self, host_block_ids: Sequence[int]) -> None:
        """Remember the checksums of blocks that were just written, where that is asked for."""
        if self._sums is not None:
            for block in host_block_ids:
                self._sums[block] = self._checksum(block)

    def is_intact(self, host_block_ids: Sequence[int]) -> bool:
        """False if a block is known to have changed since it was sealed."""
        if self._sums is None:
            return True
        return all(self._sums.get(block) == self._checksum(block) for block in host_block_ids)

    def _checksum(self, block: int) -> int:
        return zlib.crc32(self.data[block].numpy().data)
