"""Which tenants hold no seat while others of their class hold several; it ranks nobody.

A flood of one tenant must not starve another of the same class, whatever due times say: prompts of
the flood that have just come are always the ones that can still be on time. So a tenant that waits
without a seat gets the next one, as long as another of its class has at least two.
"""

from __future__ import annotations

from collections import deque

from engine.core.policy import View
from engine.core.request import Request, Status

SEVERAL = 2  # seats of one tenant from which on another of its class has a claim
SLACK = 64  # entries of those who left are swept out when they are more than the waiting and this


class FairSeats:
    """Told of every new prompt by `enter`; `claims` are read once a step."""

    __slots__ = ("_num_entries", "_tenants", "_waiting")

    def __init__(self) -> None:
        self._tenants: dict[int, set[str]] = {}  # all that were ever seen, by class
        self._waiting: dict[int, dict[str, deque[Request]]] = {}  # class, tenant, by arrival
        self._num_entries = 0

    def __len__(self) -> int:
        """Entries kept, of requests that have left unnoticed too."""
        return self._num_entries

    def enter(self, request: Request) -> None:
        """Take a new prompt."""
        order = request.order
        tenants = self._waiting.setdefault(order.slo.rank, {})
        tenants.setdefault(order.tenant, deque()).append(request)
        self._num_entries += 1
        self._tenants.setdefault(order.slo.rank, set()).add(order.tenant)

    def claims(self, view: View) -> list[Request]:
        """Return the prompts that have a claim to the next seats of their class, a tenant one."""
        found: list[Request] = []
        for rank, tenants in list(self._waiting.items()):
            for tenant, entries in list(tenants.items()):
                self._drop_gone(entries)
                if not entries:
                    del tenants[tenant]
            if not tenants:
                del self._waiting[rank]
                continue
            if len(self._tenants[rank]) < 2:
                continue  # seats need not be counted
            seats = self._seats(rank, view)
            if max(seats.values(), default=0) < SEVERAL:
                continue
            found += [of[0] for tenant, of in tenants.items() if tenant not in seats]
        return found

    def sweep(self, num_waiting: int) -> None:
        """Forget those who left, when they are many."""
        if self._num_entries <= 2 * num_waiting + SLACK:
            return
        for tenants in self._waiting.values():
            for tenant, entries in tenants.items():
                tenants[tenant] = deque(one for one in entries if one.status is Status.WAITING)
        counts = [len(entries) for of in self._waiting.values() for entries in of.values()]
        self._num_entries = sum(counts)

    def _drop_gone(self, entries: deque[Request]) -> None:
        while entries and entries[0].status is not Status.WAITING:
            entries.popleft()
            self._num_entries -= 1

    def _seats(self, rank: int, view: View) -> dict[str, int]:
        seats: dict[str, int] = {}
        for running in (view.prefilling, view.decoding):
            for request in running:
                order = request.order
                if order.slo.rank == rank:
                    seats[order.tenant] = seats.get(order.tenant, 0) + 1
        return seats
