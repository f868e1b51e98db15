"""Which request holds which blocks, on device and host: find a prefix, admit, grow, park, free.

It knows requests by id, their token ids and their counters, and no policy. Every change is
checked first and then done whole (law L4): a method that answers False has changed nothing.

A full block is named by a digest of its tokens, of the whole chain of blocks before it and of its
tenant's salt, so equal digests mean equal contexts of one tenant. (Python's own `hash` would not
do: it is 64 bits wide, and a collision would show one user's context to another.)

A parked request's context lies in host blocks. A copy begins with `park` or `bring_back` and is
over with `end_copy`; until then neither of its sides is handed out, whatever its request becomes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from engine.core.batch import Copy
from engine.core.block_pool import BlockPool
from engine.core.copies import CopyBook, CopyUnderWay
from engine.core.host_pool import HostPool
from engine.core.request import Request

DIGEST_BYTES = 32


class _Holding:
    """What one live request holds: its block tables and the digests of its full blocks."""

    __slots__ = ("blocks", "digests", "host_blocks", "is_exact", "num_published")

    def __init__(self, digests: list[bytes]) -> None:
        self.blocks: tuple[int, ...] = ()  # replaced only when it changes: executors cache by it
        self.host_blocks: tuple[int, ...] = ()
        self.digests = digests
        self.num_published = 0
        self.is_exact = True  # what the blocks hold is what computing it would give


class KVCacheManager:
    """The block tables of all live requests over one pool."""

    __slots__ = (
        "_fenced",
        "_holdings",
        "_host",
        "_host_is_exact",
        "_pool",
        "block_size",
        "copies",
        "enable_prefix_cache",
    )

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_cache: bool,
        num_host_blocks: int = 0,
        host_is_exact: bool = True,
    ) -> None:
        assert block_size > 0
        self.block_size = block_size
        self.enable_prefix_cache = enable_prefix_cache
        self._pool = BlockPool(num_blocks)
        self._holdings: dict[str, _Holding] = {}
        self._fenced: list[tuple[int, ...]] = []
        self._host = HostPool(num_host_blocks)
        self._host_is_exact = host_is_exact
        self.copies = CopyBook()

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
        """Block references held back until a dispatched step or a copy is over, on both sides."""
        copies = self.copies
        of_step = sum([len(blocks) for blocks in self._fenced])
        return of_step + copies.num_held_blocks + copies.num_held_host_blocks

    @property
    def num_coming(self) -> int:
        """About how many blocks the copies under way will free: shared ones are counted too."""
        return self.copies.num_held_blocks

    def count_coming(self) -> int:
        """Return how many blocks become free when all copies under way are over."""
        if not self.copies.num_held_blocks:
            return 0
        return self._pool.count_freed(Counter(b for copy in self.copies for b in copy.blocks))

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

    def tables(self, requests: Iterable[Request]) -> list[tuple[int, ...]]:
        """Return the tables of many requests (see `block_ids`)."""
        holdings = self._holdings
        return [holdings[request.id].blocks for request in requests]

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
        if num_full <= holding.num_published or not holding.is_exact:
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
        assert not request.copy_number, f"{request.id} is being carried"
        holding = self._holdings[request.id]
        self._pool.release(holding.blocks)
        self._host.release(holding.host_blocks)
        holding.blocks = holding.host_blocks = ()
        holding.num_published = 0
        holding.is_exact = True

    # Parking

    def can_park(self, request: Request) -> bool:
        """True where the host has room for this request's context."""
        return 0 < self.blocks_for(request.num_computed) <= self._host.num_free

    def park(self, request: Request) -> Copy:
        """Give up the device blocks for host blocks; the copy holds the former while it reads."""
        holding = self._holdings[request.id]
        count = self.blocks_for(request.num_computed)
        host_blocks = self._host.allocate(count)
        assert host_blocks is not None, "ask can_park first"
        copy = self.copies.begin(request, holding.blocks[:count], host_blocks, is_return=False)
        self.copies.hold(copy.number, holding.blocks, ())
        holding.blocks, holding.host_blocks = (), host_blocks
        holding.num_published = 0
        return copy

    def bring_back(self, request: Request, num_positions: int) -> Copy | None:
        """Begin a parked request's return into blocks for `num_positions`; None if too few free."""
        holding = self._holdings[request.id]
        assert holding.host_blocks, f"{request.id} is not parked"
        assert not request.copy_number, f"{request.id} is not there yet"
        blocks = self._pool.allocate(self.blocks_for(num_positions))
        if blocks is None:
            return None
        holding.blocks = blocks
        count = len(holding.host_blocks)
        return self.copies.begin(request, blocks[:count], holding.host_blocks, is_return=True)

    def end_copy(self, number: int, *, is_lost: bool) -> CopyUnderWay:
        """A copy is over: free what it held back, and the host's side of one that came back.

        A lost one leaves a live request's blocks with it: `release` gives them back.
        """
        ended = self.copies.end(number, is_lost=is_lost)
        self._pool.release(ended.blocks)
        self._host.release(ended.host_blocks)
        if ended.is_return and not is_lost and not ended.is_orphan:
            holding = self._holdings[ended.request.id]
            self._host.release(holding.host_blocks)
            holding.host_blocks = ()
            holding.is_exact = self._host_is_exact and holding.is_exact
        return ended

    def forget(self, request: Request, *, fenced: bool) -> None:
        """End a request; a copy under way keeps its blocks until it is over.

        Fenced: the dispatched step still uses them, so hold them back as well.
        """
        holding = self._holdings.pop(request.id)
        if request.copy_number:
            self.copies.abandon(request, holding.blocks, holding.host_blocks)
        elif fenced:
            assert not holding.host_blocks, "a step computed what lies on the host"
            self._fenced.append(holding.blocks)
        else:
            self._pool.release(holding.blocks)
            self._host.release(holding.host_blocks)

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
        self, live: Iterable[Request], dispatched: Iterable[tuple[int, ...]] | None
    ) -> None:
        """Assert laws L3, L5 and L6 by walking every table, independently of all counters.

        `dispatched` are the tables that a dispatched step reads and writes; None: no step is out.
        """
        owners = [0] * (self.num_blocks + 1)
        host_owned: list[int] = []
        requests = {request.id: request for request in live}
        assert requests.keys() == self._holdings.keys(), "a gone request is remembered, or one lost"
        for request_id, holding in self._holdings.items():
            request = requests[request_id]
            assert len(set(holding.blocks)) == len(holding.blocks), "one block twice in a table"
            num_held = len(holding.blocks) or len(holding.host_blocks)
            assert request.num_computed <= num_held * self.block_size
            assert request.is_returning == bool(holding.blocks and holding.host_blocks)
            host_owned += holding.host_blocks
            assert holding.num_published * self.block_size <= request.num_computed
            for block in holding.blocks:
                owners[block] += 1
        for blocks in self._fenced:
            for block in blocks:
                owners[block] += 1
        for entry in self.copies:
            for block in entry.blocks:
                owners[block] += 1
            host_owned += entry.host_blocks
        self._check_copies(owners, host_owned)
        assert dispatched is not None or not self._fenced, "a fence without a dispatched step"
        for table in dispatched or ():
            assert all(owners[block] for block in table), "a block in use by a step is free"
        self._pool.check_integrity(owners)
        self._host.check_integrity(host_owned)

    def _check_copies(self, owners: Sequence[int], host_owned: Collection[int]) -> None:
        """Law L5: both sides of every copy under way have an owner; where it writes, just one."""
        held = 0
        for entry in self.copies:
            held += len(entry.blocks)
            for block in entry.copy.block_ids:
                assert owners[block] == 1 if entry.is_return else owners[block] >= 1
            assert set(entry.copy.host_block_ids) <= set(host_owned), "a copy's host block is free"
        assert held == self.copies.num_held_blocks
        assert self.copies.num_in + self.copies.num_out == len(self.copies)


def _root(salt: str) -> bytes:
    """Return the parent of a tenant's first blocks; distinct salts share nothing."""
    return hashlib.blake2b(
        salt.encode(), digest_size=DIGEST_BYTES, person=b"tiergate-salt"
    ).digest()
