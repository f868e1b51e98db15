"""What a store of limits must do, and what it is told and tells; it stores nothing itself.

Two makers: `MemoryStore` (one worker, and the emergency of many) and `RedisStore`. A call takes
its place in line at once, in the order of the calls; awaiting what it returns only waits for the
answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from gateway.limits.values import Ask, Reading, Spend, Totals

T = TypeVar("T")

LIVE_S = 60  # a one-second bucket counts for so long after its own second
LEASE_US = 30_000_000  # a worker that says nothing for so long has lost its seats
KEEP_US = 3_600_000_000  # and after so long again what it reserved counts as taken in full
CLOSED_US = 120_000_000  # for so long a closed hold is known to have been closed
RETAIN_US = 2 * 86_400_000_000  # the totals of an organisation nobody uses
SEED_GRACE_US = 5_000_000  # a usage row takes so long from the request's end to the ledger
MAX_SWEPT = 100
MAX_BACKWARD_US = 60_000_000
# How long until a seat may be free: not below, not above, and while nobody has left yet.
LEAST_WAIT_US, MOST_WAIT_US, COLD_WAIT_US = 100_000, 60_000_000, 1_000_000

# Of a rule, by its index in the ask: the first day of its window, and what that has used already.
Seeds: TypeAlias = Mapping[int, tuple[int, int]]
NO_SEEDS: Seeds = {}


class StoreAway(Exception):
    """The store did not answer, or not in time; whether it did what it was asked is unknown."""


class Outcome(IntEnum):
    """What became of a call; the numbers are those of limits.lua."""

    DENIED = 0
    GRANTED = 1  # of a settlement: done
    UNSEEDED = 2  # a calendar window begins and the ledger must say what it has used
    CLOSED = 3  # this hold is over already
    UNKNOWN = 4  # there is no such hold


class Mode(StrEnum):
    """How a hold is taken or closed."""

    ASK = "ask"
    ADOPT = "adopt"  # it was let in elsewhere: it counts, whatever the limits say
    SETTLE = "settle"
    CHARGE = "charge"  # settle, and where the hold is unknown count what it has spent
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a reserve; one reading for each rule of the ask where it was decided.

    `missing` names rules by index, and the first day of the window whose past use is asked for.
    `limits` are those counted against, where they are not the rules' own.
    """

    outcome: Outcome
    at_us: int
    readings: tuple[Reading, ...] = ()
    missing: tuple[tuple[int, int], ...] = ()
    limits: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a hold: what it has spent, how long ago it began and ended."""

    ask: Ask
    mode: Mode
    spent: Spend
    age_us: int = 0
    ended_us: int = 0


@dataclass(frozen=True, slots=True)
class Closed:
    """The answer to a closing; `alerts` are indices of rules whose budget reached its alert."""

    outcome: Outcome
    at_us: int
    alerts: tuple[int, ...] = ()
    missing: tuple[tuple[int, int], ...] = ()


class Store(Protocol):
    """Keeps reservations of many organisations; every call is one atomic step of one of them."""

    def reserve(
        self, ask: Ask, seeds: Seeds = NO_SEEDS, *, mode: Mode = Mode.ASK, age_us: int = 0
    ) -> Awaitable[Reply]:
        """Take all of `ask.most` or nothing. Harmless when repeated; raises StoreAway."""
        ...

    def settle(self, closing: Closing, seeds: Seeds = NO_SEEDS) -> Awaitable[Closed]:
        """Keep what was spent and give back the rest where it was taken. Harmless when repeated.

        Raises StoreAway.
        """
        ...

    def renew(self, asks: Sequence[Ask]) -> Awaitable[tuple[Outcome, ...]]:
        """Prolong the leases of open holds of one organisation; raises StoreAway."""
        ...

    def totals(self, group: str) -> Awaitable[Totals]:
        """Return what an organisation ever reserved and what became of it; raises StoreAway."""
        ...

    async def ping(self) -> None:
        """Return when the store has answered; raises StoreAway."""
        ...

    async def run(self) -> None:
        """Do the store's own work until cancelled."""
        ...


class Ready(Generic[T]):
    """An answer that is there already: awaiting it gives up nothing to anybody."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        return self.value
