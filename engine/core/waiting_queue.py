"""Requests that wait, the best-ranked first; it knows their ranks, not who makes them.

A heap with lazy deletion: adding and taking cost O(log n), leaving from the middle O(1), and no
step ever looks at all who wait. A heap of mostly dead entries is set aside and cleared out from its
end, a few at a time: what is left of a heap without its last entries is a heap. So until all of the
living have moved there are two heaps, and the best of all is the better of two heads.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeAlias

from engine.core.policy import Rank
from engine.core.request import Request

RERANKED_PER_STEP = 16
# Taken from the heap set aside: by a refresh, which makes at most 2 * RERANKED_PER_STEP dead
# entries, and by each that leaves, where policies never refresh.
MOVED_PER_REFRESH = 96
MOVED_PER_LEAVING = 4

_Entry: TypeAlias = tuple[Rank, int, Request]  # the serial number keeps requests uncompared


class WaitingQueue:
    """A priority queue of requests by rank, with removal and bounded re-ranking."""

    __slots__ = ("_aside", "_entries", "_heap", "_next_serial", "num_prompt_tokens")

    def __init__(self) -> None:
        # A heap entry counts only while it is the one noted for its request.
        self._heap: list[_Entry] = []
        self._aside: list[_Entry] = []  # a heap too, that only shrinks
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._next_serial = 0
        self.num_prompt_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (entry[2] for entry in self._entries.values())

    def push(self, request: Request, rank: Rank) -> None:
        """Add a request that is not in the queue."""
        assert request.id not in self._entries
        self._enter(request, rank)
        self.num_prompt_tokens += request.num_prompt_tokens

    def discard(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        del self._entries[request.id]
        self.num_prompt_tokens -= request.num_prompt_tokens
        self._compact(MOVED_PER_LEAVING)

    def head(self) -> tuple[Rank, Request] | None:
        """Return the best-ranked request with its rank, without taking it."""
        best = self._first(self._heap)
        if self._aside:
            other = self._first(self._aside)
            # Serial numbers differ, so requests are never compared.
            if best is None or (other is not None and other < best):
                best = other
        return None if best is None else (best[0], best[2])

    def _first(self, heap: list[_Entry]) -> _Entry | None:
        while heap:
            entry = heap[0]
            if self._is_live(entry):
                return entry
            heapq.heappop(heap)
        return None

    def refresh(self, rank: Callable[[Request], Rank]) -> None:
        """Rank the first of the queue again until it stays first, then a few others in turn.

        At most 2 * RERANKED_PER_STEP ranks are made, however many wait.
        """
        for _ in range(RERANKED_PER_STEP):
            head = self.head()
            if head is None or not self._rerank(head[1], rank):
                break
        entries = self._entries
        for _ in range(min(RERANKED_PER_STEP, len(entries))):
            known, _, request = next(iter(entries.values()))
            fresh = rank(request)
            if fresh == known:
                entries.move_to_end(request.id)
            else:
                self._enter(request, fresh)
        self._compact(MOVED_PER_REFRESH)

    def _rerank(self, request: Request, rank: Callable[[Request], Rank]) -> bool:
        fresh = rank(request)
        if fresh == self._entries[request.id][0]:
            return False
        self._enter(request, fresh)
        return True

    def _enter(self, request: Request, rank: Rank) -> None:
        self._next_serial += 1
        entry = (rank, self._next_serial, request)
        self._entries[request.id] = entry
        self._entries.move_to_end(request.id)
        heapq.heappush(self._heap, entry)

    def _compact(self, most: int) -> None:
        """Clear out dead entries, `most` at a time: no step pays for all who wait."""
        aside, entries = self._aside, self._entries
        if not aside:
            if len(self._heap) <= 2 * len(entries) + 64:
                return
            self._aside = aside = self._heap
            self._heap = []
        heap, find = self._heap, entries.get
        for _ in range(min(most, len(aside))):
            entry = aside.pop()
            if find(entry[2].id) is entry:
                heapq.heappush(heap, entry)

    def _is_live(self, entry: _Entry) -> bool:
        return self._entries.get(entry[2].id) is entry

    def check_integrity(self) -> None:
        """Assert that heap, entries and sums tell the same story, and that garbage is bounded."""
        heaps = (self._heap, self._aside)
        live = [entry for heap in heaps for entry in heap if self._is_live(entry)]
        assert sorted(e[2].id for e in live) == sorted(self._entries), "heap and entries differ"
        assert self.num_prompt_tokens == sum(r.num_prompt_tokens for r in self)
        for heap in heaps:
            assert all(heap[(i - 1) // 2][:2] <= heap[i][:2] for i in range(1, len(heap))), (
                "not a heap"
            )
