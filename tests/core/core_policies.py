"""Policies no operator would choose: one that answers by dice, one that parks at every chance."""

from __future__ import annotations

from collections.abc import Sequence

from core_fakes import digest

from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile
from engine.core.policy import NO_LIMIT, Rank, Room, SchedulingPolicy, StepLimits, Traffic, View
from engine.core.request import Request


def tiny_model(link_ns: float = 0.1) -> LatencyModel:
    """Steps of a few nanoseconds, as in World; a dear link makes dropping cheaper than parking."""
    profile = LatencyProfile(
        name="tiny",
        base_ns=2.0,
        token_ns=0.4,
        tile_tokens=4,
        tile_ns=0.5,
        decode_kv_ns=0.02,
        mixed_kv_factor=1.5,
        pair_ns=0.01,
        prompt_kv_ns=0.01,
        row_ns=0.2,
        link_out_ns_per_token=link_ns,
        link_in_ns_per_token=link_ns,
        block_size=4,
    )
    return LatencyModel(profile)


class HostilePolicy(SchedulingPolicy):
    """Answers everything by dice (repeatable ones): no law may depend on a policy's good will."""

    name = "hostile"
    ranks_move = True
    swaps = True

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seen: dict[str, Request] = {}  # also finished ones, and earlier bearers of an id

    def _roll(self, *parts: object) -> int:
        return digest(self._seed, *parts)

    def limits(self, view: View) -> StepLimits:
        roll = self._roll("limits", view.now_ns)
        return StepLimits(
            max_tokens=(0, 1, 3, 64)[roll % 4],
            max_decodes=(0, 1, 2, 64)[roll // 4 % 4],
            max_prefills=(0, 1, 2, 64)[roll // 16 % 4],
            max_running=(0, 1, 3, 64)[roll // 64 % 4],
            whole_prompts=bool(roll // 256 % 2),
            max_step_ns=(0, 4, 9, NO_LIMIT)[roll // 512 % 4],
            max_copy_tokens=(0, 6, 20, NO_LIMIT)[roll // 2048 % 4],
        )

    def due(self, request: Request, view: View) -> bool:
        return bool(self._roll("due", request.id, view.now_ns) % 2)

    def prefill_rank(self, request: Request, view: View) -> Rank:
        self._seen[request.id] = request
        roll = self._roll("prefill", request.id, view.now_ns // 50) % 4
        return (roll, request.order.arrival_ns, request.id)

    def keep_rank(self, request: Request, view: View) -> Rank:
        roll = self._roll("keep", request.id, view.now_ns // 50) % 4
        return (roll, request.order.arrival_ns, request.id)

    def room(self, request: Request, view: View) -> Room:
        roll = self._roll("room", request.id)
        return Room(claim_tokens=(0, 5, 10**6)[roll % 3], spare_blocks=(0, 1, 10**6)[roll // 3 % 3])

    def may_displace(self, newcomer: Request, victim: Request, view: View) -> bool:
        return bool(self._roll("displace", newcomer.id, victim.id, view.now_ns // 20) % 2)

    def traffic(self, view: View) -> Traffic:
        """Anybody anywhere: the waiting, the finished, the parked once more, some of them twice."""
        roll = self._roll("traffic", view.now_ns)
        known = [*self._seen.values(), *view.prefilling, *view.decoding, *view.parked]
        park = [r for r in known if self._roll("park", r.id, view.now_ns) % (1 + roll % 5) == 0]
        back = [
            r for r in known if self._roll("back", r.id, view.now_ns) % (1 + roll // 5 % 5) == 0
        ]
        return Traffic(park=() if roll % 3 else (*park, *park), back=(*back, *back[:2]))

    def observe(self, requests: Sequence[Request], elapsed_ns: int, view: View) -> None:
        for request in requests:
            request.note = (elapsed_ns,)


class ForcedParks(SchedulingPolicy):
    """Another policy's decisions, but whoever made progress is parked at every chance.

    `one_in` thins parks and returns by dice; 1 does all that is allowed in every step.
    """

    name = "forced"
    swaps = True

    def __init__(self, inner: SchedulingPolicy, seed: int = 0, one_in: int = 1) -> None:
        self._inner = inner
        self._seed = seed
        self._one_in = one_in

    @property
    def ranks_move(self) -> bool:
        return self._inner.ranks_move

    def prefill_rank(self, request: Request, view: View) -> Rank:
        return self._inner.prefill_rank(request, view)

    def limits(self, view: View) -> StepLimits:
        return self._inner.limits(view)

    def due(self, request: Request, view: View) -> bool:
        return self._inner.due(request, view)

    def keep_rank(self, request: Request, view: View) -> Rank:
        return self._inner.keep_rank(request, view)

    def room(self, request: Request, view: View) -> Room:
        return self._inner.room(request, view)

    def may_displace(self, newcomer: Request, victim: Request, view: View) -> bool:
        return True

    def traffic(self, view: View) -> Traffic:
        def chosen(what: str, requests: Sequence[Request]) -> list[Request]:
            one_in, seed = self._one_in, self._seed
            return [r for r in requests if digest(seed, what, r.id, view.now_ns) % one_in == 0]

        return Traffic(
            park=chosen("park", [*view.prefilling, *view.decoding]),
            back=chosen("back", [*view.parked]),
        )

    def observe(self, requests: Sequence[Request], elapsed_ns: int, view: View) -> None:
        self._inner.observe(requests, elapsed_ns, view)


class Tiered(SchedulingPolicy):
    """Rank 0 goes first in everything; the test at hand sets what else it wants."""

    name = "tiered"
    ranks_move = False
    swaps = True

    def __init__(
        self,
        *,
        displaces: bool = True,
        limits: StepLimits | None = None,
        room: Room | None = None,
    ) -> None:
        self.displaces = displaces
        self.shape = limits or StepLimits()
        self.claim = room or Room()
        self.park: tuple[str, ...] = ()
        self.back: tuple[str, ...] = ()
        self.not_due: tuple[str, ...] = ()

    def prefill_rank(self, request: Request, view: View) -> Rank:
        return (request.order.slo.rank, request.order.arrival_ns, request.id)

    def keep_rank(self, request: Request, view: View) -> Rank:
        return (request.order.slo.rank, request.order.arrival_ns, request.id)

    def limits(self, view: View) -> StepLimits:
        return self.shape

    def due(self, request: Request, view: View) -> bool:
        return request.id not in self.not_due

    def room(self, request: Request, view: View) -> Room:
        return self.claim

    def may_displace(self, newcomer: Request, victim: Request, view: View) -> bool:
        return self.displaces

    def traffic(self, view: View) -> Traffic:
        running = {r.id: r for r in (*view.prefilling, *view.decoding)}
        parked = {r.id: r for r in view.parked}
        return Traffic(
            park=[running[name] for name in self.park if name in running],
            back=[parked[name] for name in self.back if name in parked],
        )
