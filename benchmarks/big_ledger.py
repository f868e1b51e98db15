"""Fills a ledger as a month of a busy gateway would: many tenants, a million judged requests.

Requests go in by the gateway's own writers (`insert_slo`, `insert_usage`), so their sums are made
the way they always are. Tenants are of very unequal size, a tenth are premium, days have a rhythm,
and one request in thirty breaks its promise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random

from gateway.slo_desk import draw_of
from tenants.database import Database
from tenants.repository import Repository
from tenants.slo import Outcome, SloRecord, judged
from tenants.slo_store import insert_slo
from tenants.usage import insert_usage
from tenants.values import DEFAULT_ORGANISATION_ID, UsageRecord

MS = 1_000_000
BATCH = 2000
DAYS = 30
ENDS = (
    *[Outcome.COMPLETED] * 94,
    Outcome.DISCONNECTED,
    Outcome.REFUSED,
    Outcome.LIMITED,
    Outcome.INVALID,
    Outcome.FAILED,
    Outcome.EXPIRED,
)
_GOOD = {Outcome.COMPLETED: "stop", Outcome.DISCONNECTED: "cancelled"}


async def make_tenants(repository: Repository, num: int, now: datetime) -> list[tuple[str, ...]]:
    """Return (tenant id, tier, key id) of each of `num` new tenants with two keys."""
    made = []
    for number in range(num):
        tier = "premium" if number % 10 == 0 else "free"
        tenant = await repository.create_tenant(f"customer-{number:04}", tier, now)
        keys = [await repository.create_key(tenant.id, now, f"app-{n}") for n in range(2)]
        made.append((tenant.id, tier, keys[0].record.id))
    return made


def month(
    tenants: list[tuple[str, ...]], num: int, until: datetime, seed: int = 1
) -> Iterator[SloRecord]:
    """Yield `num` judged requests of the days before `until`, the oldest first."""
    random = Random(seed)
    weights = [1 / (rank + 1) ** 0.8 for rank in range(len(tenants))]
    start, span_s = until - timedelta(days=DAYS), DAYS * 86_400
    who = random.choices(tenants, weights, k=num)
    for number, (tenant_id, tier, key_id) in enumerate(who):
        at_s = (number + random.random()) / num * span_s
        at_s = min(at_s + 3600 * 4 * math.sin(at_s / 86_400 * math.tau), span_s - 1)
        yield one(random, number, tenant_id, tier, key_id, start + timedelta(seconds=max(at_s, 0)))


def one(
    random: Random, number: int, tenant_id: str, tier: str, key_id: str, arrival: datetime
) -> SloRecord:
    """Return one judged request."""
    outcome = random.choice(ENDS)
    prompt = int(random.lognormvariate(5.5, 1))
    premium = tier == "premium"
    due_ns = (500 if premium else 2000) * MS + (250_000 if premium else 1_000_000) * prompt
    has_token = outcome in _GOOD or (outcome is Outcome.FAILED and random.random() < 0.5)
    ttft_ns = int(due_ns * random.lognormvariate(-1.6, 0.8)) if has_token else None
    gaps = int(random.lognormvariate(4.5, 0.8)) if has_token else 0
    late = gaps // 20 if random.random() < 0.01 else 0
    tbt_ns = (100 if premium else 500) * MS
    needed = None if gaps == 0 else int(tbt_ns * (1.4 if late * 100 > gaps else random.random()))
    total_ns = (ttft_ns or 5 * MS) + gaps * 30 * MS
    name = f"chatcmpl-{random.getrandbits(96):024x}"
    record = SloRecord(
        id=name,
        request_id=f"req_{number:024x}",
        tenant_id=tenant_id,
        key_id=key_id,
        model="builtin",
        operation="chat",
        tier_asked=tier,
        tier=tier,
        tier_version=1,
        arrival=arrival,
        outcome=outcome,
        reason="" if outcome in _GOOD else outcome.value,
        stream=True,
        prompt_tokens=prompt,
        output_tokens=gaps + has_token,
        total_ns=total_ns,
        queue_ns=5 * MS if has_token else None,
        ttft_ns=ttft_ns,
        ttft_due_ns=due_ns,
        gaps=gaps,
        late_gaps=late,
        tbt_ns=tbt_ns,
        tbt_mode="gap",
        needed_tbt_ns=needed,
        draw=draw_of(name),
    )
    return judged(record)


def usage_of(record: SloRecord) -> UsageRecord | None:
    """Return what is billed for a request; None where it had no token."""
    if record.ttft_ns is None:
        return None
    return UsageRecord(
        request_id=record.id,
        tenant_id=record.tenant_id,
        key_id=record.key_id,
        tier_requested=record.tier_asked,
        tier_served=record.tier,
        model=record.model,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=0,
        output_tokens=record.output_tokens,
        finish_reason=_GOOD.get(record.outcome, "failed"),
        stream=record.stream,
        arrival=record.arrival,
        total_ms=record.total_ns / MS,
        ttft_ms=record.ttft_ns / MS,
        late_tokens=record.late_gaps,
        slo_met=record.met,
        organisation_id=DEFAULT_ORGANISATION_ID,
        tier_version=record.tier_version,
        cost_nano=100 * record.output_tokens,
    )


async def fill(database: Database, records: Iterator[SloRecord]) -> dict[str, float]:
    """Write all records and their usage; return what it took."""
    num, began = 0, time.perf_counter()
    batch: list[SloRecord] = []
    for record in records:
        batch.append(record)
        if len(batch) == BATCH:
            num += await _write(database, batch)
            batch = []
            if num % 100_000 < BATCH:
                print(f"{num:>9} records, {time.perf_counter() - began:.0f} s", flush=True)
    num += await _write(database, batch)
    took_s = time.perf_counter() - began
    return {"records": num, "seconds": round(took_s, 1), "records_per_s": round(num / took_s)}


async def _write(database: Database, batch: list[SloRecord]) -> int:
    usage = [row for record in batch if (row := usage_of(record))]
    await insert_usage(database, usage)
    return await insert_slo(database, batch)
