"""The seam of scheduling policies: four questions and one note; it decides and moves nothing.

The scheduler owns queues, batch, blocks and every transition, and is written once. A policy
answers questions about requests it is shown, given a `View` of the present; it reads no clock and
changes nothing but `Request.note`, the one field that is its own. What a policy may count on:

* Its limits cannot stall the engine: a step that they would leave empty while work could run is
  planned again for decodes, then with nothing but the executor's capacity (laws L11, L12).
* Its ranks cannot break a law: preemptions per request are bounded, victims always rank behind
  the one they make room for, and a request preempted too often gets room for its worst case.
* Parking is its wish and the scheduler's deed: blocks, host room and copies under way are checked
  there, a request is parked again only after it made progress, and whatever happens one request
  that keeps first stays on the device.

Every question but the first three has an answer to inherit: the plain one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeAlias

from engine.core.executor import Capacity
from engine.core.prompt_plan import PLAIN_PLAN, PromptDue, PromptPlan
from engine.core.request import Request

# Smaller comes first. Ends in (arrival_ns, id): a total order without ties, so that equal runs
# are equal. One policy's ranks must be comparable with each other, element by element.
Rank: TypeAlias = tuple[int | float | str, ...]

NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may see: the present, between two steps. The collections are live: read only.

    `prefilling` are running requests with part of their history still to compute, `decoding`
    those that lack only their last token; `parked` ones have their context on the host, or on its
    way there or back (`Request.copy_number`, `is_returning`). `coming_blocks` are not free yet and
    will be when the copies under way are over.
    """

    now_ns: int
    capacity: Capacity
    free_blocks: int
    num_waiting: int
    prefilling: Collection[Request]
    decoding: Collection[Request]
    parked: Collection[Request] = ()
    free_host_blocks: int = 0
    coming_blocks: int = 0
    computed_total: int = 0  # tokens since the start, those computed again included
    recomputed_total: int = 0
    copied_total: int = 0  # tokens, both ways

    @property
    def num_running(self) -> int:
        """Requests that were started, hold device blocks and have not ended."""
        return len(self.prefilling) + len(self.decoding)

    @property
    def device_use(self) -> float:
        """Share of the device's blocks in use, 0 to 1: the one memory signal (law L46)."""
        return 1.0 - self.free_blocks / self.capacity.num_blocks


@dataclass(frozen=True, slots=True)
class StepLimits:
    """How much one step may hold; the executor's capacity always applies as well.

    `max_running` bounds how many requests may be started and not ended; 0 means as many as a
    batch has rows. `whole_prompts` takes a prompt's remaining tokens in one chunk or not at all.
    `max_step_ns` is the time budget: prompts and decodes that are not due are added only while the
    latency model says that the step stays within it (nothing to an engine without a model).
    `max_copy_tokens` bounds what is under way on the link in each direction, so that its queue is
    short; where nothing is under way, one context of any length may be carried.
    """

    max_tokens: int = NO_LIMIT
    max_decodes: int = NO_LIMIT
    max_prefills: int = NO_LIMIT
    max_running: int = 0
    whole_prompts: bool = False
    max_step_ns: int = NO_LIMIT
    max_copy_tokens: int = NO_LIMIT


@dataclass(frozen=True, slots=True)
class Room:
    """What must be free before a waiting request is started.

    It gets blocks for its next chunk, and for `claim_tokens` positions in all if that is more
    (never more than it could ever use); `spare_blocks` must stay free besides, for the growth of
    those already running. The spare is waived when nothing runs.
    """

    claim_tokens: int = 0
    spare_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Whom to carry between device and host in this step, the most urgent first."""

    park: Sequence[Request] = ()
    back: Sequence[Request] = ()


NO_TRAFFIC = Traffic()
NO_NEWS: Mapping[str, str] = MappingProxyType({})


class SchedulingPolicy(Protocol):
    """Pure decisions; see the module's text for what the scheduler makes of them.

    Policies inherit from it what they do not decide themselves.
    """

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

    @property
    def swaps(self) -> bool:
        """True where a victim may be parked, and `traffic` brings it back. No: it is recomputed."""
        return False

    @property
    def prompt_plan(self) -> PromptPlan:
        """What `prefill_rank` amounts to, for forecasts. By arrival."""
        return PLAIN_PLAN

    def prompt_due(self, request: Request) -> PromptDue:
        """When is this first token due, or due again? For forecasts. When it was promised."""
        order = request.order
        at_ns = order.slo.first_token_due_ns(order.arrival_ns, request.num_prompt_tokens)
        return PromptDue(at_ns)

    def prefill_rank(self, request: Request, view: View) -> Rank:
        """Which prompt next? Asked of waiting requests and, every step, of those under way."""
        ...

    def limits(self, view: View) -> StepLimits:
        """How much may this step hold? Asked first in every step. As much as fits."""
        return EXECUTOR_LIMITS

    def due(self, request: Request, view: View) -> bool:
        """Must this decode run now? If not, it gets a seat that the prompts leave over. Always."""
        return True

    def split_due(self, view: View) -> tuple[list[Request], list[Request]]:
        """Return the decodes that must run now, and the others, each in the order of the view.

        The same answers as `due`, asked at once: in every step of every decode.
        """
        due: list[Request] = []
        spare: list[Request] = []
        for request in view.decoding:
            (due if self.due(request, view) else spare).append(request)
        return due, spare

    def keep_rank(self, request: Request, view: View) -> Rank:
        """Who keeps device memory, and a seat where seats are short? Victims come from the back.

        The latest arrival is the victim.
        """
        return (request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        """What must be free before this waiting request is started? Blocks for its next chunk."""
        return NEXT_CHUNK

    def may_displace(self, newcomer: Request, victim: Request, view: View) -> bool:
        """May a running request make room so that this waiting one can start? Never.

        Asked only of victims that rank behind the newcomer in `keep_rank`.
        """
        return False

    def traffic(self, view: View) -> Traffic:
        """Whom to park and whom to bring back, beyond what lack of memory forces? Nobody.

        Asked in every step of a policy that swaps on an engine that has host blocks. Where no
        decode and no prompt can run, the first of the parked to keep comes back unasked.
        """
        return NO_TRAFFIC

    def observe(self, requests: Sequence[Request], elapsed_ns: int, view: View) -> None:
        """A step is over: these requests computed in it, for `elapsed_ns` of executor time.

        Counters and `last_token_ns` are those after the step. The place to write `note`.
        """
        return

    def explain(self, request: Request, view: View) -> str:
        """How does this live request stand with you, in one clause for an operator? No comment.

        Asked when it is started and when somebody asks, never in every step.
        """
        return ""

    def news(self) -> Mapping[str, str]:
        """Of whom do you think otherwise since you were asked last, by id, and how? Of nobody.

        Asked once a step, behind the plan; for its record only. The same clauses as `explain`.
        """
        return NO_NEWS


EXECUTOR_LIMITS = StepLimits()
NEXT_CHUNK = Room()
