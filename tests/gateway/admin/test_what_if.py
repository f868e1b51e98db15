"""What other targets would have meant: exactly what judging each request again says, or said so."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from admin_kit import open_office

from engine.core.clock import NS_PER_MS, utc_now
from gateway.dashboard.tier_fields import typed
from gateway.dashboard.what_if import Share as GoodShare
from gateway.dashboard.what_if import Targets, sampling_error, what_if
from tenants.slo import Objective, Outcome, SloRecord, is_steady, judge, judged
from tenants.slo_store import insert_slo
from tenants.tiers import changed_tier, new_tier

TIER = new_tier(
    "gold",
    {"rank": "0", "ttft_ms": "500", "ttft_ms_per_1k_prompt_tokens": "200", "tbt_ms": "50"},
)


def a_record(draw: random.Random, number: int, tenants: int = 3) -> SloRecord:
    """Return a request with times of its own, judged by `TIER` from all of its gaps."""
    gaps = [draw.randrange(5 * NS_PER_MS, 90 * NS_PER_MS) for _ in range(draw.randrange(0, 250))]
    outcome = draw.choice([Outcome.COMPLETED] * 8 + list(Outcome))
    ttft = draw.randrange(1100) * NS_PER_MS if draw.random() < 0.9 else None
    if ttft is None:
        gaps = []
    prompt = draw.randrange(3000)
    due = (500 * NS_PER_MS) + 200 * NS_PER_MS * prompt // 1000
    total = (ttft or draw.randrange(2000) * NS_PER_MS) + sum(gaps)
    late = sum(gap > 50 * NS_PER_MS for gap in gaps)
    needed = sorted(gaps, reverse=True)[len(gaps) // 100] if gaps else None
    record = SloRecord(
        id=f"r-{number}",
        request_id=f"req_{number}",
        tenant_id=f"t-{draw.randrange(tenants)}",
        key_id="k",
        model="builtin",
        operation="chat",
        tier_asked="gold",
        tier="gold",
        tier_version=1,
        arrival=datetime(2026, 11, 20, tzinfo=UTC) + timedelta(seconds=number),
        outcome=outcome,
        reason="",
        stream=True,
        prompt_tokens=prompt,
        output_tokens=len(gaps) + 1,
        total_ns=total,
        queue_ns=None,
        ttft_ns=ttft,
        ttft_due_ns=due,
        gaps=len(gaps),
        late_gaps=late,
        tbt_ns=50 * NS_PER_MS,
        tbt_mode="gap",
        needed_tbt_ns=needed,
        draw=draw.randrange(1024),
    )
    return judged(record)


def test_the_targets_there_are_give_the_verdicts_there_are() -> None:
    """Judged again by its own tier every request is judged the same, whatever became of it."""
    draw = random.Random(1)
    for number in range(3000):
        record = a_record(draw, number)
        assert Targets.of(TIER).verdict(record) == record.verdict, record


def test_other_targets_give_what_judging_all_gaps_gives() -> None:
    """The least sufficient TBT and the first token stand for all that a verdict needs."""
    draw = random.Random(2)
    for number in range(1500):
        state = draw.getstate()
        record = a_record(draw, number)
        ttft_ms, tbt_ms = draw.randrange(1, 1500), draw.randrange(1, 100)
        tier = changed_tier(TIER, {"ttft_ms": str(ttft_ms), "tbt_ms": str(tbt_ms)})
        again = random.Random()
        again.setstate(state)
        gaps = [
            again.randrange(5 * NS_PER_MS, 90 * NS_PER_MS) for _ in range(again.randrange(0, 250))
        ]
        gaps = gaps if record.ttft_ns is not None else []
        expected = judge(
            record.outcome,
            ttft_ns=record.ttft_ns,
            ttft_due_ns=ttft_ms * NS_PER_MS + 200 * NS_PER_MS * record.prompt_tokens // 1000,
            total_ns=record.total_ns,
            is_steady=is_steady(len(gaps), sum(gap > tbt_ms * NS_PER_MS for gap in gaps)),
        )
        assert Targets.of(tier).verdict(record) == expected, (record, tier)


def test_the_answer_adds_up_and_names_whom_it_hits() -> None:
    records = [a_record(random.Random(3 + n), n) for n in range(800)]
    strict = changed_tier(TIER, {"ttft_ms": "200"})
    answer = what_if(records, 1.0, TIER, strict)
    change = answer.objectives[Objective.ALL]
    assert change.now.good == sum(record.met is True for record in records)
    assert change.now.counted == sum(record.met is not None for record in records)
    assert change.then.good < change.now.good
    assert change.lost == sum(one.lost for _, one in answer.tenants) > 0
    assert change.error == 0, "all were looked at"
    assert not answer.is_sample
    same = what_if(records, 1.0, TIER, TIER)
    assert same.tenants == []
    assert same.objectives[Objective.ALL].lost == 0
    assert what_if([], 1.0, TIER, strict).is_met is None


def test_another_way_to_count_gaps_is_said_to_be_a_guess() -> None:
    """Gaps do not tell how far ahead of its stream a token was; answers without gaps do."""
    records = [a_record(random.Random(50 + n), n) for n in range(300)]
    stream = changed_tier(TIER, {"tbt_mode": "stream"})
    answer = what_if(records, 1.0, TIER, stream)
    assert answer.unknown == sum(record.gaps > 0 for record in records) > 0
    for record in records:
        assert Targets.of(stream).verdict(record).tbt_met == record.tbt_met
    plain = replace(records[0], stream=False, tbt_mode="stream", gaps=9, needed_tbt_ns=NS_PER_MS)
    assert Targets.of(stream).is_exact(plain), "what is not streamed always was"


def test_the_stated_error_holds_for_samples() -> None:
    """Of 400 samples of a known whole, about 95 of 100 are within the error that is stated."""
    draw = random.Random(9)
    whole = [1] * 900 + [0] * 100
    within = 0
    for _ in range(400):
        found = draw.sample(whole, 250)
        error = sampling_error(GoodShare(250, sum(found)), 0.25)
        within += abs(sum(found) / 250 - 0.9) <= error
    assert 0.92 <= within / 400 <= 0.99
    assert sampling_error(GoodShare(0, 0), 0.5) == 0


@pytest.mark.asyncio
async def test_the_page_tells_what_the_records_say(tmp_path: Path) -> None:
    """From the ledger's own records of the last week to the sentence that an operator reads."""
    async with open_office(tmp_path) as office:
        ledger = office.door.ledger
        premium = await ledger.repository.get_tier("premium")
        tenant = await ledger.repository.get_tenant("premium-tenant")
        now, draw = utc_now(), random.Random(4)
        records = [
            replace(
                a_record(draw, number),
                tenant_id=tenant.id,
                tier="premium",
                tier_asked="premium",
                tbt_mode=premium.tbt_mode,
                arrival=now - timedelta(minutes=number),
            )
            for number in range(200)
        ]
        await insert_slo(ledger.database, records)
        then = changed_tier(premium, {"ttft_ms": "200"})
        expected = what_if(records, 1.0, premium, then).objectives[Objective.ALL]
        client = office.people["operator"]
        query = typed(premium) | {"ttft_ms": "200", "version": "1"}
        part = await client.get(
            "/admin/tiers/premium/preview", params=query, headers={"hx-request": "true"}
        )
        assert "<html" not in part.text
        assert expected.then.value is not None
        assert f"<strong>{expected.then.value * 100:.1f}" in part.text
        assert expected.now.value is not None
        assert f"<strong>{expected.now.value * 100:.1f}" in part.text
        assert "premium-tenant" in part.text
        assert "Of all 200 requests." in part.text
        assert (await ledger.repository.get_tier("premium")) == premium
