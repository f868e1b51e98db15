"""What a client asks for in headers and fields can only loosen: never sooner, never more."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from door_kit import CHAT, Door, chat_body, eventually
from hypothesis import given
from hypothesis import strategies as st

from engine.core.clock import NS_PER_MS
from engine.core.request import RequestOrder
from gateway.errors import ApiError
from gateway.principal import slo_of
from gateway.wishes import HEADERS, MOST_NS, MOST_PATIENCE, patience_of, read_wishes
from tenants.tiers import check_tier
from tenants.values import Overload, TierRecord

TIERS = st.builds(
    TierRecord,
    name=st.just("t"),
    rank=st.integers(0, 1000),
    ttft_ms=st.integers(1, 24 * 3600 * 1000),
    ttft_ms_per_1k_prompt_tokens=st.integers(0, 24 * 3600 * 1000),
    tbt_ms=st.integers(2, 24 * 3600 * 1000),
    tbt_mode=st.sampled_from(["gap", "stream"]),
    pace_ms=st.integers(0, 1),
    objective=st.just(0.99),
    weight=st.floats(1e-6, 2**31 - 1),
    max_queue=st.none(),
    max_output_tokens=st.none(),
    on_overload=st.sampled_from(Overload),
    version=st.just(1),
)
NUMBERS = st.one_of(
    st.integers(0, 10**15 - 1).map(str),
    st.floats(0, 1e12, allow_nan=False).map(lambda x: f"{x:.6f}"),
    st.sampled_from(["0", "0.0", "000", "0.000000000000001", "999999999999999.9"]),
)
SENT = st.lists(st.tuples(st.sampled_from(sorted(HEADERS)), NUMBERS.map(str.encode)), max_size=6)
PRIORITIES = st.none() | st.integers(-(2**31), 2**31 - 1)
PATIENCES = st.none() | st.integers(0, MOST_PATIENCE)


@given(TIERS, SENT, PRIORITIES, PATIENCES, st.booleans(), st.integers(0, 10**6))
def test_no_wish_gives_an_earlier_deadline_or_more_weight(
    tier: TierRecord,
    sent: list[tuple[bytes, bytes]],
    priority: int | None,
    patience: int | None,
    stream: bool,
    arrival_ns: int,
) -> None:
    """Whatever is sent, for prompts of any length: due no earlier, class and pace unchanged."""
    check_tier(tier)
    wishes = patience_of(priority, patience).and_also(read_wishes(sent))
    own = slo_of(tier, stream=stream)
    for longest in (1, 999, 131_072):
        eased = wishes.ease(own, longest)
        for length in (1, longest // 2 + 1, longest):
            before = own.first_token_due_ns(arrival_ns, length)
            assert before <= eased.first_token_due_ns(arrival_ns, length) < 2**62
        assert own.tbt_ns <= eased.tbt_ns < 2**62
        kept = dataclasses.replace(eased, ttft_ns=own.ttft_ns, tbt_ns=own.tbt_ns)
        assert kept == own, "rank, mode, pace and growth are the tier's"
    assert 0 < wishes.ease_weight(tier.weight) <= tier.weight


@pytest.mark.parametrize(
    ("sent", "ttft_ms", "tbt_ms"),
    [
        ({}, 500, 100),
        ({"x-llm-d-slo-ttft-ms": "2000"}, 2000, 100),
        ({"x-slo-ttft-ms": "2000.5"}, 2000.5, 100),
        ({"x-dynamo-slo-ttft-ms": "900"}, 900, 100),
        ({"x-sgl-ttft-slo-ms": "900"}, 900, 100),
        ({"x-llm-d-slo-ttft-ms": "20"}, 500, 100),
        ({"x-llm-d-slo-ttft-ms": "0"}, 500, 100),
        ({"x-llm-d-slo-ttft-ms": "9000", "x-dynamo-slo-ttft-ms": "800"}, 800, 100),
        ({"x-llm-d-slo-tpot-ms": "250"}, 500, 250),
        ({"x-slo-tpot-ms": "5"}, 500, 100),
        ({"x-sgl-tps-slo": "5"}, 500, 200),
        ({"x-sgl-tps-slo": "100"}, 500, 100),
        ({"x-sgl-tps-slo": "0"}, 500, MOST_NS / NS_PER_MS),
        ({"x-tiergate-patience": "3"}, 2000, 100),
        ({"x-tiergate-patience": "1", "x-slo-ttft-ms": "5000"}, 5000, 100),
        ({"x-llm-d-slo-ttft-ms": "999999999999999"}, MOST_NS / NS_PER_MS, 100),
    ],
)
def test_each_header_loosens_what_it_names(
    sent: dict[str, str], ttft_ms: float, tbt_ms: float
) -> None:
    """The names of others' routers mean here what they mean there, from the tier's promise up."""
    tier = TierRecord("t", 1, 500, 0, 100, "gap", 0, 0.99, 4.0, None, None, Overload.QUEUE, 1)
    wishes = read_wishes([(k.encode(), v.encode()) for k, v in sent.items()])
    eased = wishes.ease(slo_of(tier), 100)
    assert (eased.ttft_ns / NS_PER_MS, eased.tbt_ns / NS_PER_MS) == (ttft_ms, tbt_ms)


@pytest.mark.parametrize(
    ("priority", "patience", "levels"),
    [
        (None, None, 0),
        (0, None, 0),
        (-5, None, 0),
        (-(2**31), 0, 0),
        (3, None, 3),
        (None, 7, 7),
        (2, 7, 7),
        (2**31 - 1, None, MOST_PATIENCE),
    ],
)
def test_a_priority_is_patience_or_nothing(
    priority: int | None, patience: int | None, levels: int
) -> None:
    """vLLM's lower number is sooner: what would be sooner is nothing, what is later is patience."""
    assert patience_of(priority, patience).patience == levels


@pytest.mark.parametrize("raw", [b"", b"-1", b"nan", b"inf", b"1e9", b"12ms", b"0x10", b"1" * 99])
@pytest.mark.parametrize("name", sorted(HEADERS))
def test_what_is_no_number_is_refused(name: bytes, raw: bytes) -> None:
    """A wish that cannot be read is told, not dropped; its value is not repeated."""
    with pytest.raises(ApiError) as refused:
        read_wishes([(name, raw)])
    assert refused.value.param == name.decode()
    assert refused.value.spec.status == 400
    assert not raw or raw.decode() not in refused.value.message.replace("0 or more", "")


@pytest.fixture
def orders(door: Door, monkeypatch: pytest.MonkeyPatch) -> list[RequestOrder]:
    """Whatever is handed to the engine from now on."""
    seen: list[RequestOrder] = []
    engine = door.services.host.engine
    submit: Callable[[RequestOrder], Any] = engine.submit

    def spy(order: RequestOrder) -> Any:
        seen.append(order)
        return submit(order)

    monkeypatch.setattr(engine, "submit", spy)
    return seen


async def test_wishes_reach_the_engine_and_the_class_stays(
    door: Door, orders: list[RequestOrder]
) -> None:
    """The engine gets the later deadline and the smaller weight; the bill and the answer do not."""
    plain = await door.post(CHAT, chat_body(max_tokens=1), "free")
    eased = await door.post(
        CHAT,
        chat_body(max_tokens=1, priority=1),
        "free",
        **{"x-llm-d-slo-ttft-ms": "60000", "x-llm-d-slo-tpot-ms": "5000"},
    )
    assert plain.json()["service_tier"] == eased.json()["service_tier"] == "default"
    before, after = orders
    assert before.slo.first_token_due_ns(0, len(before.prompt)) < 60_000 * NS_PER_MS
    assert after.slo.first_token_due_ns(0, len(after.prompt)) == 60_000 * NS_PER_MS
    assert after.slo.tbt_ns == 5000 * NS_PER_MS
    assert after.slo.rank == before.slo.rank
    assert after.weight == before.weight / 2
    assert {row.tier_served for row in await door.usage(2)} == {"free"}


TRICKS = {
    "x-llm-d-inference-fairness-id": "premium-tenant",
    "x-gateway-inference-fairness-id": "premium-tenant",
    "x-llm-d-inference-objective": "critical",
    "x-llm-d-slo-ttft-ms": "1",
    "x-sgl-tps-slo": "100000",
    "x-tiergate-tier": "premium",
    "x-tiergate-tenant": "premium-tenant",
    "x-priority": "-100",
    "priority": "u=0, i",
    "x-forwarded-user": "premium-tenant",
    "openai-organization": "premium-tenant",
    "openai-project": "premium-tenant",
}
FIELDS = {
    "priority": -(2**31),
    "user": "premium-tenant",
    "metadata": {"tenant": "premium-tenant", "tier": "premium"},
    "cache_salt": "someone else's",
    "prompt_cache_key": "someone else's",
    "tier": "premium",
    "weight": 1000,
    "slo": {"ttft_ms": 1},
    "request_id": "chosen",
}


async def test_no_header_and_no_field_changes_who_one_is(
    door: Door, orders: list[RequestOrder]
) -> None:
    """Everything that other gateways believe is tried at once: the order is the same as without."""
    body = chat_body(max_tokens=1, seed=1)
    await door.post(CHAT, body, "free")
    tricked = await door.post(CHAT, body | FIELDS, "free", **TRICKS)
    assert tricked.status_code == 200
    before, after = (
        dataclasses.replace(order, id="", arrival_ns=0, estimate=None) for order in orders
    )
    assert before == after


async def test_a_bad_wish_is_a_400_at_the_door(door: Door, orders: list[RequestOrder]) -> None:
    """Before anything is reserved; the field names the header."""
    answer = await door.post(CHAT, chat_body(), **{"x-llm-d-slo-ttft-ms": "soon"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-llm-d-slo-ttft-ms")
    for bad in ({"priority": "high"}, {"priority": 2**31}, {"patience": -1}, {"patience": 101}):
        answer = await door.post(CHAT, chat_body(**bad))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(bad)))
    assert orders == []


async def test_a_wish_outlives_a_downgrade(door: Door, orders: list[RequestOrder]) -> None:
    """Who is served as less is promised what that tier promises, or what it asked for."""
    await door.ledger.repository.change_tier(
        "premium", {"on_overload": "downgrade", "max_queue": "1"}
    )
    door.close_gate()
    far = {"x-llm-d-slo-ttft-ms": "90000"}
    asked = [
        asyncio.create_task(door.post(CHAT, chat_body(max_tokens=1, patience=1), **far))
        for _ in range(2)
    ]
    await eventually(lambda: len(orders) == 2, "one is served as less")
    door.open_gate()
    assert {(await one).status_code for one in asked} == {200}
    assert {order.tier for order in orders} == {"premium", "free"}
    tiers = {tier.name: tier for tier in door.services.tiers.current}
    for order in orders:
        assert order.slo.first_token_due_ns(0, len(order.prompt)) == 90_000 * NS_PER_MS
        assert order.slo.rank == tiers[order.tier].rank
        assert order.weight == tiers[order.tier].weight / 2
