"""A request as the engine sees it: an immutable order, two counters and one transition table.

It knows nothing of HTTP, text, tenants' names or devices. Prefill, decode, resumption and prefix
hits need no phases of their own: `num_computed` catches up with `num_tokens` (the idea that opens
vLLM V1's scheduler). TTFT, queueing time and gaps are derived from the timeline, never kept twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum


class Status(Enum):
    """Where a request stands; exactly one at any time (law L2)."""

    WAITING = "waiting"
    RUNNING = "running"
    PARKED = "parked"
    FINISHED = "finished"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.RUNNING, Status.FINISHED}),
    Status.RUNNING: frozenset({Status.WAITING, Status.PARKED, Status.FINISHED}),
    # A return that fails falls back to recompute, never to wrong text (law L33).
    Status.PARKED: frozenset({Status.RUNNING, Status.WAITING, Status.FINISHED}),
    Status.FINISHED: frozenset(),
}


class FinishReason(StrEnum):
    """Why a request ended; closed list."""

    STOP = "stop"  # end-of-answer token, stop token or stop string
    LENGTH = "length"  # max_tokens, or the context window is full
    CANCELLED = "cancelled"  # the client left, or its key was revoked
    EXPIRED = "expired"  # its own deadline passed
    REJECTED = "rejected"  # refused on arrival
    FAILED = "failed"  # the engine could not finish it


# A paced stream's client sees early tokens late; the door holds back at most so many of one answer.
MOST_HELD_TOKENS = 1024


class TbtMode(StrEnum):
    """How the due time of token i is counted (scheduling notes, section 1)."""

    GAP = "gap"  # tbt after the client saw token i-1
    STREAM = "stream"  # first token + i * tbt


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; all rows of a batch may differ. Temperature 0 means greedy.

    `seed` is always set: the gateway draws one when the client gave none, so that equal orders
    give equal bytes (law L37). `logprobs` is the number of alternatives to report, None for none.
    """

    max_tokens: int
    seed: int = 0
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()  # includes the model's end tokens unless ignore_eos
    logprobs: int | None = None
    # True: what the model makes of the whole prompt is wanted as a vector, in place of any token.
    embeds: bool = False
    # What the answer must be (engine/core/grammar.py); "": anything. A client's text: never shown.
    grammar: str = field(default="", repr=False)

    @property
    def has_penalties(self) -> bool:
        """True where sampling depends on the tokens so far."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

    @property
    def needs_history(self) -> bool:
        """True where a row can only be drawn knowing all tokens so far."""
        return self.has_penalties or bool(self.grammar)


@dataclass(frozen=True, slots=True)
class Slo:
    """What was promised to this request; times in nanoseconds, rank 0 is served first.

    `pace_ns` above 0, at most `tbt_ns`: the door shows tokens no faster than that, so that early
    ones are a bank also in gap mode: the gap promised is the one the client sees.
    """

    rank: int = 0
    ttft_ns: int = 500_000_000
    ttft_ns_per_1k_prompt_tokens: int = 250_000_000
    tbt_ns: int = 100_000_000
    tbt_mode: TbtMode = TbtMode.GAP
    pace_ns: int = 0

    def first_token_due_ns(self, arrival_ns: int, num_prompt_tokens: int) -> int:
        """Return when the first content token is due."""
        extra = self.ttft_ns_per_1k_prompt_tokens * num_prompt_tokens // 1000
        return arrival_ns + self.ttft_ns + extra

    def shown_ns(self, before_ns: int, now_ns: int) -> int:
        """Return when the client sees a token made now, where it sees the last at `before_ns`."""
        most_ns = now_ns + MOST_HELD_TOKENS * self.pace_ns
        return min(max(now_ns, before_ns + self.pace_ns), most_ns)


@dataclass(frozen=True, slots=True)
class LengthEstimate:
    """Output tokens a request is expected to generate: the middle, and a high quantile (p90)."""

    middle: float
    high: float


@dataclass(frozen=True, slots=True)
class RequestOrder:
    """What the door hands to the engine: values only, so that it can cross a process border.

    `cache_salt` separates tenants in the prefix cache; it is set by the gateway, never by a client.
    `arrival_ns` is the monotonic time at which the request reached the gateway (law L23).
    `previous_outputs` are the tokens of this conversation's earlier answers, the oldest first.
    `estimate` is the door's guess of the answer's length; None: the engine guesses for itself.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    arrival_ns: int
    tenant: str = ""
    tier: str = ""
    cache_salt: str = ""
    weight: float = 1.0
    slo: Slo = field(default_factory=Slo)
    previous_outputs: tuple[int, ...] = ()
    estimate: LengthEstimate | None = None


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One change of status, with its time."""

    status: Status
    at_ns: int


class Request:
    """A live request: its order, what was generated, how much of it the KV cache holds."""

    __slots__ = (
        "copy_number",
        "estimate",
        "fault_count",
        "finish_reason",
        "first_token_ns",
        "high_water",
        "id",
        "is_returning",
        "last_token_ns",
        "late_tokens",
        "needs_history",
        "note",
        "num_cached",
        "num_computed",
        "num_prompt_tokens",
        "order",
        "output",
        "park_count",
        "parked_at",
        "preemption_count",
        "shown_ns",
        "status",
        "timeline",
        "worst_late_ns",
    )

    def __init__(self, order: RequestOrder, now_ns: int) -> None:
        self.order = order
        self.id = order.id
        self.num_prompt_tokens = len(order.prompt)
        self.needs_history = order.sampling.needs_history  # asked for every token: kept
        self.output: list[int] = []
        self.num_computed = 0
        self.num_cached = 0  # prompt tokens found in the prefix cache at first admission
        self.high_water = 0  # most tokens ever computed: computing below it again is waste
        self.status = Status.WAITING
        self.finish_reason: FinishReason | None = None
        self.first_token_ns: int | None = None
        self.last_token_ns: int | None = None
        self.shown_ns = 0  # when the client sees the last token: later than it came, where paced
        self.late_tokens = 0
        self.worst_late_ns = 0  # by how much the worst of them was late
        self.preemption_count = 0  # how often its context was dropped to make room
        self.park_count = 0  # how often it was carried to the host
        self.parked_at = 0  # tokens computed then: it is not parked again before there are more
        self.copy_number = 0  # of its copy under way, out or in; 0 without one
        self.is_returning = False  # that copy brings it back
        self.fault_count = 0
        self.estimate: LengthEstimate | None = None  # of its output, guessed once on arrival
        self.note: tuple[int, ...] = ()  # belongs to the scheduling policy
        self.timeline: list[TimelineEntry] = [TimelineEntry(Status.WAITING, now_ns)]

    @property
    def num_tokens(self) -> int:
        """Prompt plus everything generated."""
        return self.num_prompt_tokens + len(self.output)

    @property
    def num_uncomputed(self) -> int:
        """Tokens whose keys and values are not in the cache yet; 1 while decoding."""
        return self.num_tokens - self.num_computed

    @property
    def max_num_tokens(self) -> int:
        """The most tokens this request can ever be: prompt plus max_tokens."""
        return self.num_prompt_tokens + self.order.sampling.max_tokens

    @property
    def is_decoding(self) -> bool:
        """True when exactly the last generated token is missing from the cache."""
        return bool(self.output) and self.num_uncomputed == 1

    def tokens(self, start: int, stop: int) -> tuple[int, ...]:
        """Return the token ids at positions [start, stop) of prompt + output."""
        prompt = self.order.prompt
        split = len(prompt)
        if stop <= split:
            return prompt[start:stop]
        if start >= split:
            return tuple(self.output[start - split : stop - split])
        return prompt[start:] + tuple(self.output[: stop - split])

    @property
    def first_scheduled_ns(self) -> int | None:
        """When it first ran, None if it never did."""
        return next((e.at_ns for e in self.timeline if e.status is Status.RUNNING), None)

    def add_token(self, token_id: int, now_ns: int) -> None:
        """Append a generated token and judge its lateness; the first one's time is kept (L38)."""
        slo, index = self.order.slo, len(self.output)
        if self.first_token_ns is None:
            self.first_token_ns = self.shown_ns = now_ns
        else:
            if slo.tbt_mode is TbtMode.GAP:
                late_ns = now_ns - self.shown_ns - slo.tbt_ns
            else:
                late_ns = now_ns - self.first_token_ns - index * slo.tbt_ns
            if late_ns > 0:
                self.late_tokens += 1
                self.worst_late_ns = max(self.worst_late_ns, late_ns)
            self.shown_ns = slo.shown_ns(self.shown_ns, now_ns) if slo.pace_ns else now_ns
        self.last_token_ns = now_ns
        self.output.append(token_id)

    def move_to(self, status: Status, now_ns: int) -> None:
        """Change status: the one place where it happens, checked against the table (law L2)."""
        assert status in TRANSITIONS[self.status], f"{self.id}: {self.status} -> {status}"
        assert now_ns >= self.timeline[-1].at_ns, f"{self.id}: time ran back"
        self.status = status
        self.timeline.append(TimelineEntry(status, now_ns))
