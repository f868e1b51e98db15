"""What an owner of limits has used, added up from usage rows on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from tenants.database import Database
from tenants.repository import Repository
from tenants.spent import Used, used_since
from tenants.usage import insert_usage
from tenants.values import Scope, UsageRecord


def row(now: datetime, number: int) -> UsageRecord:
    return UsageRecord(
        request_id=f"r-{number}",
        tenant_id="t-1",
        key_id="k-1",
        tier_requested="free",
        tier_served="free",
        model="builtin",
        prompt_tokens=100,
        cached_tokens=60,
        output_tokens=7,
        finish_reason="stop",
        stream=False,
        arrival=now,
        total_ms=1.0,
        organisation_id="o-1",
        cost_nano=2**40,
    )


async def test_rows_of_the_owner_since_the_moment_count(database: Database, now: datetime) -> None:
    """Of its model where one is named; what arrived before the moment does not count."""
    rows = [
        row(now, 0),
        replace(row(now, 1), arrival=now - timedelta(microseconds=1)),
        replace(row(now, 2), tenant_id="t-2"),
        replace(row(now, 3), organisation_id="o-2", tenant_id="t-3"),
        replace(row(now, 4), model="other", arrival=now + timedelta(days=9)),
    ]
    await insert_usage(database, rows)

    async def of(scope: Scope, target: str, model: str = "") -> Used:
        return await used_since(database, scope, target, now, model=model)

    one = Used(1, 100, 7, 2**40)
    assert await of(Scope.TENANT, "t-1") == Used(2, 200, 14, 2 * 2**40)
    assert await of(Scope.TENANT, "t-1", "other") == one
    assert await of(Scope.ORGANISATION, "o-1") == Used(3, 300, 21, 3 * 2**40)
    assert await of(Scope.ORGANISATION, "o-2") == one
    assert await of(Scope.TENANT, "nobody") == Used(0, 0, 0, 0)


async def test_a_rotated_key_goes_on_with_what_its_chain_has_used(
    database: Database, repository: Repository, now: datetime
) -> None:
    """A rotation gives no second allowance: the rows of all keys of a chain count."""
    await repository.create_tenant("acme", "free", now)
    first = (await repository.create_key("acme", now, "app")).record
    other = (await repository.create_key("acme", now, "else")).record
    second = (await repository.rotate_key(first.id, now, timedelta(days=1))).issued.record
    rows = [
        replace(row(now, number), key_id=key.id)
        for number, key in enumerate((first, second, second, other))
    ]
    await insert_usage(database, rows)
    used = await used_since(database, Scope.KEY, second.chain_id, now)
    assert used == Used(3, 300, 21, 3 * 2**40)


async def test_a_request_counts_once_however_many_choices_it_has(
    database: Database, now: datetime
) -> None:
    """Also where its first choice was never billed; tokens and cost count for every row."""
    chat, text, embedding = f"chatcmpl-{'0' * 32}", f"cmpl-{'a1' * 16}", f"embd-{'0f' * 16}"
    ids = [
        *(f"{chat}-{index}" for index in range(1, 8)),
        *(f"{embedding}-{index}" for index in range(256)),
        *(f"{text}-{index}" for index in (0, 9, 10, 511)),
        *(f"msg_{digit * 32}" for digit in "0123456789abcdef"),
        f"chatcmpl-{'0' * 31}1",
        f"chatcmpl-{'1' * 32}",
    ]
    await insert_usage(database, [replace(row(now, 0), request_id=name) for name in ids])
    used = await used_since(database, Scope.TENANT, "t-1", now)
    num = len(ids)
    assert used == Used(3 + 16 + 2, 100 * num, 7 * num, num * 2**40)
