"""A tenant that floods its class cannot keep another one of that class out of every seat."""

from __future__ import annotations

import dataclasses

import pytest
from core_orders import make_capacity, make_order
from core_scenes import decoding, view, waiting
from hybrid_scenes import FREE, MS, PREMIUM, ROUND, S

from engine.core.batch import SampledToken, StepResult
from engine.core.engine_core import EngineCore
from engine.core.latency_model import LatencyModel
from engine.core.policies.fair_seats import SLACK, FairSeats
from engine.core.policies.hybrid import Hybrid
from engine.core.policies.hybrid_options import HybridOptions
from engine.core.request import Request, Slo, Status

SEATS, CLIENTS, STEP_NS = 8, 60, 20 * MS


def of(tenant: str, request: Request) -> Request:
    """Return the request as another tenant's."""
    request.order = dataclasses.replace(request.order, tenant=tenant)
    return request


class TestClaims:
    """Who has one."""

    def test_a_tenant_without_a_seat_beside_one_with_several_has_a_claim(self) -> None:
        seats = FairSeats()
        first, second = (of("b", waiting(name, slo=FREE)) for name in "xy")
        for request in (first, second, of("a", waiting("a", slo=FREE))):
            seats.enter(request)
        running = [of("a", decoding(f"r{number}", slo=FREE)) for number in range(2)]
        assert seats.claims(view(0, decoding=running)) == [first]
        assert seats.claims(view(0, decoding=running[:1])) == []  # one seat is no flood
        own = of("b", decoding("own", slo=FREE))
        assert seats.claims(view(0, decoding=[*running, own])) == []
        first.move_to(Status.RUNNING, 0)
        assert seats.claims(view(0, decoding=running)) == [second]

    def test_seats_of_other_classes_do_not_count(self) -> None:
        seats = FairSeats()
        seats.enter(of("b", waiting("b", slo=FREE)))
        seats.enter(of("c", waiting("c", slo=FREE)))
        running = [of("a", decoding(f"r{number}", slo=PREMIUM)) for number in range(5)]
        assert seats.claims(view(0, decoding=running)) == []

    def test_memory_stays_bounded(self) -> None:
        seats = FairSeats()
        for number in range(3 * SLACK):
            request = of("a", waiting(f"{number}", slo=FREE))
            seats.enter(request)
            request.move_to(Status.FINISHED, 0)
        stays = of("a", waiting("stays", slo=FREE))
        seats.enter(stays)
        seats.sweep(1)
        assert len(seats) == 1


def longest_wait_s(slo: Slo, **options: float) -> float:
    """Return the neighbour's longest time to a first token, beside a flood in closed loop.

    As many clients of one tenant as `CLIENTS` ask again as soon as they are answered; the
    neighbour asks ten times, one after the other.
    """
    capacity = make_capacity(
        num_blocks=4000, block_size=16, max_model_len=2000, max_batch_requests=SEATS,
        max_batch_tokens=512,
    )  # fmt: skip
    core = EngineCore(capacity, Hybrid(LatencyModel(ROUND), HybridOptions(**options)))
    now, sent, waits, asked_ns = 0, 0, list[int](), dict[str, int]()

    def ask(tenant: str, tokens: int) -> None:
        nonlocal sent
        sent += 1
        order = make_order(f"{tenant}{sent}", 20, max_tokens=tokens, arrival_ns=now, slo=slo)
        core.submit(dataclasses.replace(order, tenant=tenant), now)
        asked_ns[order.id] = now

    for _ in range(CLIENTS):
        ask("flood", 40)
    while len(waits) < 10 and now < 600 * S:
        if now == 10 * S:
            ask("quiet", 5)
        batch = core.start_step(now)
        assert batch is not None
        now += STEP_NS
        tokens = tuple(SampledToken(c.request_id, 5) for c in batch.chunks if c.sampling)
        for event in core.finish_step(batch, StepResult(batch.step, tokens, STEP_NS), now):
            is_quiet = event.request_id.startswith("quiet")
            if is_quiet and event.request_id in asked_ns:
                waits.append(now - asked_ns.pop(event.request_id))
            if event.finish_reason is not None:
                ask("quiet" if is_quiet else "flood", 5 if is_quiet else 40)
    core.check_integrity()
    return max(waits, default=now) / S if len(waits) == 10 else float("inf")


@pytest.mark.parametrize("slo", [FREE, PREMIUM])
def test_a_neighbour_of_a_flood_waits_for_a_seat_and_not_for_the_flood(slo: Slo) -> None:
    """An answer of the flood takes 0.8 s: some seat becomes free far sooner than that."""
    assert longest_wait_s(slo) <= 1.0


def test_without_the_rule_it_waits_for_the_flood() -> None:
    """The scene is one in which it is needed."""
    assert longest_wait_s(FREE, fair_seats=0) > 4.0
