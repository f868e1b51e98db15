"""The book of copies under way: begun and not reported yet, each by its number, both directions.

It knows who is carried and what is held back until the copy is over, and neither pools nor bytes.
An executor may end copies late and in any order.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.core.batch import Copy
from engine.core.request import Request


class CopyUnderWay:
    """One copy that was begun.

    `blocks` and `host_blocks` are those that belong to nobody but the copy: what a parked request
    gave up, and all of a request that ended meanwhile, an orphan's. They are free once it is over.
    """

    __slots__ = ("blocks", "copy", "host_blocks", "is_orphan", "is_return", "request")

    def __init__(self, copy: Copy, request: Request, *, is_return: bool) -> None:
        self.copy = copy
        self.request = request
        self.is_return = is_return
        self.is_orphan = False
        self.blocks: tuple[int, ...] = ()
        self.host_blocks: tuple[int, ...] = ()


class CopyBook:
    """Who is on the way, and what has been carried so far; tokens are those of whole contexts."""

    __slots__ = (
        "_last_number",
        "_under_way",
        "copied_in_total",
        "copied_out_total",
        "lost_total",
        "num_held_blocks",
        "num_held_host_blocks",
        "num_in",
        "num_out",
        "tokens_in",
        "tokens_out",
    )

    def __init__(self) -> None:
        self._under_way: dict[int, CopyUnderWay] = {}
        self._last_number = 0
        self.num_out = 0
        self.num_in = 0
        self.tokens_out = 0  # under way to the host
        self.tokens_in = 0
        self.num_held_blocks = 0  # references to device blocks that only copies hold
        self.num_held_host_blocks = 0
        self.copied_out_total = 0  # tokens that arrived
        self.copied_in_total = 0
        self.lost_total = 0  # copies

    def __len__(self) -> int:
        return len(self._under_way)

    def __iter__(self) -> Iterator[CopyUnderWay]:
        return iter(self._under_way.values())

    @property
    def copied_total(self) -> int:
        """Tokens whose context arrived, on the host or back on the device."""
        return self.copied_out_total + self.copied_in_total

    def numbers(self) -> list[int]:
        """Return the numbers of all copies under way, the oldest first."""
        return list(self._under_way)

    def begin(
        self,
        request: Request,
        block_ids: tuple[int, ...],
        host_block_ids: tuple[int, ...],
        *,
        is_return: bool,
    ) -> Copy:
        """Enter a copy of a request that has none under way; returns it with a new number."""
        assert not request.copy_number, f"{request.id} is carried already"
        self._last_number += 1
        number, num_tokens = self._last_number, request.num_computed
        copy = Copy(request.id, block_ids, host_block_ids, number, num_tokens)
        entry = CopyUnderWay(copy, request, is_return=is_return)
        self._under_way[copy.number] = entry
        request.copy_number, request.is_returning = copy.number, is_return
        if is_return:
            self.num_in += 1
            self.tokens_in += entry.copy.num_tokens
        else:
            self.num_out += 1
            self.tokens_out += entry.copy.num_tokens
        return copy

    def hold(self, number: int, blocks: tuple[int, ...], host_blocks: tuple[int, ...]) -> None:
        """Leave blocks that their request gives up to the copy that still uses them."""
        entry = self._under_way[number]
        entry.blocks += blocks
        entry.host_blocks += host_blocks
        self.num_held_blocks += len(blocks)
        self.num_held_host_blocks += len(host_blocks)

    def abandon(
        self, request: Request, blocks: tuple[int, ...], host_blocks: tuple[int, ...]
    ) -> None:
        """The carried request ended: its copy goes on, and keeps all that it held."""
        self.hold(request.copy_number, blocks, host_blocks)
        self._under_way[request.copy_number].is_orphan = True
        request.copy_number, request.is_returning = 0, False

    def end(self, number: int, *, is_lost: bool) -> CopyUnderWay:
        """Strike a copy out, arrived or lost; its request, if live, is carried no more."""
        entry = self._under_way.pop(number, None)
        assert entry is not None, f"copy {number} is not under way"
        if not entry.is_orphan:
            entry.request.copy_number, entry.request.is_returning = 0, False
        self.num_held_blocks -= len(entry.blocks)
        self.num_held_host_blocks -= len(entry.host_blocks)
        if entry.is_return:
            self.num_in -= 1
            self.tokens_in -= entry.copy.num_tokens
        else:
            self.num_out -= 1
            self.tokens_out -= entry.copy.num_tokens
        if is_lost:
            self.lost_total += 1
        elif entry.is_return:
            self.copied_in_total += entry.copy.num_tokens
        else:
            self.copied_out_total += entry.copy.num_tokens
        return entry
