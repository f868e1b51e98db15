"""Requests that wait, the best-ranked first; it knows their ranks, not who makes them.

A heap with lazy deletion: adding and taking cost O(log n), leaving from the middle O(1), and no
step ever looks at all who wait.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeAlias

from engine.core.policy import Rank
from engine.core.request import Request

RERANKED_PER_STEP = 16

_Entry: TypeAlias = tuple[Rank, int, Request]  # the serial number keeps requests uncompared


class WaitingQueue:
    """A priority queue of requests by rank, with removal and bounded re-ranking."""

    __slots__ = ("_entries", "_heap", "_next_serial", "num_prompt_tokens")

    def __init__(self) -> None:
        # A heap entry counts only while it is the one noted for its request.
        self._heap: list[_Entry] = []
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
        self._compact()

    def head(self) -> tuple[Rank, Request] | None:
        """Return the best-ranked request with its rank, without taking it."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if self._is_live(entry):
                return entry[0], entry[2]
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
        self._compact()

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

    def _compact(self) -> None:
        """Rebuild a heap of mostly dead entries: memory stays bounded, the cost is amortised."""
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def _is_live(self, entry: _Entry) -> bool:
        return self._entries.get(entry[2].id) is entry

    def check_integrity(self) -> None:
        """Assert that heap, entries and sums tell the same story, and that garbage is bounded."""
        live = [entry for entry in self._heap if self._is_live(entry)]
        assert sorted(e[2].id for e in live) == sorted(self._entries), "heap and entries differ"
        assert self.num_prompt_tokens == sum(r.num_prompt_tokens for r in self)
        assert all(
            self._heap[(i - 1) // 2][:2] <= self._heap[i][:2] for i in range(1, len(self._heap))
        ), "not a heap"
