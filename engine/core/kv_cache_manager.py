"""Which request holds which blocks, on device and host: find a prefix, admit, grow, park, free.

It knows requests by id, their token ids and their counters, and no policy. Every change is
checked first and then done whole (law L4): a method that answers False has changed nothing.

A full block is named by a digest of its tokens, of the whole chain of blocks before it and of its
tenant's salt, so equal digests mean equal contexts of one tenant. (Python's own `hash` would not
do: it is 64 bits wide, and a collision would show one user's context to another.)

A parked request's context lies in host blocks. While a copy is under way it holds both sides, and
neither is handed out before the step that carries it is over.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterable, Sequence

from engine.core.batch import Copy
from engine.core.block_pool import BlockPool
from engine.core.host_pool import HostPool
from engine.core.request import Request

DIGEST_BYTES = 32


class _Holding:
    """What one live request holds: its block tables and the digests of its full blocks."""

    __slots__ = ("blocks", "digests", "host_blocks", "num_published")

    def __init__(self, digests: list[bytes]) -> None:
        self.blocks: tuple[int, ...] = ()  # replaced only when it changes: executors cache by it
        self.host_blocks: tuple[int, ...] = ()
        self.digests = digests
        self.num_published = 0


class KVCacheManager:
    """The block tables of all live requests over one pool."""

    __slots__ = (
        "_fenced",
        "_fenced_host",
        "_holdings",
        "_host",
        "_pool",
        "block_size",
        "enable_prefix_cache",
    )

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_cache: bool,
        num_host_blocks: int = 0,
    ) -> None:
        assert block_size > 0
        self.block_size = block_size
        self.enable_prefix_cache = enable_prefix_cache
        self._pool = BlockPool(num_blocks)
        self._holdings: dict[str, _Holding] = {}
        self._fenced: list[tuple[int, ...]] = []
        self._host = HostPool(num_host_blocks)
        self._fenced_host: list[tuple[int, ...]] = []

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
        return sum(len(blocks) for blocks in (*self._fenced, *self._fenced_host))

    @property
    def num_free_host(self) -> int:
        """Host blocks that can take a parked context now."""
        return self._host.num_free

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
        if self.num_missing(prefix, num_positions, num_spare) > 0:
            return False
        num_new = max(0, self.blocks_for(num_positions) - len(prefix))
        self._pool.share(prefix)
        new = self._pool.allocate(num_new)
        assert new is not None
        holding.blocks = (*prefix, *new)
        holding.num_published = len(prefix)
        return True

    def num_missing(self, prefix: Sequence[int], num_positions: int, num_spare: int) -> int:
        """Return how many free blocks too few there are to admit; at most 0 where it fits."""
        num_new = max(0, self.blocks_for(num_positions) - len(prefix))
        return num_new + self._pool.count_free(prefix) + num_spare - self._pool.num_free

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

    def num_freed_by(self, request: Request, but: Collection[int] = ()) -> int:
        """Return how many blocks releasing this request would free, not counting those in `but`."""
        blocks = self._holdings[request.id].blocks
        if but:
            blocks = tuple([block for block in blocks if block not in but])
        return sum(map(self._pool.has_sole_owner, blocks))

    def release(self, request: Request) -> None:
        """Give back every block of a request that stays known, on device and host.

        It will be computed again.
        """
        holding = self._holdings[request.id]
        self._pool.release(holding.blocks)
        self._host.release(holding.host_blocks)
        holding.blocks = holding.host_blocks = ()
        holding.num_published = 0

    # Parking: a copy begins with `park` or `bring_back` and is over with `lift_fence`

    def can_park(self, request: Request) -> bool:
        """True where the host has room for this request's context."""
        return 0 < self.blocks_for(request.num_computed) <= self._host.num_free

    def park(self, request: Request) -> Copy:
        """Give up the device blocks for host blocks; the former stay fenced while they are read."""
        holding = self._holdings[request.id]
        count = self.blocks_for(request.num_computed)
        host_blocks = self._host.allocate(count)
        assert host_blocks is not None, "ask can_park first"
        self._fenced.append(holding.blocks)
        copy = Copy(request.id, holding.blocks[:count], host_blocks)
        holding.blocks, holding.host_blocks = (), host_blocks
        holding.num_published = 0
        return copy

    def bring_back(self, request: Request, num_positions: int) -> Copy | None:
        """Begin a parked request's return into blocks for `num_positions`; None if too few free."""
        holding = self._holdings[request.id]
        assert holding.host_blocks, f"{request.id} is not parked"
        blocks = self._pool.allocate(self.blocks_for(num_positions))
        if blocks is None:
            return None
        holding.blocks = blocks
        return Copy(request.id, blocks[: len(holding.host_blocks)], holding.host_blocks)

    def has_returned(self, request: Request) -> None:
        """The copy back is over: the host blocks are free."""
        holding = self._holdings[request.id]
        self._host.release(holding.host_blocks)
        holding.host_blocks = ()

    def forget(self, request: Request, *, fenced: bool) -> None:
        """End a request. Fenced: a dispatched step still uses its blocks, so hold them back."""
        holding = self._holdings.pop(request.id)
        if fenced:
            self._fenced.append(holding.blocks)
            self._fenced_host.append(holding.host_blocks)
        else:
            self._pool.release(holding.blocks)
            self._host.release(holding.host_blocks)

    def lift_fence(self) -> None:
        """The dispatched step is over: free what was held back for it (law L5)."""
        for blocks in self._fenced:
            self._pool.release(blocks)
        self._fenced.clear()
        for blocks in self._fenced_host:
            self._host.release(blocks)
        self._fenced_host.clear()

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
        self,
        live: Iterable[Request],
        dispatched: Iterable[tuple[int, ...]],
        dispatched_host: Iterable[tuple[int, ...]] = (),
    ) -> None:
        """Assert laws L3, L5 and L6 by walking every table, independently of all counters.

        `dispatched` are the tables that a dispatched step reads and writes, on device and host.
        """
        owners = [0] * (self.num_blocks + 1)
        host_owned = [block for blocks in self._fenced_host for block in blocks]
        requests = {request.id: request for request in live}
        assert requests.keys() == self._holdings.keys(), "a gone request is remembered, or one lost"
        for request_id, holding in self._holdings.items():
            request = requests[request_id]
            assert len(set(holding.blocks)) == len(holding.blocks), "one block twice in a table"
            num_held = len(holding.blocks) or len(holding.host_blocks)
            assert request.num_computed <= num_held * self.block_size
            host_owned += holding.host_blocks
            assert holding.num_published * self.block_size <= request.num_computed
            for block in holding.blocks:
                owners[block] += 1
        for blocks in self._fenced:
            for block in blocks:
                owners[block] += 1
        for table in dispatched:
            assert all(owners[block] for block in table), "a block in use by a step is free"
        self._pool.check_integrity(owners)
        for table in dispatched_host:
            assert set(table) <= set(host_owned), "a host block in use by a copy is free"
        self._host.check_integrity(host_owned)


def _root(salt: str) -> bytes:
    """Return the parent of a tenant's first blocks; distinct salts share nothing."""
    return hashlib.blake2b(
        salt.encode(), digest_size=DIGEST_BYTES, person=b"tiergate-salt"
    ).digest()
