"""The host's KV blocks by number: free, or owned by just one parked request; it knows no bytes."""

from __future__ import annotations

from collections.abc import Sequence


class HostPool:
    """Blocks 1..num_blocks of the host's memory; nothing is shared there."""

    __slots__ = ("_free", "num_blocks")

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 0
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out now."""
        return len(self._free)

    def allocate(self, count: int) -> tuple[int, ...] | None:
        """Take `count` blocks; None, and nothing changed, if too few (law L4)."""
        if count > len(self._free):
            return None
        if not count:
            return ()
        taken = tuple(self._free[-count:])
        del self._free[-count:]
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back."""
        self._free.extend(blocks)
        assert len(self._free) <= self.num_blocks, "a host block was freed twice"

    def check_integrity(self, owned: Sequence[int]) -> None:
        """Assert law L3 for the host: every block is free or owned once, and none is lost."""
        assert sorted([*self._free, *owned]) == list(range(1, self.num_blocks + 1))
