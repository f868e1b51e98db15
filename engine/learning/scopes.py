"""Who learns from whom, and how much is kept of everybody; it fits nothing.

With `tenant` every tenant is a scope of its own, and nothing of it reaches another. With `all`
there is one scope, and only the running numbers stay apart. Memory is bounded in every direction.
The one thing a tenant can do to another is to be busier: where there is no room for all, whoever
has most gives its oldest rows first, the model asked longest ago goes, and of too many tenants the
one heard of longest ago is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

from engine.learning.features import History
from engine.learning.history import LengthHistory
from engine.learning.scope import Ended, Scope

Sharing = Literal["tenant", "all"]

MOST_TENANTS = 1024
MOST_ROWS = 20_000  # of all scopes; some 0.8 KB each
MOST_MODEL_BYTES = 18_000_000
EVERYONE = ""


class Scopes:
    """The scopes by tenant. One thread changes them; `find` and `reading` are for any."""

    __slots__ = ("_histories", "_num_rows", "_scopes", "sharing")

    def __init__(self, sharing: Sharing = "tenant") -> None:
        self.sharing = sharing
        self._scopes: OrderedDict[str, Scope] = OrderedDict()
        self._histories: OrderedDict[str, LengthHistory] = OrderedDict()  # only with `all`
        self._num_rows = 0

    def __len__(self) -> int:
        return len(self._scopes)

    def __iter__(self) -> Iterator[tuple[str, Scope]]:
        return iter(list(self._scopes.items()))

    @property
    def num_rows(self) -> int:
        """Rows kept in all."""
        return self._num_rows

    @property
    def histories(self) -> list[tuple[str, LengthHistory]]:
        """With `all`: the tenants' own running numbers."""
        return list(self._histories.items())

    def find(self, tenant: str) -> Scope | None:
        """Return the scope that this tenant's questions belong to, None before any answer."""
        return self._scopes.get(self._key(tenant))

    def reading(self, tenant: str, hour: float) -> History:
        """Return what is known of this tenant's answers; with `all`, else of everybody's."""
        own = self._histories.get(tenant)
        if own is not None:
            return own.reading(hour)
        scope = self.find(tenant)
        return History() if scope is None else scope.reading(hour)

    def take(self, ended: Ended) -> Scope:
        """Give an answer to its scope, and return that."""
        tenant = ended.asked.tenant
        scope = self.scope(tenant)
        before = len(scope.rows)
        counted = scope.take(ended)
        self._num_rows += len(scope.rows) - before
        if self.sharing == "all":
            self.history(tenant).add(counted, ended.asked.hour)
        self._trim_rows()
        return scope

    def scope(self, tenant: str) -> Scope:
        """Return the tenant's scope as the one heard of last, made where there is none."""
        key = self._key(tenant)
        found = self._scopes.get(key)
        if found is None:
            found = self._scopes[key] = Scope()
            if len(self._scopes) > MOST_TENANTS:
                _, gone = self._scopes.popitem(last=False)
                self._num_rows -= len(gone.rows)
        self._scopes.move_to_end(key)
        return found

    def history(self, tenant: str) -> LengthHistory:
        """With `all`: return the tenant's own running numbers, made where there are none."""
        found = self._histories.get(tenant)
        if found is None:
            found = self._histories[tenant] = LengthHistory()
            if len(self._histories) > MOST_TENANTS:
                self._histories.popitem(last=False)
        self._histories.move_to_end(tenant)
        return found

    def put_history(self, tenant: str, history: LengthHistory) -> None:
        """Put back what was stored of a tenant's running numbers."""
        if self.sharing == "all":
            self._histories[tenant] = history

    def due(self, now_ns: int = 0, *, only_urgent: bool = False) -> Scope | None:
        """Return a scope whose fit is due: of several, the one that had none for longest.

        So a busy tenant cannot starve a quiet one. `only_urgent` leaves out who was urgent just
        before, and rests.
        """
        due = [
            scope
            for scope in self._scopes.values()
            if scope.is_due
            and (not only_urgent or (scope.is_urgent and now_ns >= scope.not_urgent_until_ns))
        ]
        return min(due, key=lambda scope: scope.last_fit, default=None)

    def trim_models(self) -> None:
        """Drop the models asked longest ago until the others fit."""
        having = [scope for scope in self._scopes.values() if scope.model is not None]
        having.sort(key=lambda scope: scope.last_asked, reverse=True)
        total = 0
        for place, scope in enumerate(having):
            total += scope.num_bytes
            if total > MOST_MODEL_BYTES and place > 0:
                scope.drop_model()

    def count_rows(self) -> None:
        """Count again what was put back from outside."""
        self._num_rows = sum(len(scope.rows) for scope in self._scopes.values())
        self._trim_rows()

    def _trim_rows(self) -> None:
        while self._num_rows > MOST_ROWS:
            largest = max(self._scopes.values(), key=lambda scope: len(scope.rows))
            largest.rows.popleft()
            self._num_rows -= 1

    def _key(self, tenant: str) -> str:
        return tenant if self.sharing == "tenant" else EVERYONE
