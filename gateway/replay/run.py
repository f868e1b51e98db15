"""A replay from beginning to end: draw the schedule, try the server, play, judge.

The schedule is the simulator's own. It opens the connections and writes no file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.core.clock import Clock, cpu_time_ns, utc_now
from engine.core.request import FinishReason
from engine.sim.measured import MeasuredJournal, measured_point
from engine.sim.point import PointSpec, workload_of
from engine.sim.records import RequestRecord
from engine.sim.tally import Tally, tally
from engine.sim.trace import TraceRow
from engine.sim.workload import SimRequest
from gateway.replay.dialect import Form
from gateway.replay.evidence import Client, doubts, evidence
from gateway.replay.exchange import Address, Connections, request_bytes
from gateway.replay.keys import Keys, Redactor
from gateway.replay.player import Player, Seen
from gateway.replay.prompts import FIRST_ID, LAST_ID, PromptMaker
from gateway.replay.trial import Known, Trial, Wish

Progress = Callable[[int, int], None]  # ended, of how many


class ReplayError(ValueError):
    """The run came to nothing; one sentence says why."""


@dataclass(frozen=True, slots=True)
class ReplaySpec:
    """What to play where. Of `base` the workload counts, not policy, profile and pools."""

    base: PointSpec
    label: str
    address: Address
    keys: Keys
    wish: Wish = Wish()  # noqa: RUF009 - a value without state
    bound: int = 512
    timeout_s: float = 600.0
    first_id: int = FIRST_ID
    last_id: int = LAST_ID
    salt: str = ""  # of the prompts: another one for each run, or the server has them cached


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it: the simulator's point and records, and what the client knows besides."""

    tally: Tally
    records: tuple[RequestRecord, ...] = field(repr=False)
    seen: tuple[Seen, ...] = field(repr=False)
    measured: dict[str, Any]
    origin_ns: int

    @property
    def point(self) -> dict[str, Any]:
        """The point with its field `measured`."""
        return dict(self.tally.point)

    @property
    def doubts(self) -> list[str]:
        """Every reason to distrust it."""
        return doubts(self.measured, len(self.records))


class Stage:
    """One server and what is needed to ask it; made inside an event loop."""

    def __init__(self, spec: ReplaySpec, rows: Sequence[TraceRow], clock: Clock) -> None:
        self._spec = spec
        self._clock = clock
        self.requests = workload_of(spec.base, rows).requests
        self._hide = Redactor(spec.keys)
        self._prompts = PromptMaker(spec.base.seed, spec.first_id, spec.last_id, spec.salt)
        self._connections = Connections(spec.address, clock)

    async def close(self) -> None:
        """Close what connections there are."""
        await self._connections.close()

    async def try_server(self) -> Known:
        """Return how to ask the server; raises TrialError before anything is measured."""
        trial = Trial(self._connections, self._spec.keys, self._prompts, self._hide)
        return await trial.run(self._spec.wish)

    async def play(self, known: Known, stop: asyncio.Event, progress: Progress) -> Replay:
        """Play the workload, to its end or until `stop`, and judge it; raises ReplayError."""
        spec, clock, requests = self._spec, self._clock, self.requests
        keys = KeyRing(spec.keys)

        def write(request: SimRequest, number: int) -> bytes:
            body = known.dialect.body(request, number, self._prompts)
            return request_bytes(
                spec.address, "POST", known.dialect.path, keys.key_of(request), body
            )

        seen: list[Seen] = []

        def on_seen(one: Seen) -> None:
            seen.append(one)
            progress(len(seen), len(requests))

        player = Player(
            requests,
            self._connections,
            write,
            clock,
            bound=spec.bound,
            timeout_s=spec.timeout_s,
            on_seen=on_seen,
            hide=self._hide,
        )
        started = utc_now().isoformat(timespec="seconds").replace("+00:00", "Z")
        cpu_ns = cpu_time_ns()
        await player.play(stop)
        client = Client(
            origin_ns=player.origin_ns,
            ended_ns=clock.now_ns(),
            cpu_ns=cpu_time_ns() - cpu_ns,
            bound=spec.bound,
            most_open=player.most_open,
            num_held=player.num_held,
            beats=player.beats,
        )
        if not seen:
            raise ReplayError("stopped before the first request was due: nothing to write")
        measured = evidence(
            seen,
            client,
            known.dialect,
            url=spec.address.origin,
            server=known.server,
            served_tiers=known.served_tiers,
            started=started,
            asked_requests=len(requests),
            was_stopped=player.was_stopped,
        )
        return judge(spec, requests[: player.num_due], seen, client, measured)


def judge(
    spec: ReplaySpec,
    requests: Sequence[SimRequest],
    seen: Sequence[Seen],
    client: Client,
    measured: dict[str, Any],
) -> Replay:
    """Return records and point of the requests that were due, by the simulator's own rules."""
    base, origin_ns = spec.base, client.origin_ns
    journal = MeasuredJournal([tier.name for tier in base.tiers], requests[-1].arrival_ns)
    for one in seen:
        journal.tell(
            one.request,
            [at_ns - origin_ns for at_ns in one.token_times],
            one.reason,
            one.ended_ns - origin_ns,
            num_prompt_tokens=one.num_prompt_tokens,
            refusal=one.detail if one.reason is FinishReason.REJECTED else "",
        )
    records = journal.records(requests)
    point = measured_point(
        spec.label,
        base.rate,
        base.seed,
        base.tiers,
        records,
        journal,
        client.ended_ns - origin_ns,
    )
    point["measured"] = measured
    return Replay(
        tally=tally(spec.label, base, point, records),
        records=records,
        seen=tuple(seen),
        measured=measured,
        origin_ns=origin_ns,
    )


class KeyRing:
    """Which key each request carries: its tier's; of several, one for each tenant in turn."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._places: dict[tuple[str, str], int] = {}
        self._tenants: dict[str, int] = {}

    def key_of(self, request: SimRequest) -> str | None:
        """Return the key, None for none."""
        tier = request.tier.name
        keys = self._keys[tier]
        if len(keys) == 1:
            return keys[0]
        who = tier, request.tenant
        if who not in self._places:
            self._places[who] = self._tenants.get(tier, 0)
            self._tenants[tier] = self._places[who] + 1
        return keys[self._places[who] % len(keys)]


def remarks(spec: ReplaySpec, known: Known, requests: Sequence[SimRequest]) -> list[str]:
    """Return what the operator should know before the run begins."""
    lines = []
    if known.dialect.form is not Form.TOKENS:
        lines.append("this server takes no token ids: prompts are texts of about the right length")
    for tier, served in known.served_tiers.items():
        if served != tier:
            lines.append(f"the server serves the key of tier {tier!r} in its tier {served!r}")
    lines += [f"the server was too busy to try the key of tier {tier!r}" for tier in known.busy]
    longest = known.max_model_len
    if longest is not None:
        over = sum(r.num_prompt_tokens + r.num_output_tokens > longest for r in requests)
        if over:
            lines.append(
                f"{over} of {len(requests)} requests are longer than the server's context of "
                f"{longest} tokens and will be refused; see --scale and --max-prompt-tokens"
            )
    return lines
