"""Which request holds which blocks: find a known prefix, admit, grow, publish, free, fence.

It knows requests by id, their token ids and their counters, and no policy. Every change is
checked first and then done whole (law L4): a method that answers False has changed nothing.

A full block is named by a digest of its tokens, of the whole chain of blocks before it and of its
tenant's salt, so equal digests mean equal contexts of one tenant. (Python's own `hash` would not
do: it is 64 bits wide, and a collision would show one user's context to another.)
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

from engine.core.block_pool import BlockPool
from engine.core.request import Request

DIGEST_BYTES = 32


class _Holding:
    """What one live request holds: its block table and the digests of its full blocks."""

    __slots__ = ("blocks", "digests", "num_published")

    def __init__(self, digests: list[bytes]) -> None:
        self.blocks: tuple[int, ...] = ()  # replaced only when it changes: executors cache by it
        self.digests = digests
        self.num_published = 0


class KVCacheManager:
    """The block tables of all live requests over one pool."""

    __slots__ = ("_fenced", "_holdings", "_pool", "block_size", "enable_prefix_cache")

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_cache: bool) -> None:
        assert block_size > 0
        self.block_size = block_size
        self.enable_prefix_cache = enable_prefix_cache
        self._pool = BlockPool(num_blocks)
        self._holdings: dict[str, _Holding] = {}
        self._fenced: list[tuple[int, ...]] = []

    @property
    def num_blocks(self) -> int:
        """All usable blocks."""
        return self._pool.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out now; fenced ones cannot."""
        return self._pool.num_free

    @property
    def num_fenced(self) -> int:
        """Block references held back until the dispatched step is over."""
        return sum(len(blocks) for blocks in self._fenced)

    def blocks_for(self, num_positions: int) -> int:
        """Return how many blocks hold that many positions."""
        return -(-num_positions // self.block_size)

    def block_ids(self, request: Request) -> tuple[int, ...]:
        """Return the request's table: the same object for as long as it does not change."""
        return self._holdings[request.id].blocks

    def covers(self, request: Request, num_positions: int) -> bool:
        """True where the request's blocks hold that many positions already."""
        return num_positions <= len(self._holdings[request.id].blocks) * self.block_size

    def without_next_slot(self, requests: Iterable[Request]) -> list[Request]:
        """Return those whose blocks are full, so that their next token needs a block more."""
        holdings, size = self._holdings, self.block_size  # asked of every decode in every step
        return [r for r in requests if r.num_computed >= len(holdings[r.id].blocks) * size]

    def num_coverable(self, request: Request, num_new_blocks: int) -> int:
        """Return how many positions the table would cover with that many blocks more."""
        return (len(self._holdings[request.id].blocks) + num_new_blocks) * self.block_size

    def register(self, request: Request) -> None:
        """Begin to know a request; its prompt is hashed here, once, outside of any step."""
        assert request.id not in self._holdings
        digests = [] if not self.enable_prefix_cache else self._digests(request, [])
        self._holdings[request.id] = _Holding(digests)

    def find_prefix(self, request: Request) -> tuple[int, ...]:
        """Return the blocks that hold the beginning of the request's tokens already.

        Never all of its tokens: at least one must be computed for anything to be sampled.
        """
        limit = (request.num_tokens - 1) // self.block_size
        return self._pool.find(self._holdings[request.id].digests[:limit])

    def admit(
        self, request: Request, prefix: Sequence[int], num_positions: int, num_spare: int
    ) -> bool:
        """Give the request its found prefix and room for `num_positions` in all.

        False, and nothing changed, where fewer than `num_spare` blocks would stay free.
        """
        holding = self._holdings[request.id]
        assert not holding.blocks, f"{request.id} already holds blocks"
        num_new = max(0, self.blocks_for(num_positions) - len(prefix))
        if num_new + self._pool.count_free(prefix) + num_spare > self._pool.num_free:
            return False
        self._pool.share(prefix)
        new = self._pool.allocate(num_new)
        assert new is not None
        holding.blocks = (*prefix, *new)
        holding.num_published = len(prefix)
        return True

    def grow(self, request: Request, num_positions: int) -> bool:
        """Make room for `num_positions` in all; False, and nothing changed, if too few are free."""
        holding = self._holdings[request.id]
        num_new = self.blocks_for(num_positions) - len(holding.blocks)
        if num_new <= 0:
            return True
        new = self._pool.allocate(num_new)
        if new is None:
            return False
        holding.blocks += new
        return True

    def publish(self, request: Request) -> None:
        """Make every block that is full of computed tokens findable; call it after a step."""
        if not self.enable_prefix_cache:
            return
        holding = self._holdings[request.id]
        num_full = request.num_computed // self.block_size
        if num_full <= holding.num_published:
            return
        if num_full > len(holding.digests):
            self._digests(request, holding.digests)
        for index in range(holding.num_published, num_full):
            self._pool.publish(holding.blocks[index], holding.digests[index])
        holding.num_published = num_full

    def frees_any(self, request: Request) -> bool:
        """True where releasing this request would free at least one block now (law L14)."""
        # The last block is the one most likely to be its own.
        return any(map(self._pool.has_sole_owner, reversed(self._holdings[request.id].blocks)))

    def release(self, request: Request) -> None:
        """Give back every block of a request that stays known (it will be computed again)."""
        holding = self._holdings[request.id]
        self._pool.release(holding.blocks)
        holding.blocks = ()
        holding.num_published = 0

    def forget(self, request: Request, *, fenced: bool) -> None:
        """End a request. Fenced: a dispatched step still uses its blocks, so hold them back."""
        blocks = self._holdings.pop(request.id).blocks
        if fenced:
            self._fenced.append(blocks)
        else:
            self._pool.release(blocks)

    def lift_fence(self) -> None:
        """The dispatched step is over: free what was held back for it (law L5)."""
        for blocks in self._fenced:
            self._pool.release(blocks)
        self._fenced.clear()

    def _digests(self, request: Request, digests: list[bytes]) -> list[bytes]:
        """Append to `digests` those of all further blocks that the known tokens fill."""
        size, done = self.block_size, len(digests)
        num_full = request.num_tokens // size
        raw = array("I", request.tokens(done * size, num_full * size)).tobytes()
        step = len(raw) // (num_full - done) if num_full > done else 1
        parent = digests[-1] if digests else _root(request.order.cache_salt)
        for at in range(0, len(raw), step):
            parent = hashlib.blake2b(
                parent + raw[at : at + step], digest_size=DIGEST_BYTES
            ).digest()
            digests.append(parent)
        return digests

    def check_integrity(
        self, live: Iterable[Request], dispatched: Iterable[tuple[int, ...]]
    ) -> None:
        """Assert laws L3, L5 and L6 by walking every table, independently of all counters.

        `dispatched` are the tables that a dispatched step reads and writes.
        """
        owners = [0] * (self.num_blocks + 1)
        requests = {request.id: request for request in live}
        assert requests.keys() == self._holdings.keys(), "a gone request is remembered, or one lost"
        for request_id, holding in self._holdings.items():
            request = requests[request_id]
            assert len(set(holding.blocks)) == len(holding.blocks), "one block twice in a table"
            assert request.num_computed <= len(holding.blocks) * self.block_size
            assert holding.num_published * self.block_size <= request.num_computed
            for block in holding.blocks:
                owners[block] += 1
        for blocks in self._fenced:
            for block in blocks:
                owners[block] += 1
        for table in dispatched:
            assert all(owners[block] for block in table), "a block in use by a step is free"
        self._pool.check_integrity(owners)


def _root(salt: str) -> bytes:
    """Return the parent of a tenant's first blocks; distinct salts share nothing."""
    return hashlib.blake2b(
        salt.encode(), digest_size=DIGEST_BYTES, person=b"tiergate-salt"
    ).digest()
