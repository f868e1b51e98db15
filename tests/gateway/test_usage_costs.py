"""What a request costs: by the tokens delivered, at the prices of the tier that served it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

from door_kit import CHAT, Door, chat_body, eventually
from hypothesis import given
from hypothesis import strategies as st

from engine.core.request import FinishReason
from engine.core.stats import RequestStats
from gateway.principal import slo_of
from gateway.spool import Spool, decode_record
from gateway.stopwatch import Stopwatch
from gateway.usage_row import UsageContext, as_delivered, usage_row
from tenants.tiers import MOST_PRICE_NANO, new_tier
from tenants.values import DEFAULT_ORGANISATION_ID, TierRecord

NOW = datetime(2026, 11, 21, tzinfo=UTC)
PRICES = ("price_prompt_nano", "price_cached_nano", "price_output_nano")
PLAIN = new_tier("t", {"rank": "1", "ttft_ms": "1", "tbt_ms": "10"})
prices = st.integers(0, MOST_PRICE_NANO)


def context(tier: TierRecord | None, *, bills_prompt: bool = True) -> UsageContext:
    watch = Stopwatch(0, 30, slo_of(tier or PLAIN))
    names = ("t", "k", "premium", "t", "m")
    return UsageContext(*names, True, NOW, watch, bills_prompt, organisation_id="o", tier=tier)


def stats(prompt: int, cached: int, output: int) -> RequestStats:
    return RequestStats(
        request_id="r",
        tenant="t",
        tier="t",
        finish_reason=FinishReason.STOP,
        arrival_ns=0,
        finished_ns=9,
        first_scheduled_ns=1,
        first_token_ns=2,
        last_token_ns=9,
        num_prompt_tokens=prompt,
        num_cached_tokens=cached,
        num_output_tokens=output,
        preemptions=0,
    )


@given(
    tokens=st.tuples(*[st.integers(1, 2**31 - 1)] * 3),
    prices=st.tuples(prices, prices, prices),
    version=st.integers(1, 1000),
)
def test_a_row_costs_what_its_tokens_do(
    tokens: tuple[int, int, int], prices: tuple[int, int, int], version: int
) -> None:
    """Added up token by token kind, in whole billionths; it always fits the column."""
    prompt, cached, output = tokens
    cached = min(cached, prompt)
    tier = dataclasses.replace(PLAIN, version=version, **dict(zip(PRICES, prices, strict=True)))
    row = usage_row(stats(prompt, cached, output), context(tier))
    assert row is not None
    fresh = prompt - cached
    assert row.cost_nano == fresh * prices[0] + cached * prices[1] + output * prices[2] < 2**63
    assert (row.tier_version, row.organisation_id) == (version, "o")


def test_a_further_choice_pays_no_prompt() -> None:
    """The prompt of several choices is paid once, with what the cache gave of it."""
    tier = dataclasses.replace(PLAIN, price_prompt_nano=7, price_cached_nano=5, price_output_nano=3)
    row = usage_row(stats(100, 50, 10), context(tier, bills_prompt=False))
    assert row is not None
    assert (row.prompt_tokens, row.cached_tokens, row.cost_nano) == (0, 0, 30)


def test_who_leaves_pays_what_was_delivered() -> None:
    """Of a paced answer, the tokens that reached the client."""
    tier = dataclasses.replace(PLAIN, price_output_nano=3)
    seen = context(tier)
    seen.stopwatch.tokens(4, 10)
    row = usage_row(as_delivered(stats(1, 0, 10), seen.stopwatch), seen)
    assert row is not None
    assert (row.output_tokens, row.cost_nano) == (4, 12)


def test_records_spooled_by_the_first_release_are_taken(tmp_path: Path) -> None:
    """Their lines lack what came later: the default organisation has them, at no cost."""
    line = (
        b'{"request_id":"r","tenant_id":"t","key_id":"k","tier_requested":"free","tier_served":'
        b'"free","model":"m","prompt_tokens":3,"cached_tokens":0,"output_tokens":2,"finish_reason":'
        b'"stop","stream":true,"arrival":"2026-11-20T10:00:00.123456+00:00","total_ms":1.5,'
        b'"ttft_ms":0.5,"late_tokens":0,"preemptions":0,"slo_met":true}\n'
    )
    record = decode_record(line)
    assert (record.organisation_id, record.tier_version, record.cost_nano) == (
        DEFAULT_ORGANISATION_ID,
        0,
        0,
    )
    (tmp_path / "usage.jsonl").write_bytes(line)
    assert list(Spool(tmp_path).batches()) == [[record]]


async def test_a_served_request_is_billed_by_the_version_that_served_it(door: Door) -> None:
    """A price raised later does not touch what was served before."""
    repository = door.ledger.repository
    for price in ("1000", "2000"):
        wanted = await repository.change_tier(
            "free", {"price_prompt_nano": price, "price_output_nano": "10"}
        )

        def is_read(wanted: TierRecord = wanted) -> bool:
            return wanted in door.services.tiers.current

        await eventually(is_read, "the new price is read")
        assert (await door.post(CHAT, chat_body(max_tokens=5), "free")).status_code == 200
    rows = sorted(await door.usage(2), key=lambda row: row.arrival)
    assert [row.tier_version for row in rows] == [2, 3]
    for row, price in zip(rows, (1000, 2000), strict=True):
        assert row.cost_nano == row.prompt_tokens * price + row.output_tokens * 10 > 0
        assert row.organisation_id == DEFAULT_ORGANISATION_ID
