"""The device's KV blocks by number: free or owned, how often, under which prefix they are found.

It knows block ids and digests, not requests, tokens or tensors. A block stands in one of two
places (law L3): owned, with a reference count above zero, or free. A free block may still hold a
prefix that somebody can come back for, so the free list is kept in eviction order:

    next to be reused                                          last to be reused
    | nothing findable | ... tail of an old prefix, head of it | ... of a newer prefix |

Which blocks are findable is told by `publish`, after their keys and values really exist.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence


class BlockPool:
    """Blocks 1..num_blocks; block 0 is the executor's padding and never handed out."""

    __slots__ = ("_block_of", "_free", "_key_of", "_references", "num_blocks")

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        # An OrderedDict is a linked list with a map into it: O(1) at both ends and in the middle.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks + 1))
        self._references = [0] * (num_blocks + 1)
        self._key_of: list[bytes | None] = [None] * (num_blocks + 1)
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out now, findable ones included."""
        return len(self._free)

    @property
    def num_findable(self) -> int:
        """Blocks whose content can be found by its prefix, owned or free."""
        return len(self._block_of)

    def allocate(self, count: int) -> tuple[int, ...] | None:
        """Take `count` blocks in eviction order; None, and nothing changed, if too few (law L4)."""
        free, references, key_of = self._free, self._references, self._key_of
        if count > len(free):
            return None
        taken = tuple([free.popitem(last=False)[0] for _ in range(count)])
        for block in taken:
            references[block] = 1
            key = key_of[block]
            if key is not None:
                del self._block_of[key]
                key_of[block] = None
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add one owner to each block; a free one leaves the free list with its content."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take one owner from each block of a table; those without any become free.

        Handed a table in the order of its positions, so that of one prefix the tail is evicted
        before the head: a head without its tail is still useful, a tail without its head is lost.
        """
        free, references, key_of = self._free, self._references, self._key_of
        for block in reversed(blocks):
            left = references[block] - 1
            assert left >= 0, f"block {block} was freed twice"
            references[block] = left
            if left == 0:
                free[block] = None
                if key_of[block] is None:
                    free.move_to_end(block, last=False)

    def publish(self, block: int, key: bytes) -> None:
        """Make an owned block findable under `key`; the first block of a content stays the one."""
        assert self._references[block] > 0, f"block {block} has no owner"
        if key not in self._block_of:
            assert self._key_of[block] is None, f"block {block} already has a content"
            self._block_of[key] = block
            self._key_of[block] = key

    def find(self, keys: Iterable[bytes]) -> tuple[int, ...]:
        """Return the blocks of the longest findable run from the first key on."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return tuple(found)

    def count_free(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` that are in the free list now."""
        references = self._references
        return sum(references[block] == 0 for block in blocks)

    def count_freed(self, owners: Mapping[int, int]) -> int:
        """Count the blocks that become free once each of these gave up that many ownerships."""
        references = self._references
        return sum(references[block] == count for block, count in owners.items())

    def has_sole_owner(self, block: int) -> bool:
        """True where releasing this block once would free it."""
        return self._references[block] == 1

    def check_integrity(self, owners: Sequence[int]) -> None:
        """Assert laws L3 and L6; `owners[b]` is how many tables hold block b, counted outside."""
        assert len(owners) == self.num_blocks + 1
        assert owners[0] == 0, "the padding block has an owner"
        assert list(self._references) == list(owners), "references differ from the tables"
        free = list(self._free)
        assert len(free) == len(set(free))
        assert set(free) == {b for b in range(1, self.num_blocks + 1) if owners[b] == 0}
        assert {key: b for b, key in enumerate(self._key_of) if key is not None} == self._block_of
        kinds = [self._key_of[b] is not None for b in free]
        assert kinds == sorted(kinds), "a findable block would be reused before an empty one"
