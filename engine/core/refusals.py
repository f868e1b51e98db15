"""What would have become of those who were refused: ghosts that keep a place in the queue.

It knows whom the door refused, whom it let in, and first tokens; it decides nothing. A ghost would
have been on time if, before its due time, prompts that rank behind it were served (it would have
had their place), or the engine had nothing to do, for at least as many tokens as its own prompt.
Each token is one ghost's only: they share them in the order in which they would have been served.
Memory is left out: whoever was served instead had to find room, too. Ghosts follow some of those
let in as well: of those who missed the ledger must say so. Who was on time checks no ghost, because
it took the very place that its ghost would have looked for; but of everybody whom the rules would
have refused, and who was let in all the same, it is counted who was on time and who missed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields, replace

from engine.core.forecast import Newcomer
from engine.core.prompt_plan import PromptOrder

MOST_GHOSTS = 512  # of those refused, and as many of those let in
LEAST_TOKEN = 1e-6  # who lacks less than this lacks nothing


@dataclass(frozen=True, slots=True)
class Standing:
    """A request in its queue, for comparing places; `weight_ns` is how dear it is, as in triage."""

    newcomer: Newcomer
    arrival_ns: int
    weight_ns: float

    @property
    def id(self) -> str:
        """Its id."""
        return self.newcomer.id

    @property
    def due_ns(self) -> int:
        """When its first token is due."""
        return self.arrival_ns + self.newcomer.target_ns

    def is_behind(self, other: Standing, order: PromptOrder) -> bool:
        """True where this one gives way to the other, one of its own class or ahead."""
        return self.turn(order) > other.turn(order)

    def turn(self, order: PromptOrder) -> tuple[float, ...]:
        """Return a key: of several who find a place, the one with the least has it."""
        mine = self.newcomer
        if order is PromptOrder.DUE:
            return mine.slo.rank, self.weight_ns
        if order is PromptOrder.SHORTEST:
            return mine.slo.rank, mine.num_prompt_tokens, self.arrival_ns
        return mine.slo.rank, self.arrival_ns


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """Totals since the start. Of ghosts judged: `justified` would have missed, `false` would not.

    `would_refuse` are those whom the rules would not have served as they asked; all but `refused`
    were let in, by shadow mode, as probes or as protected, and of these `would_on_time` had their
    first token in time, `would_missed` had not; the others left before it was due, or are open.
    `checked` ghosts were of requests let in that missed; of these `agreed` were judged so as well.
    `returns` are those refused, come back in thought at the hinted time: `returns_admitted` would
    have been let in then, `returns_on_time` would have been on time besides.
    """

    refused: int = 0
    justified: int = 0
    false: int = 0
    dropped: int = 0
    would_refuse: int = 0
    would_on_time: int = 0
    would_missed: int = 0
    checked: int = 0
    agreed: int = 0
    returns: int = 0
    returns_admitted: int = 0
    returns_on_time: int = 0

    @property
    def false_share(self) -> float:
        """Share of the judged refusals that were false, 0 before any."""
        judged = self.justified + self.false
        return self.false / judged if judged else 0.0


class _Ghost:
    """One that is followed: `place` from when on it would stand there, and what it found so far.

    What every first token asks of every ghost is worked out once.
    """

    __slots__ = (
        "_order",
        "_turn",
        "due_ns",
        "found",
        "is_known",
        "is_return",
        "most",
        "needs",
        "place",
    )

    def __init__(self, place: Standing, *, is_known: bool, is_return: bool = False) -> None:
        self.place = place
        self.due_ns = place.due_ns
        self.needs = float(place.newcomer.num_prompt_tokens)
        self.found = 0.0  # tokens that gave it a place
        self.most = self.needs  # for the time being it may find no more than this
        self.is_known = is_known  # it was let in: the truth will be told
        self.is_return = is_return
        self._order: PromptOrder | None = None
        self._turn: tuple[float, ...] = ()

    def take(self, most: float) -> float:
        """Take what it needs, or as much as there is for it; return that."""
        taken = min(most, self.needs - self.found, self.most - self.found)
        self.found += taken
        return taken

    @property
    def has_place(self) -> bool:
        """True where it found all that it needs; sums of shares are not exact."""
        return self.needs - self.found <= LEAST_TOKEN

    def turn(self, order: PromptOrder) -> tuple[float, ...]:
        """Return the key of its place."""
        if order is not self._order:
            self._order, self._turn = order, self.place.turn(order)
        return self._turn


class RefusalLedger:
    """Bounded: the oldest ghost goes unjudged where there are too many."""

    def __init__(self) -> None:
        self._ghosts: deque[_Ghost] = deque()
        self._known: dict[str, bool | None] = {}  # whether it judged them on time; None: not yet
        self._truths: dict[str, bool] = {}
        self._doubted: set[str] = set()  # let in against the rules, without a first token
        self._returns: deque[Standing] = deque()  # to come, in no order
        self._counts = dict.fromkeys((spec.name for spec in fields(LedgerCounts)), 0)

    @property
    def counts(self) -> LedgerCounts:
        """Return the totals."""
        return LedgerCounts(**self._counts)

    def __len__(self) -> int:
        """Ghosts followed now."""
        return len(self._ghosts)

    def refuse(self, place: Standing, hint_ns: int) -> None:
        """This one was refused, and told to come back after `hint_ns`."""
        self._counts["refused"] += 1
        self._counts["would_refuse"] += 1
        self._follow(_Ghost(place, is_known=False))
        if len(self._returns) >= MOST_GHOSTS:
            self._returns.popleft()
        self._returns.append(replace(place, arrival_ns=place.arrival_ns + hint_ns))

    def doubt(self, place: Standing) -> None:
        """This one was let in although the rules say otherwise: what becomes of it is counted.

        Tell its `truth`, or that it `gave_up`, and `forget` whoever leaves: there is no bound here.
        """
        self._counts["would_refuse"] += 1
        self._doubted.add(place.id)
        self.check(place)

    def gave_up(self, request_id: str) -> None:
        """One let in left without a first token, after that was due."""
        if request_id in self._doubted:
            self._doubted.discard(request_id)
            self._counts["would_missed"] += 1

    def check(self, place: Standing) -> None:
        """This one was let in; judge it as if it had not been, and compare."""
        if len(self._known) < MOST_GHOSTS:
            self._known[place.id] = None
            self._follow(_Ghost(place, is_known=True))

    def truth(self, request_id: str, *, is_on_time: bool) -> None:
        """What became of one let in; ignored unless it is in doubt, or is checked and missed."""
        if request_id in self._doubted:
            self._doubted.discard(request_id)
            self._counts["would_on_time" if is_on_time else "would_missed"] += 1
        if request_id not in self._known:
            return
        if is_on_time:
            self.forget(request_id)
            return
        judged = self._known[request_id]
        if judged is None:
            self._truths[request_id] = is_on_time
        else:
            del self._known[request_id]
            self._compare(judged, is_on_time)

    def forget(self, request_id: str) -> None:
        """One let in left before its first token: there is no truth."""
        self._doubted.discard(request_id)
        self._uncheck(request_id)

    def _uncheck(self, request_id: str) -> None:
        self._known.pop(request_id, None)
        self._truths.pop(request_id, None)

    def due_returns(self, now_ns: int) -> list[Standing]:
        """Return those whose hinted time has come; tell `came_back` what the door says to each."""
        due = [place for place in self._returns if place.arrival_ns <= now_ns]
        if due:
            self._returns = deque(p for p in self._returns if p.arrival_ns > now_ns)
        return due

    def served(self, mate: Standing, at_ns: int, order: PromptOrder) -> None:
        """One that was let in has its first token: ghosts before it would have had its place."""
        turn = mate.turn(order)
        may = [
            ghost
            for ghost in self._ghosts
            if ghost.place.arrival_ns <= at_ns <= ghost.due_ns
            and ghost.turn(order) < turn
            and ghost.place.id != mate.id
        ]
        self._give(mate.newcomer.num_prompt_tokens, may, order)
        self.settle(at_ns)

    def idle(self, rate: float, since_ns: int, until_ns: int, order: PromptOrder) -> None:
        """Nobody waited in [since, until]: so many prompt tokens a ns could have been computed.

        A ghost may have those between its arrival and its due time.
        """
        may: list[_Ghost] = []
        for ghost in self._ghosts:
            own_ns = min(until_ns, ghost.due_ns) - max(since_ns, ghost.place.arrival_ns)
            if own_ns > 0:
                ghost.most = ghost.found + rate * own_ns
                may.append(ghost)
        self._give(rate * (until_ns - since_ns), may, order)
        for ghost in may:
            ghost.most = ghost.needs
        self.settle(until_ns)

    def _give(self, num_tokens: float, ghosts: list[_Ghost], order: PromptOrder) -> None:
        """Give so many tokens to those who may have them, each only once, in their order.

        Three questions are asked, each of a world of its own: what if those refused had been let
        in, if those checked had not, if those who came back had come by the hint.
        """
        ghosts.sort(key=lambda ghost: ghost.turn(order))
        refused = checked = returned = num_tokens
        for ghost in ghosts:
            if ghost.is_known:
                checked -= ghost.take(checked)
            elif ghost.is_return:
                returned -= ghost.take(returned)
            else:
                refused -= ghost.take(refused)

    def settle(self, now_ns: int) -> None:
        """Judge those who found their place, and those whose time is over."""
        ghosts = self._ghosts
        if not any(ghost.due_ns < now_ns or ghost.has_place for ghost in ghosts):
            return
        left: deque[_Ghost] = deque()
        for ghost in ghosts:
            if ghost.has_place:
                self._judge(ghost, is_on_time=True)
            elif ghost.due_ns < now_ns:
                self._judge(ghost, is_on_time=False)
            else:
                left.append(ghost)
        self._ghosts = left

    def came_back(self, place: Standing, *, is_admitted: bool) -> None:
        """A return was put to the door; it is followed where it would have been let in."""
        self._counts["returns"] += 1
        if is_admitted:
            self._counts["returns_admitted"] += 1
            self._follow(_Ghost(place, is_known=False, is_return=True))

    def _follow(self, ghost: _Ghost) -> None:
        if len(self._ghosts) >= 2 * MOST_GHOSTS:
            dropped = self._ghosts.popleft()
            self._counts["dropped"] += 1
            if dropped.is_known:
                self._uncheck(dropped.place.id)
        self._ghosts.append(ghost)

    def _judge(self, ghost: _Ghost, *, is_on_time: bool) -> None:
        if ghost.is_return:
            self._counts["returns_on_time"] += is_on_time
        elif not ghost.is_known:
            self._counts["false" if is_on_time else "justified"] += 1
        elif ghost.place.id in self._truths:
            del self._known[ghost.place.id]
            self._compare(is_on_time, self._truths.pop(ghost.place.id))
        elif ghost.place.id in self._known:
            self._known[ghost.place.id] = is_on_time

    def _compare(self, judged: bool, truth: bool) -> None:
        self._counts["checked"] += 1
        self._counts["agreed"] += judged == truth
