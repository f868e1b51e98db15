"""What metrics count beside the answers that this process gave, and from when on they show it."""

from __future__ import annotations

from door_kit import CHAT, Door, chat_body, eventually
from test_door_slo import SERIES

from tenants.slo import Objective

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
