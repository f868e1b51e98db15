"""Where every live request stands: waiting, prefilling, decoding or parked, just one (law L2).

It knows the places and the counts per tier, not why anyone is moved. A running request is filed
under `decoding` when only its last token is missing from the cache, else under `prefilling`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from engine.core.policy import Rank
from engine.core.request import Request, Status
from engine.core.waiting_queue import WaitingQueue


class Queues:
    """The places of live requests; every status change of the scheduler goes through here."""

    __slots__ = (
        "decoding",
        "parked",
        "parked_by_tier",
        "parked_tokens",
        "prefilling",
        "running_by_tier",
        "waiting",
        "waiting_by_tier",
        "waiting_tokens_by_tier",
    )

    def __init__(self) -> None:
        self.waiting = WaitingQueue()
        self.prefilling: dict[str, Request] = {}
        self.decoding: dict[str, Request] = {}
        self.parked: dict[str, Request] = {}
        self.parked_tokens = 0  # their contexts
        self.waiting_tokens_by_tier: Counter[str] = Counter()  # of their prompts
        self.waiting_by_tier: Counter[str] = Counter()
        self.running_by_tier: Counter[str] = Counter()
        self.parked_by_tier: Counter[str] = Counter()

    @property
    def num_running(self) -> int:
        """Requests that were started, hold device blocks and have not ended."""
        return len(self.prefilling) + len(self.decoding)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.prefilling) + len(self.decoding) + len(self.parked)

    def __iter__(self) -> Iterator[Request]:
        yield from self.waiting
        yield from self.prefilling.values()
        yield from self.decoding.values()
        yield from self.parked.values()

    def wait(self, request: Request, rank: Rank) -> None:
        """File a request whose status is WAITING."""
        assert request.status is Status.WAITING
        self.waiting.push(request, rank)
        self._count_waiting(request, 1)

    def start(self, request: Request, now_ns: int) -> None:
        """Waiting to running."""
        self.waiting.discard(request)
        self._count_waiting(request, -1)
        request.move_to(Status.RUNNING, now_ns)
        self.prefilling[request.id] = request
        _count(self.running_by_tier, request, 1)

    def refile(self, request: Request) -> None:
        """A running request whose history became complete decodes from now on."""
        if request.id in self.prefilling and request.is_decoding:
            del self.prefilling[request.id]
            self.decoding[request.id] = request

    def interrupt(self, request: Request, now_ns: int) -> None:
        """Running or parked to nowhere, WAITING, nothing computed; the caller files it later."""
        self._take(request)
        request.move_to(Status.WAITING, now_ns)
        request.high_water = max(request.high_water, request.num_computed)
        request.num_computed = 0

    def park(self, request: Request, now_ns: int) -> None:
        """Running to parked."""
        self._take(request)
        request.move_to(Status.PARKED, now_ns)
        self.parked[request.id] = request
        self.parked_tokens += request.num_computed
        _count(self.parked_by_tier, request, 1)

    def resume(self, request: Request, now_ns: int) -> None:
        """Parked to running."""
        self._take(request)
        request.move_to(Status.RUNNING, now_ns)
        place = self.decoding if request.is_decoding else self.prefilling
        place[request.id] = request
        _count(self.running_by_tier, request, 1)

    def end(self, request: Request, now_ns: int) -> None:
        """From any place to FINISHED."""
        if request.status is Status.WAITING:
            self.waiting.discard(request)
            self._count_waiting(request, -1)
        else:
            self._take(request)
        request.move_to(Status.FINISHED, now_ns)

    def _take(self, request: Request) -> None:
        """Take a started request out of its place."""
        if self.parked.pop(request.id, None) is not None:
            self.parked_tokens -= request.num_computed
            _count(self.parked_by_tier, request, -1)
            return
        place = self.prefilling if request.id in self.prefilling else self.decoding
        del place[request.id]
        _count(self.running_by_tier, request, -1)

    def _count_waiting(self, request: Request, sign: int) -> None:
        _count(self.waiting_by_tier, request, sign)
        _count(self.waiting_tokens_by_tier, request, sign * request.num_prompt_tokens)

    def check_integrity(self) -> None:
        """Assert law L2: one place each, and the place agrees with status and counters."""
        everyone = [request.id for request in self]
        assert len(everyone) == len(set(everyone)), "a request stands in two places"
        assert all(r.status is Status.WAITING and r.num_computed == 0 for r in self.waiting)
        for request in (*self.prefilling.values(), *self.decoding.values()):
            assert request.status is Status.RUNNING
            assert request.is_decoding or request.id in self.prefilling
        assert all(r.status is Status.PARKED and r.num_computed for r in self.parked.values())
        assert self.parked_by_tier == Counter(r.order.tier for r in self.parked.values())
        assert self.parked_tokens == sum(r.num_computed for r in self.parked.values())
        self.waiting.check_integrity()
        waiting = Counter(r.order.tier for r in self.waiting)
        running = Counter(
            r.order.tier for r in (*self.prefilling.values(), *self.decoding.values())
        )
        assert (waiting, running) == (self.waiting_by_tier, self.running_by_tier)
        assert self.waiting.num_prompt_tokens == self.waiting_tokens_by_tier.total()


def _count(counter: Counter[str], request: Request, change: int) -> None:
    """Count, and forget a tier nobody stands in, so that the counters stay small."""
    tier = request.order.tier
    counter[tier] += change
    if not counter[tier]:
        del counter[tier]
