"""Judged requests for tests: any, or one with what a test cares for; all are consistent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from tenants.slo import DRAWS, Outcome, SloRecord, judged

MOMENT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MS = 1_000_000


def slo_record(number: int = 0, **given: Any) -> SloRecord:
    """Return a record; `given` are fields of it. The verdict follows from them."""
    fields: dict[str, Any] = {
        "id": f"chatcmpl-{number}",
        "request_id": f"req_{number}",
        "tenant_id": "t1",
        "key_id": "k1",
        "model": "builtin",
        "operation": "chat",
        "tier_asked": "premium",
        "tier": "premium",
        "tier_version": 1,
        "arrival": MOMENT + timedelta(seconds=number),
        "outcome": Outcome.COMPLETED,
        "reason": "",
        "stream": True,
        "prompt_tokens": 100,
        "output_tokens": 21,
        "total_ns": 900 * MS,
        "queue_ns": 10 * MS,
        "ttft_ns": 300 * MS,
        "ttft_due_ns": 525 * MS,
        "gaps": 20,
        "late_gaps": 0,
        "tbt_ns": 100 * MS,
        "tbt_mode": "gap",
        "needed_tbt_ns": 30 * MS,
        "draw": number % DRAWS,
        **given,
    }
    return judged(SloRecord(**fields))


@st.composite
def slo_records(draw: st.DrawFn) -> SloRecord:
    """Any request of a few tenants and tiers within five days, edges likely."""
    due, tbt = draw(st.sampled_from([500 * MS, 525 * MS, 2000 * MS])), 100 * MS
    total = draw(st.sampled_from([0, due - 1, due, due + 1, 10 * due]))
    ttft = draw(st.none() | st.sampled_from([0, due - 1, due, due + 1]))
    gaps = 0 if ttft is None else draw(st.sampled_from([0, 1, 99, 100, 101, 500]))
    late = draw(st.integers(0, min(gaps, gaps // 100 + 2)))
    needed = None
    if gaps:
        needed = tbt + draw(st.integers(1, tbt)) if late * 100 > gaps else draw(st.integers(0, tbt))
    return slo_record(
        draw(st.integers(0, 10**6)),
        tenant_id=draw(st.sampled_from(["t1", "t2", "t3"])),
        tier_asked=draw(st.sampled_from(["premium", "free"])),
        tier=draw(st.sampled_from(["premium", "free"])),
        arrival=MOMENT + timedelta(microseconds=draw(st.integers(0, 5 * 86_400 * 10**6))),
        outcome=draw(st.sampled_from(list(Outcome))),
        total_ns=max(total, ttft or 0),
        ttft_ns=ttft,
        ttft_due_ns=due,
        gaps=gaps,
        late_gaps=late,
        tbt_ns=tbt,
        needed_tbt_ns=needed,
        output_tokens=0 if ttft is None else gaps + 1,
        draw=draw(st.integers(0, DRAWS - 1)),
    )
