"""What became of each request: token times in, one record and one verdict per request out.

The verdict is that of the scheduling notes, section 1: the first token on time, and at most one in
a hundred of the later tokens late. Token lateness here is emit time less the token's due time in
its tier's mode (`gap`: after the token before; `stream`: after the first token), 0 when early. The
definition that counts from arrival would show a late first token once more with every token.
Whoever did not get a whole answer is a miss: refused, failed, unfinished, and a client that left
of its own accord as well (only where aborts are asked for), since nobody knows why it left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.core.request import TbtMode
from engine.core.stats import RequestStats, TokenEvent
from engine.sim.workload import SimRequest

LATE_PER_HUNDRED = 1  # tokens after the first that may be late


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One offered request, whatever became of it; times in ns since the simulation began.

    `output` counts the tokens generated, `wanted` the true length. `finish_reason` is that of the
    core, `rejected` for a refused one (`refusal` says why, in the core's words or the door's), None
    for one unfinished at the end.
    """

    id: str
    tenant: str
    tier: str
    arrival_ns: int
    prompt: int
    output: int
    wanted: int
    first_scheduled_ns: int | None
    first_token_ns: int | None
    finished_ns: int | None
    finish_reason: str | None
    refusal: str
    late_tokens: int
    worst_lateness_ns: int
    preemptions: int
    parks: int
    predicted: float
    ttft_due_ns: int
    met_ttft: bool
    met_tbt: bool
    met: bool


def meets_tbt(num_output_tokens: int, late_tokens: int) -> bool:
    """Return whether at most 1 % of the tokens after the first were late."""
    return late_tokens * 100 <= LATE_PER_HUNDRED * max(0, num_output_tokens - 1)


class LatenessHistogram:
    """Lateness of every later token of a tier, exact below 256 ns and to 1 part in 128 above.

    Memory is bounded by the number of distinct buckets, whatever the number of tokens.
    """

    __slots__ = ("_late", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._late: Counter[int] = Counter()

    def add_late(self, lateness_ns: int) -> None:
        """Count a late token; `num_tokens` counts the others, told at the end of a request."""
        shift = max(0, lateness_ns.bit_length() - 8)
        self._late[lateness_ns >> shift << shift] += 1

    def quantile(self, share: float) -> int:
        """Return the lateness that this share of all tokens does not exceed, in ns."""
        behind = self.num_tokens - int(share * self.num_tokens)  # tokens at or behind the quantile
        for lateness_ns in sorted(self._late, reverse=True):
            behind -= self._late[lateness_ns]
            if behind <= 0:
                return lateness_ns
        return 0


class _Track:
    """What is known of one live request; plain slots, for it is touched once per token."""

    __slots__ = (
        "first_ns",
        "histogram",
        "is_stream",
        "last_ns",
        "late",
        "num_tokens",
        "request",
        "tbt_ns",
        "worst_ns",
    )

    def __init__(self, request: SimRequest, histogram: LatenessHistogram) -> None:
        slo = request.tier.slo
        self.request = request
        self.histogram = histogram
        self.is_stream = slo.tbt_mode is TbtMode.STREAM
        self.tbt_ns = slo.tbt_ns
        self.num_tokens = 0
        self.first_ns = -1
        self.last_ns = -1
        self.late = 0
        self.worst_ns = 0


class Journal:
    """Follows every offered request to its record."""

    def __init__(self, tiers: Iterable[str]) -> None:
        self.lateness = {tier: LatenessHistogram() for tier in tiers}
        self._live: dict[str, _Track] = {}
        self._records: dict[str, RequestRecord] = {}

    @property
    def num_live(self) -> int:
        """Requests offered, not refused and not ended."""
        return len(self._live)

    @property
    def live(self) -> Iterable[SimRequest]:
        """Return them."""
        return [track.request for track in self._live.values()]

    @property
    def num_recorded(self) -> int:
        """Requests with a record: refused or ended."""
        return len(self._records)

    def offer(self, request: SimRequest) -> None:
        """A request arrives."""
        known = request.id in self._live or request.id in self._records
        assert not known, f"{request.id} arrives twice"
        self._live[request.id] = _Track(request, self.lateness[request.tier.name])

    def refuse(self, request: SimRequest, reason: str) -> None:
        """The door or the core does not take it: it was offered, and it is a miss."""
        track = self._live.pop(request.id)
        self._records[request.id] = _record(track, None, reason)

    def take(self, events: Sequence[TokenEvent]) -> None:
        """Follow the events of a step or a command, in order."""
        live = self._live
        for event in events:
            track = live[event.request_id]
            if event.token_id is not None:
                at_ns = event.at_ns
                if track.num_tokens == 0:
                    track.first_ns = at_ns
                else:
                    if track.is_stream:
                        late_ns = at_ns - track.first_ns - track.num_tokens * track.tbt_ns
                    else:
                        late_ns = at_ns - track.last_ns - track.tbt_ns
                    if late_ns > 0:
                        track.late += 1
                        track.histogram.add_late(late_ns)
                        if late_ns > track.worst_ns:
                            track.worst_ns = late_ns
                track.num_tokens += 1
                track.last_ns = at_ns
            if event.stats is not None:
                del live[event.request_id]
                self._close(track, event.stats)

    def _close(self, track: _Track, stats: RequestStats) -> None:
        first_ns = track.first_ns if track.num_tokens else None
        assert stats.first_token_ns == first_ns, f"{stats.request_id}: first token told anew (L38)"
        assert stats.late_tokens == track.late, f"{stats.request_id}: late tokens counted wrong"
        assert stats.num_output_tokens == track.num_tokens, f"{stats.request_id}: a token was lost"
        self._count_tokens(track)
        self._records[stats.request_id] = _record(track, stats, "")

    def records(self, requests: Sequence[SimRequest]) -> tuple[RequestRecord, ...]:
        """Return a record for each request, those unfinished or yet to come included."""
        made = []
        for request in requests:
            record = self._records.get(request.id)
            if record is None:
                track = self._live.pop(request.id, None)
                if track is None:
                    track = _Track(request, self.lateness[request.tier.name])
                self._count_tokens(track)
                record = self._records[request.id] = _record(track, None, "")
            made.append(record)
        return tuple(made)

    def _count_tokens(self, track: _Track) -> None:
        track.histogram.num_tokens += max(0, track.num_tokens - 1)


def _record(track: _Track, stats: RequestStats | None, refusal: str) -> RequestRecord:
    request, generated = track.request, track.num_tokens
    due_ns = request.tier.slo.first_token_due_ns(request.arrival_ns, request.num_prompt_tokens)
    met_ttft = generated > 0 and track.first_ns <= due_ns
    met_tbt = generated > 0 and meets_tbt(generated, track.late)
    reason = None if stats is None else stats.finish_reason.value
    return RequestRecord(
        id=request.id,
        tenant=request.tenant,
        tier=request.tier.name,
        arrival_ns=request.arrival_ns,
        prompt=request.num_prompt_tokens,
        output=generated,
        wanted=request.num_output_tokens,
        first_scheduled_ns=None if stats is None else stats.first_scheduled_ns,
        first_token_ns=track.first_ns if generated else None,
        finished_ns=None if stats is None else stats.finished_ns,
        finish_reason="rejected" if refusal else reason,
        refusal=refusal,
        late_tokens=track.late,
        worst_lateness_ns=track.worst_ns,
        preemptions=0 if stats is None else stats.preemptions,
        parks=0 if stats is None else stats.parks,
        predicted=0.0 if stats is None else stats.predicted_tokens,
        ttft_due_ns=due_ns,
        met_ttft=met_ttft,
        met_tbt=met_tbt,
        met=met_ttft and met_tbt and reason in ("stop", "length"),
    )
