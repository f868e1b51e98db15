"""The bounded queue at the door: who is let in, who is refused, and what the refused are told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import httpx
import pytest
from door_kit import CHAT, Door, chat_body, eventually, open_door
from hypothesis import given
from hypothesis import strategies as st
from openai import InternalServerError
from sqlalchemy import text

from engine.core.admission import HINT_STEPS_S
from engine.core.clock import NS_PER_S, VirtualClock
from gateway.admission import Admission, Reservation
from gateway.errors import ApiError, Problem
from tenants.values import Overload, TierRecord


def tier_of(name: str = "free", max_queue: int | None = None) -> TierRecord:
    return TierRecord(
        name, 1, 500, 250, 100, "gap", 0, 0.99, 1.0, max_queue, None, Overload.QUEUE, 1
    )


def admission_of(
    clock: VirtualClock | None = None, queue: int = 10, tokens: int = 10**6, factor: float = 1e6
) -> Admission:
    """An admission in which any tenant may fill the queue, unless told otherwise."""
    return Admission(
        clock or VirtualClock(),
        max_queue=queue,
        max_queue_prompt_tokens=tokens,
        tenant_factor=factor,
    )


async def test_five_hundred_wait_and_the_next_is_refused_clearly(tmp_path: Path) -> None:
    """500 requests queue up, whatever comes then is refused at once, and all 500 are served."""
    settings = {"max_queue": 501, "tenant_queue_factor": 1e6}
    async with open_door(tmp_path, settings=settings) as door:
        await raise_tier_queues(door)
        door.close_gate()
        limits = httpx.Limits(max_connections=600)
        async with httpx.AsyncClient(base_url=door.url, timeout=60, limits=limits) as http:

            async def ask() -> httpx.Response:
                return await http.post(CHAT, json=chat_body(max_tokens=2), headers=door.auth())

            queued = [asyncio.create_task(ask()) for _ in range(500)]
            await eventually(lambda: door.services.admission.waiting == 500, "500 wait")
            refused = [await ask() for _ in range(5)]
            assert not any(task.done() for task in queued)
            door.open_gate()
            served = await asyncio.gather(*queued)
        assert Counter(answer.status_code for answer in served) == {200: 500}
        for answer in refused:
            assert answer.status_code == 503
            assert answer.headers["x-tiergate-reason"] == "saturated"
            assert answer.json()["error"]["code"] == "queue_full"
            assert 1 <= int(answer.headers["retry-after"]) <= 120
            assert 1 <= int(answer.headers["retry-after-ms"]) <= 120_000
        await door.idle()
        assert len(await door.usage(500)) == 500


async def raise_tier_queues(door: Door) -> None:
    """Let a tier fill the whole queue; tiers are rows, and keys carry them."""
    async with door.ledger.database.write() as session:
        await session.execute(text("UPDATE tiers SET max_queue = NULL"))
        await session.execute(text("UPDATE counters SET value = value + 1"))
    await eventually(
        lambda: all(tier.max_queue is None for tier in door.services.tiers.current),
        "the new rows are known",
    )


async def test_a_tier_has_a_bound_of_its_own(tmp_path: Path) -> None:
    """One tier's queue being full is told as such, and does not keep another tier out."""
    async with open_door(tmp_path) as door:
        door.close_gate()
        free = [asyncio.create_task(door.post(CHAT, chat_body(n=8), "free")) for _ in range(32)]
        await eventually(lambda: door.services.admission.waiting == 256, "the tier is full")
        refused = await door.post(CHAT, chat_body(), "free")
        assert refused.status_code == 503
        assert refused.headers["x-tiergate-reason"] == "tier-capacity"
        premium = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=1)))
        await eventually(lambda: door.services.admission.waiting == 257, "premium is in")
        door.open_gate()
        assert (await premium).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*free)} == {200}


async def test_the_sdk_retries_at_the_hinted_time(tmp_path: Path) -> None:
    """The official client takes our hint, comes back, and is served."""
    async with open_door(tmp_path, settings={"max_queue": 1}) as door:
        door.close_gate()
        first = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=1)))
        await eventually(lambda: door.services.admission.waiting == 1, "one waits")
        async with door.openai() as impatient:
            with pytest.raises(InternalServerError):
                await impatient.chat.completions.create(**chat_body())
        async with door.openai(max_retries=1) as patient:
            again = asyncio.create_task(patient.chat.completions.create(**chat_body(max_tokens=1)))
            await asyncio.sleep(0.1)
            door.open_gate()
            assert (await first).status_code == 200
            assert (await again).choices[0].message.content == "a"


async def test_prompt_tokens_are_bounded_apart_from_requests(tmp_path: Path) -> None:
    """Long prompts fill the queue by their tokens; a lone one is always let in."""
    async with open_door(tmp_path, settings={"max_queue_prompt_tokens": 300}) as door:
        door.close_gate()
        long = chat_body("x" * 400, max_tokens=1)
        first = asyncio.create_task(door.post(CHAT, long))
        await eventually(lambda: door.services.admission.waiting == 1, "a long one is in")
        refused = await door.post(CHAT, chat_body())
        assert refused.headers["x-tiergate-reason"] == "saturated"
        door.open_gate()
        assert (await first).status_code == 200


def test_hints_follow_the_drain_rate_in_steps() -> None:
    """With 2 departures a second and 39 waiting the hint is 20 s, and never a raw number."""
    clock = VirtualClock()
    admission = admission_of(clock, queue=100)
    tier = tier_of()
    assert admission.hint_ms("free") == 2000
    for _ in range(39):
        admission.admit(tier, "t", [1])
    for _ in range(20):
        clock.advance_to(clock.now_ns() + NS_PER_S // 2)
        admission.admit(tier, "t", [1]).first_token(0)
    hint = admission.hint_ms("free")
    assert hint == 20_000
    assert hint // 1000 in HINT_STEPS_S
    clock.advance_to(clock.now_ns() + 3600 * NS_PER_S)
    assert admission.hint_ms("free") == 2000


def test_a_queue_that_is_rarely_full_does_not_look_slow() -> None:
    """Departures that follow arrivals say nothing of how fast a full queue would drain."""
    clock = VirtualClock()
    admission = admission_of(clock, queue=100)
    for _ in range(50):
        clock.advance_to(clock.now_ns() + NS_PER_S)
        admission.admit(tier_of(), "t", [1]).first_token(0)
    for _ in range(60):
        admission.admit(tier_of(), "t", [1])
    assert admission.hint_ms("free") == 2000


def test_draining_refuses_with_its_own_reason() -> None:
    """A gateway that shuts down says so."""
    admission = admission_of()
    admission.draining = True
    with pytest.raises(ApiError) as refused:
        admission.admit(tier_of(), "t", [1])
    assert refused.value.problem is Problem.DRAINING
    assert refused.value.response().headers["x-tiergate-reason"] == "draining"


Step = tuple[str, int, list[int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "first", "release"]),
        st.integers(0, 20),
        st.lists(st.integers(1, 50), min_size=1, max_size=4),
    ),
    max_size=60,
)


@given(STEPS, st.sampled_from([0.5, 1.0, 2.0, 8.0, 1e6]))
def test_places_are_never_lost_and_never_made_up(steps: list[Step], factor: float) -> None:
    """Against a model that keeps sets: counts agree, bounds hold, giving back twice is nothing."""
    admission = admission_of(queue=8, tokens=120, factor=factor)
    held: list[tuple[Reservation, dict[int, int]]] = []
    for verb, pick, lengths in steps:
        tenant = f"t{pick % 3}"
        waiting = sum(len(places) for _, places in held)
        tokens = sum(sum(places.values()) for _, places in held)
        if verb == "admit":
            fits = waiting + len(lengths) <= 8 and (not waiting or tokens + sum(lengths) <= 120)
            own = [places for r, places in held if r.tenant == tenant and places]
            if own:
                num, sums = sum(map(len, own)), sum(sum(places.values()) for places in own)
                fits &= num + len(lengths) <= factor * (8 - waiting - len(lengths))
                fits &= sums + sum(lengths) <= factor * (120 - tokens - sum(lengths))
            try:
                held.append((admission.admit(tier_of(), tenant, lengths), dict(enumerate(lengths))))
                assert fits
            except ApiError:
                assert not fits
        elif held:
            reservation, places = held[pick % len(held)]
            if verb == "first":
                reservation.first_token(pick % 4)
                places.pop(pick % 4, None)
            else:
                reservation.release()
                places.clear()
        assert admission.waiting == sum(len(places) for _, places in held)
        assert admission.waiting_prompt_tokens == sum(sum(p.values()) for _, p in held)


@given(st.integers(1, 12), st.sampled_from([0.5, 1.0, 8.0]), st.integers(20, 400))
def test_whoever_comes_finds_room_however_many_crowd_in(
    crowd: int, factor: float, queue: int
) -> None:
    """Tenants that take all they can get, alone or together, leave a place for the next one."""
    admission = admission_of(queue=queue, factor=factor)
    for turn in range(queue * 3):
        with contextlib.suppress(ApiError):
            admission.admit(tier_of(), f"greedy-{turn % crowd}", [1])
    admission.admit(tier_of(), "newcomer", [1])


def test_one_tenant_alone_gets_nearly_all_of_the_queue() -> None:
    """With the factor that is set by default a lone tenant has eight ninths, and is told why."""
    admission = admission_of(queue=512, factor=8)
    for _ in range(455):
        admission.admit(tier_of(), "alone", [1])
    with pytest.raises(ApiError) as refused:
        admission.admit(tier_of(), "alone", [1])
    assert refused.value.problem is Problem.SATURATED
    assert "Your share of the queue is full." in refused.value.message
