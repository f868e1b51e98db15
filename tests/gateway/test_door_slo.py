"""Every request offered has one record of how its promise was kept, and metrics count the same."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, text_body
from hypothesis import given
from hypothesis import strategies as st
from talking_executor import KILL_BYTE
from test_door_disconnects import leave_during

from engine.core.clock import utc_now
from engine.core.request import Slo, TbtMode
from gateway.slo_desk import INTERRUPTED, draw_of
from gateway.stopwatch import Stopwatch, needed_tbt_ns
from tenants.slo import LATE_SHARE, Objective, Outcome, SloRecord, add_up, judged
from tenants.slo_store import counts, newest_records, read_records
from tenants.slo_windows import MINUTE, floor_to
from tenants.values import Route, Scope

SERIES = re.compile(
    r'tiergate_tier_slo_(requests|violations)_total\{tiergate_slo_objective="(\w+)",'
    r'tiergate_tier="(\w+)"\} ([0-9.e+]+)'
)


async def records(door: Door, at_least: int) -> list[SloRecord]:
    """Return the records once there are so many, the oldest first."""
    found: list[SloRecord] = []
    now = utc_now()
    span = {"since": now - timedelta(hours=1), "until": now + timedelta(hours=1)}

    async def enough() -> bool:
        found[:] = [r async for r in read_records(door.ledger.database, **span)]
        return len(found) >= at_least

    await eventually(enough, f"{at_least} records")
    return found


async def agree(door: Door, found: list[SloRecord]) -> None:
    """The sums of the ledger, the counters of the metrics and the records say the same."""
    now = floor_to(utc_now(), MINUTE)
    span = now - timedelta(minutes=30), now + timedelta(minutes=2)
    tiers = {record.tier for record in found}
    expected = {tier: add_up(r for r in found if r.tier == tier) for tier in tiers}
    assert await counts(door.ledger.database, *span) == expected
    told = {m[:3]: float(m[3]) for m in SERIES.findall((await door.http.get("/metrics")).text)}
    for tier, sums in expected.items():
        for objective in Objective:
            for kind, number in (
                ("requests", sums.counted(objective)),
                ("violations", sums.bad(objective)),
            ):
                assert told.get((kind, objective.value, tier), 0) == number, (kind, objective, tier)
    for record in found:
        assert judged(record) == record
        assert record.draw == draw_of(record.id)


async def test_what_was_served_is_judged(door: Door) -> None:
    """Plain, streamed, several choices, no tokens at all; with the promise that was made."""
    for body in (
        chat_body(max_tokens=5),
        chat_body(stream=True, max_tokens=5),
        chat_body(n=3, max_tokens=4),
        chat_body(max_tokens=0),
    ):
        assert (await door.post(CHAT, body, **{"x-request-id": "mine"})).status_code == 200
    eased = {"x-tiergate-patience": "2"}
    await door.post(CHAT, chat_body(max_tokens=2), "free", **eased)
    plain, streamed, three, none, patient = found = await records(door, 5)
    assert {r.outcome for r in found} == {Outcome.COMPLETED}
    assert [r.met for r in found] == [True, True, True, None, True]
    assert {r.available for r in found} == {True}
    assert [r.output_tokens for r in found] == [5, 5, 12, 0, 2]
    assert [r.gaps for r in found] == [4, 4, 9, 0, 1]
    assert [r.stream for r in found] == [False, True, False, False, False]
    assert (plain.tbt_mode, streamed.tbt_mode, plain.request_id) == ("stream", "gap", "mine")
    assert none.ttft_ns is None
    assert plain.ttft_due_ns == 500_000_000 + 250_000 * plain.prompt_tokens
    assert (patient.eased, plain.eased, patient.tier, plain.tier) == (
        True,
        False,
        "free",
        "premium",
    )
    assert patient.ttft_due_ns > 3 * 2_000_000_000
    assert three.needed_tbt_ns is not None
    assert none.needed_tbt_ns is None
    await agree(door, found)


async def test_what_was_turned_away_counts_by_whose_doing_it_was(tmp_path: Path) -> None:
    """Nonsense and one's own limits are nobody's broken promise; a full house is ours."""
    async with open_door(tmp_path, settings={"max_queue": 1}) as door:
        limits = {"requests_per_minute": 1}
        await door.ledger.repository.set_limits(Scope.TENANT, "free-tenant", limits, utc_now())
        same = {"x-request-id": "the-same"}
        assert (await door.post(CHAT, b"{", **same)).status_code == 400
        assert (await door.post(CHAT, chat_body(temperature=-1), **same)).status_code == 400
        assert (await door.post(CHAT, chat_body(max_tokens=1), "free")).status_code == 200
        assert (await door.post(CHAT, chat_body(max_tokens=1), "free")).status_code == 429
        door.close_gate()
        waiting = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=1)))
        await eventually(lambda: door.services.admission.waiting == 1, "one waits")
        assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 503
        door.open_gate()
        assert (await waiting).status_code == 200
        assert (await door.post(CHAT, chat_body(), authorization="Bearer x")).status_code == 401
        found = await records(door, 6)
        assert sorted((r.outcome.value, r.reason, r.met) for r in found) == [
            ("completed", "", True),
            ("completed", "", True),
            ("invalid", "invalid_request", None),
            ("invalid", "invalid_request", None),
            ("limited", "rate_limited", None),
            ("refused", "saturated", False),
        ]
        assert [r.request_id for r in found].count("the-same") == 2
        await agree(door, found)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_who_left_is_judged_by_what_it_got(tmp_path: Path, stream: bool) -> None:
    async with open_door(tmp_path, options={"step_s": 0.02}) as door:
        body = chat_body(stream=stream, ignore_eos=True, max_tokens=900)
        await leave_during(door, body, held=1)
        (record,) = found = await records(door, 1)
        assert record.outcome is Outcome.DISCONNECTED
        assert record.available is None
        assert record.met is (True if record.output_tokens else None)
        await agree(door, found)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_who_left_in_time_is_not_judged_by_when_its_seat_was_free(
    tmp_path: Path, stream: bool
) -> None:
    """It left before its first token was due, and the engine heard of it long after."""
    async with open_door(tmp_path, options={"step_s": 0.02}) as door:
        await door.post(CHAT, chat_body(max_tokens=2))
        door.close_gate()
        asked = asyncio.create_task(door.post(CHAT, chat_body(stream=stream, max_tokens=50)))
        await eventually(lambda: door.services.admission.waiting == 1, "it waits")
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await eventually(lambda: all(a.client_left for a in door.services.live), "it is seen")
        await asyncio.sleep(0.7)  # due after half a second
        door.open_gate()
        _, record = found = await records(door, 2)
        assert (record.outcome, record.met, record.ttft_met) == (Outcome.DISCONNECTED, None, None)
        assert record.total_ns < record.ttft_due_ns
        await agree(door, found)


async def test_who_gives_up_on_a_stream_that_stands_still_was_not_served(tmp_path: Path) -> None:
    """The token that was waited for in vain is late, though it never came; nobody is billed it."""
    async with open_door(tmp_path, options={"step_s": 0.01}) as door:
        await door.ledger.repository.change_tier("premium", {"tbt_ms": "50"}, now=utc_now())
        await eventually(lambda: door.services.tiers.current[0].tbt_ms == 50, "a tighter promise")
        body = chat_body(stream=True, ignore_eos=True, max_tokens=900)

        def has_tokens() -> bool:
            return any(r.output_tokens > 3 for r in door.services.slo.under_way())

        asked = asyncio.create_task(door.post(CHAT, body))
        await eventually(has_tokens, "it streams")
        door.close_gate()
        await asyncio.sleep(0.3)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await eventually(lambda: all(a.client_left for a in door.services.live), "it is seen")
        door.open_gate()
        (record,) = found = await records(door, 1)
        assert (record.outcome, record.ttft_met) == (Outcome.DISCONNECTED, True)
        assert (record.tbt_met, record.met) == (False, False)
        assert record.late_gaps == 1
        assert record.needed_tbt_ns is not None
        assert record.needed_tbt_ns > 200_000_000
        await agree(door, found)


async def test_all_prompts_of_a_request_have_to_begin_in_time(tmp_path: Path) -> None:
    """One seat and six prompts: the last one's first token is what the promise is judged by."""
    engine, options = {"max_batch_requests": 1}, {"step_s": 0.03}
    async with open_door(tmp_path, engine=engine, options=options) as door:
        await door.post(TEXT, text_body(["a", "b", "c", "d", "e", "f"], max_tokens=8))
        (record,) = found = await records(door, 1)
        assert record.ttft_ns is not None
        assert record.ttft_ns > record.ttft_due_ns
        assert (record.outcome, record.met) == (Outcome.COMPLETED, False)
        await agree(door, found)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [(RuntimeError, Outcome.REFUSED), (asyncio.CancelledError, Outcome.REFUSED)],
)
async def test_a_fault_that_nobody_foresaw_is_ours(
    door: Door, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException], outcome: Outcome
) -> None:
    """Whatever breaks before the answer begins, the request was offered."""

    async def broken(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(door.services.lengths, "guess", broken)
    with suppress(httpx.TransportError):
        assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 500
    (record,) = found = await records(door, 1)
    assert (record.outcome, record.met, record.available) == (outcome, False, False)
    await agree(door, found)


async def test_a_key_that_may_not_is_a_known_tenants(door: Door) -> None:
    """Its request is nobody's broken promise, but it was offered, and by whom is known."""
    repository = door.ledger.repository
    key = await repository.create_key("free-tenant", utc_now(), "one", scopes=[Route.MODELS])
    sent = {"authorization": f"Bearer {key.plaintext}"}
    assert (await door.post(CHAT, chat_body(), **sent)).status_code == 403
    (record,) = found = await records(door, 1)
    assert (record.outcome, record.reason, record.met) == (Outcome.INVALID, "forbidden", None)
    assert record.key_id == key.record.id
    await agree(door, found)


async def test_closing_its_key_does_not_undo_what_a_request_got(tmp_path: Path) -> None:
    """Else an operator could take back broken promises."""
    async with open_door(tmp_path, options={"step_s": 0.02}) as door:
        body = chat_body(stream=True, ignore_eos=True, max_tokens=900)
        asked = asyncio.create_task(door.post(CHAT, body))
        await eventually(
            lambda: any(r.output_tokens for r in door.services.slo.under_way()), "it streams"
        )
        repository = door.ledger.repository
        (key,) = await repository.list_keys("premium-tenant")
        await repository.revoke_key(key.id, utc_now())
        await asked
        (record,) = found = await records(door, 1)
        assert (record.outcome, record.reason) == (Outcome.DISCONNECTED, "unauthenticated")
        assert record.met is not None
        await agree(door, found)


async def test_an_engine_that_dies_breaks_promises(tmp_path: Path) -> None:
    """The stream it took along has failed; so has the request that killed it."""
    async with open_door(tmp_path, process=True, options={"step_s": 0.02, "mortal": True}) as door:
        body = chat_body(stream=True, ignore_eos=True, max_tokens=900)
        running = asyncio.create_task(door.post(CHAT, body))
        await eventually(lambda: len(door.services.live) == 1, "a stream runs")
        await asyncio.sleep(0.3)
        await door.post(TEXT, text_body([KILL_BYTE, 97], max_tokens=5))
        await running
        found = await records(door, 2)
        assert [(r.outcome, r.met, r.available) for r in found] == [
            (Outcome.FAILED, False, False),
            (Outcome.FAILED, False, False),
        ]
        await agree(door, found)


async def test_a_deadline_is_ours(tmp_path: Path) -> None:
    settings = {"stream_timeout_s": 0.5}
    async with open_door(tmp_path, options={"step_s": 0.05}, settings=settings) as door:
        await door.post(CHAT, chat_body(stream=True, ignore_eos=True, max_tokens=900))
        (record,) = found = await records(door, 1)
        assert (record.outcome, record.met) == (Outcome.EXPIRED, False)
        await agree(door, found)


async def test_what_is_under_way_is_known_for_the_case_of_a_kill(tmp_path: Path) -> None:
    """The note on disk has it as failed; once it is over, the whole record is what stays."""
    async with open_door(tmp_path, options={"step_s": 0.02}) as door:
        body = chat_body(stream=True, ignore_eos=True, max_tokens=60)
        running = asyncio.create_task(door.post(CHAT, body))

        def under_way() -> Any:
            return [r for r in door.services.slo.under_way() if r.output_tokens]

        await eventually(under_way, "it has tokens")
        (note,) = under_way()
        assert (note.outcome, note.reason, note.met) == (Outcome.FAILED, INTERRUPTED, False)
        await running
        (record,) = await records(door, 1)
        assert (record.id, record.outcome) == (note.id, Outcome.COMPLETED)
        door.services.meter.judge(note)
        await door.post(CHAT, chat_body(max_tokens=1))
        assert [r.outcome for r in await records(door, 2)] == [Outcome.COMPLETED] * 2
        assert door.services.slo.under_way() == []


@given(
    gaps=st.lists(st.lists(st.integers(0, 900), max_size=250), min_size=1, max_size=3),
    mode=st.sampled_from(TbtMode),
    tbt_ns=st.integers(1, 900),
)
def test_the_needed_gap_is_the_verdict(gaps: list[list[int]], mode: TbtMode, tbt_ns: int) -> None:
    """With it at most one gap in a hundred is late, with a nanosecond less there are more."""

    def watched(tbt_ns: int) -> list[Stopwatch]:
        keeps = 1 + sum(map(len, gaps)) // LATE_SHARE
        watches = []
        for each in gaps:
            watch = Stopwatch(0, 2, Slo(tbt_ns=tbt_ns, tbt_mode=mode), keeps=keeps)
            at_ns = 1000
            watch.tokens(1, at_ns)
            for gap in each:
                at_ns += gap
                watch.tokens(1, at_ns)
            watches.append(watch)
        return watches

    def is_met(tbt_ns: int) -> bool:
        watches = watched(tbt_ns)
        return sum(w.late for w in watches) * LATE_SHARE <= sum(w.gaps for w in watches)

    needed = needed_tbt_ns(watched(tbt_ns), LATE_SHARE)
    if needed is None:
        assert not any(gaps)
        return
    assert is_met(tbt_ns) == (needed <= tbt_ns)
    assert is_met(needed)
    assert needed == 0 or not is_met(needed - 1)


async def test_the_newest_come_first(door: Door) -> None:
    for _ in range(3):
        await door.post(CHAT, chat_body(max_tokens=1))
    found = await records(door, 3)
    page = await newest_records(door.ledger.database, limit=2)
    assert page.records == found[:0:-1]
