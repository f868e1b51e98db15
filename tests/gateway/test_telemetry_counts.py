"""What metrics count beside the answers that this process gave, and from when on they show it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from door_kit import CHAT, Door, chat_body, eventually, open_door
from test_door_slo import SERIES, records
from test_record_bounds import judged as a_record

from gateway.slo_desk import INTERRUPTED
from gateway.spool import NOTE, encode_record
from tenants.slo import Objective, Outcome, SloRecord, judged

KINDS = ("requests", "violations")


async def tier_counts(door: Door, tier: str) -> dict[tuple[str, str], float]:
    """Return what metrics say of a tier, by kind and objective."""
    found = SERIES.findall((await door.http.get("/metrics")).text)
    return {(kind, of): float(number) for kind, of, name, number in found if name == tier}


async def test_a_tier_that_is_added_is_shown_at_zero_before_its_first_request(door: Door) -> None:
    """Else `rate` would not see the first requests that it serves."""
    assert await tier_counts(door, "batch") == {}
    fields = {"rank": "3", "ttft_ms": "60000", "tbt_ms": "2000"}
    await door.ledger.repository.create_tier("batch", fields)

    async def is_shown() -> bool:
        return bool(await tier_counts(door, "batch"))

    await eventually(is_shown, "the running gateway shows the new tier")
    assert await tier_counts(door, "batch") == {
        (kind, objective.value): 0 for kind in KINDS for objective in Objective
    }
    await door.post(CHAT, chat_body(max_tokens=2))
    before = await tier_counts(door, "premium")
    assert before["requests", "all"] == 1
    await door.ledger.repository.change_tier("batch", {"ttft_ms": "50000"})
    await eventually(
        lambda: any(tier.ttft_ms == 50_000 for tier in door.services.tiers.current), "it changed"
    )
    assert await tier_counts(door, "premium") == before


def left_behind(name: str, outcome: Outcome, reason: str) -> SloRecord:
    record = dataclasses.replace(
        a_record(1), id=name, tier="premium", outcome=outcome, reason=reason, gaps=3, late_gaps=1
    )
    return judged(record)


async def test_what_died_with_its_process_is_counted_by_who_hands_it_in(tmp_path: Path) -> None:
    """Once, and only that: what had ended was counted by the one that died."""
    died = left_behind("chatcmpl-died", Outcome.FAILED, INTERRUPTED)
    ended = left_behind("chatcmpl-ended", Outcome.FAILED, "engine_error")
    note = tmp_path / "data" / "spool" / NOTE
    note.parent.mkdir(parents=True)
    note.write_bytes(b"".join(encode_record(record) for record in (died, ended)))
    async with open_door(tmp_path) as door:
        await records(door, 2)
        counted = dict.fromkeys([(k, o.value) for k in KINDS for o in Objective], 1)
        counted["violations", "ttft"] = 0

        async def is_counted() -> bool:
            return await tier_counts(door, "premium") == counted

        await eventually(is_counted, "the one that died is counted")
        # As when two of them find the same note, or one dies before it has thrown it away.
        door.services.meter.judge(died)
        await door.post(CHAT, chat_body(max_tokens=1), "free")
        await records(door, 3)
        assert await is_counted()
        text = (await door.http.get("/metrics")).text
        assert re.findall(r'^tiergate_slo_gap\w*_total\{.*tenant_id="t".*$', text, re.M) == [
            'tiergate_slo_gaps_total{tiergate_tenant_id="t",tiergate_tier="premium"} 3.0',
            'tiergate_slo_gap_violations_total{tiergate_tenant_id="t",tiergate_tier="premium"} 1.0',
        ]


STEP_S = 0.02


@pytest.mark.parametrize("stream", [True, False])
async def test_choices_beside_each_other_are_as_slow_as_one(tmp_path: Path, stream: bool) -> None:
    """Three choices of a token a step make no request three times as fast."""
    async with open_door(tmp_path, options={"step_s": STEP_S}) as door:
        for number in (1, 3):
            body = chat_body(stream=stream, n=number, ignore_eos=True, max_tokens=20)
            assert (await door.post(CHAT, body)).status_code == 200
            await records(door, 1 if number == 1 else 2)
        text = (await door.http.get("/metrics")).text
        (count,) = re.findall(
            r"^gen_ai_server_time_per_output_token_seconds_count.* (.*)$", text, re.M
        )
        (total,) = re.findall(
            r"^gen_ai_server_time_per_output_token_seconds_sum.* (.*)$", text, re.M
        )
        assert float(count) == 2
        assert float(total) >= 2 * STEP_S * 0.9
