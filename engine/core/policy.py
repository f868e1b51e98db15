"""The seam of scheduling policies: four questions and one note; it decides and moves nothing.

The scheduler owns queues, batch, blocks and every transition, and is written once. A policy
answers questions about requests it is shown, given a `View` of the present; it reads no clock and
changes nothing but `Request.note`, the one field that is its own. What a policy may count on:

* Its limits cannot stall the engine: a step that they would leave empty while work could run is
  planned again for decodes, then with nothing but the executor's capacity (laws L11, L12).
* Its ranks cannot break a law: preemptions per request are bounded, victims always rank behind
  the one they make room for, and a request preempted too often gets room for its worst case.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from engine.core.executor import Capacity
from engine.core.request import Request

# Smaller comes first. Ends in (arrival_ns, id): a total order without ties, so that equal runs
# are equal. One policy's ranks must be comparable with each other, element by element.
Rank: TypeAlias = tuple[int | float | str, ...]

NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may see: the present, between two steps. The collections are live: read only.

    `prefilling` are running requests with part of their history still to compute, `decoding`
    those that lack only their last token.
    """

    now_ns: int
    capacity: Capacity
    free_blocks: int
    num_waiting: int
    prefilling: Collection[Request]
    decoding: Collection[Request]

    @property
    def device_use(self) -> float:
        """Share of the device's blocks in use, 0 to 1: the one memory signal (law L46)."""
        return 1.0 - self.free_blocks / self.capacity.num_blocks


@dataclass(frozen=True, slots=True)
class StepLimits:
    """How much one step may hold; the executor's capacity always applies as well.

    `max_running` bounds how many requests may be started and not ended; 0 means as many as a
    batch has rows. `whole_prompts` takes a prompt's remaining tokens in one chunk or not at all.
    """

    max_tokens: int = NO_LIMIT
    max_decodes: int = NO_LIMIT
    max_prefills: int = NO_LIMIT
    max_running: int = 0
    whole_prompts: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """What must be free before a waiting request is started.

    It gets blocks for its next chunk, and for `claim_tokens` positions in all if that is more
    (never more than it could ever use); `spare_blocks` must stay free besides, for the growth of
    those already running. The spare is waived when nothing runs.
    """

    claim_tokens: int = 0
    spare_blocks: int = 0


class SchedulingPolicy(Protocol):
    """Pure decisions; see the module's text for what the scheduler makes of them."""

    @property
    def name(self) -> str:
        """The name under which Settings choose it."""
        ...

    @property
    def ranks_move(self) -> bool:
        """True where the `prefill_rank` of a waiting request changes with time.

        Ranks of waiting requests live in a heap and are then refreshed a few per step, the first
        of the queue always: exact for ranks that only get worse, soon right for any other.
        """
        ...

    def limits(self, view: View) -> StepLimits:
        """How much may this step hold?"""
        ...

    def due(self, request: Request, view: View) -> bool:
        """Must this decode run now? If not, it gets a seat that the prompts leave over."""
        ...

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """Which prompt next? Asked of waiting requests and, every step, of those under way."""
        ...

    def keep_rank(self, request: Request, view: View) -> Rank:
        """Who keeps device memory, and a seat where seats are short? Victims come from the back."""
        ...

    def room(self, request: Request, view: View) -> Room:
        """What must be free before this waiting request is started?"""
        ...

    def observe(self, requests: Sequence[Request], elapsed_ns: int, view: View) -> None:
        """A step is over: these requests computed in it, for `elapsed_ns` of executor time.

        Counters and `last_token_ns` are those after the step. The place to write `note`.
        """
        ...
