"""Admission by forecast, through the whole gateway: who is let in, downgraded, refused, and told.

The engine takes a step for each prompt, so a burst has to wait; the free tier promises its first
token so soon that whoever comes late in a burst cannot have it. Refusals need experience: a first
burst is served.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, sse, text_body
from talking_executor import KILL_BYTE
from test_door_operations import samples, value

from engine.core.admission import HINT_STEPS_S, AdmissionRules
from engine.core.clock import NS_PER_MS, NS_PER_S
from gateway import metric_names
from gateway.errors import Problem
from gateway.retry_hints import HintBook, HintScore

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "http.md").read_text()
ONE_PROMPT = {"max_batch_tokens": 64}  # in a step
PACE = {"step_s": 0.005, "elapsed_ns": 5_000_000}
LONG = "a prompt that fills more than half of a step"
LATE = {"ttft_ms": "20", "ttft_ms_per_1k_prompt_tokens": "0"}
BURST = AdmissionRules().least_evidence + 10
SURE = 4  # at the first of them the chance may still be about as much as is asked for
REASONS = {"slo-unreachable", "saturated"}


@asynccontextmanager
async def busy_door(tmp_path: Path, mode: str = "soft", **fields: Any) -> AsyncIterator[Door]:
    """A door whose engine is slow; `fields`: what its tiers are changed to, by name."""
    settings = {"admission": mode}
    async with open_door(tmp_path, settings=settings, engine=ONE_PROMPT, options=PACE) as door:
        for name, changes in fields.items():
            await change(door, name, **changes)
        yield door


async def change(door: Door, name: str, **changes: str) -> None:
    """Change a tier, and wait until the door goes by it."""
    made = await door.ledger.repository.change_tier(name, changes)
    await eventually(lambda: made in door.services.tiers.current, f"{name} has changed")


async def burst(door: Door, tier: str, count: int = BURST) -> list[httpx.Response]:
    """Ask for many short answers at once."""
    body = chat_body(LONG, max_tokens=2)
    return list(await asyncio.gather(*[door.post(CHAT, body, tier) for _ in range(count)]))


async def experienced(door: Door, tier: str, on_overload: str) -> None:
    """Let the door see what a storm is like in this tier, before anything is done about it."""
    await change(door, tier, **LATE)
    assert {answer.status_code for answer in await burst(door, tier)} == {200}
    await door.idle()
    await change(door, tier, on_overload=on_overload)


class Queue:
    """Requests that wait at an engine that is held, until one more is not simply let in."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.tasks: list[asyncio.Task[httpx.Response]] = []

    async def fill(self, tier: str, most: int = 150) -> httpx.Response | None:
        """Send until somebody is answered at once: the refusal. None: all of them wait."""
        self.door.close_gate()
        for _ in range(most):
            waiting = self.door.services.admission.waiting
            task = asyncio.create_task(self.door.post(CHAT, chat_body(LONG, max_tokens=2), tier))
            await eventually(
                lambda: task.done() or self.door.services.admission.waiting > waiting,  # noqa: B023
                "it waits or is refused",
            )
            if task.done():
                return task.result()
            self.tasks.append(task)
        return None

    async def drain(self) -> None:
        self.door.open_gate()
        answers = await asyncio.gather(*self.tasks)
        assert {answer.status_code for answer in answers} <= {200}


async def test_the_free_are_refused_when_they_would_be_far_too_late(tmp_path: Path) -> None:
    """One clear refusal with a reason and both hints; nothing is held, billed or remembered."""
    async with busy_door(tmp_path) as door:
        await experienced(door, "free", "reject")
        await experienced(door, "premium", "reject")
        queue = Queue(door)
        refused = await queue.fill("free")
        assert refused is not None
        assert refused.status_code == 503
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("overloaded_error", "slo_unattainable")
        assert refused.headers["x-tiergate-reason"] in REASONS
        hint_ms = int(refused.headers["retry-after-ms"])
        assert hint_ms in [1000 * step for step in HINT_STEPS_S]
        assert int(refused.headers["retry-after"]) * 1000 == hint_ms
        waiting = len(queue.tasks)
        assert door.services.admission.waiting == waiting
        assert door.services.lengths.readings()["open_questions"] == waiting
        # A prediction turns nobody of the first tier away, whatever that tier would have it do.
        premium = Queue(door)
        assert await premium.fill("premium", most=20) is None
        await queue.drain()
        await premium.drain()
        await door.idle()
        assert len(await door.usage(2 * BURST + waiting + 20)) == 2 * BURST + waiting + 20


async def test_hard_refuses_the_first_tier_too_where_it_says_so(tmp_path: Path) -> None:
    """Only then, and only a tier whose row says reject."""
    async with busy_door(tmp_path, "hard") as door:
        await experienced(door, "premium", "reject")
        await experienced(door, "free", "queue")
        queue = Queue(door)
        refused = await queue.fill("premium")
        assert refused is not None
        assert refused.headers["x-tiergate-reason"] in REASONS
        free = Queue(door)
        assert await free.fill("free", most=20) is None
        await queue.drain()
        await free.drain()


@pytest.mark.parametrize("mode", ["off", "shadow"])
async def test_nobody_is_refused_where_forecasts_may_not(tmp_path: Path, mode: str) -> None:
    """Off: nothing is forecast. Shadow: what it would have come to is known all the same."""
    async with busy_door(tmp_path, mode) as door:
        await experienced(door, "free", "reject")
        queue = Queue(door)
        assert await queue.fill("free", most=80) is None
        await queue.drain()
        await door.idle()
        assert bool(door.services.gate.forecasts.scores.read()) is (mode == "shadow")
        assert (ledger(door).checked > 0) is (mode == "shadow")
        # The truth of everybody who would have been refused is known.
        would = ledger(door)
        assert (would.would_refuse > 0) is (mode == "shadow")
        assert would.would_on_time + would.would_missed == would.would_refuse
        assert would.refused == 0
        read = await samples(door)
        said = value(read, "tiergate_refusals_would_total", tiergate_state="said")
        missed = value(read, "tiergate_refusals_would_total", tiergate_state="missed")
        assert (said, missed) == (would.would_refuse, would.would_missed)


async def test_a_tier_that_queues_is_late_and_not_refused(tmp_path: Path) -> None:
    """`queue` is what tiers are seeded with: whoever comes is served, in time or not."""
    async with busy_door(tmp_path) as door:
        await experienced(door, "free", "queue")
        queue = Queue(door)
        assert await queue.fill("free", most=80) is None
        await queue.drain()


async def test_an_idle_engine_takes_everyone(tmp_path: Path) -> None:
    """Whatever was learned in a storm, and however much is promised: nobody waits."""
    async with busy_door(tmp_path) as door:
        await experienced(door, "free", "reject")
        queue = Queue(door)
        assert await queue.fill("free") is not None
        await queue.drain()
        await door.idle()
        await change(door, "free", ttft_ms="1")
        for _ in range(10):
            assert (await door.post(CHAT, chat_body(max_tokens=2), "free")).status_code == 200
            await door.idle()


async def test_another_engine_begins_with_an_open_door(tmp_path: Path) -> None:
    """An engine that has taken over knows nobody; what was there before it refuses no one."""
    options = PACE | {"mortal": True}
    async with open_door(tmp_path, process=True, engine=ONE_PROMPT, options=options) as door:
        await experienced(door, "free", "reject")
        queue = Queue(door)
        assert await queue.fill("free") is not None
        await queue.drain()
        await door.idle()
        await door.post(TEXT, text_body([KILL_BYTE, 97], max_tokens=5))
        await eventually(lambda: door.services.host.restarts == 1, "another engine is there")
        await eventually(lambda: door.services.host.is_ready, "it is ready")
        again = Queue(door)
        assert await again.fill("free", most=30) is None
        await again.drain()


async def storm(door: Door) -> Queue:
    """Fill the door until premium is surely served as less; its tier says `downgrade`."""
    await experienced(door, "premium", "downgrade")
    await experienced(door, "free", "queue")
    queue = Queue(door)
    door.close_gate()
    for number in range(150):
        body = chat_body(LONG, max_tokens=2)
        queue.tasks.append(asyncio.create_task(door.post(CHAT, body, "premium")))
        await eventually(lambda: door.services.admission.waiting > number, "it waits")  # noqa: B023
        if door.services.admission.waiting_by_tier().get("free", 0) >= SURE:
            return queue
    raise AssertionError("nobody was downgraded")


async def test_a_downgrade_is_seen_everywhere_and_billed_so(tmp_path: Path) -> None:
    """Body, every chunk, header, usage row, metrics: all say the tier that was served."""
    async with busy_door(tmp_path) as door:
        queue = await storm(door)
        asked = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3}
        plain = asyncio.create_task(door.post(TEXT, text_body(LONG, max_tokens=3)))
        streamed = asyncio.create_task(door.post(CHAT, chat_body(LONG, **asked)))
        await eventually(
            lambda: door.services.admission.waiting == len(queue.tasks) + 2, "both wait"
        )
        await queue.drain()
        body, chunks = await plain, await streamed
        for answer in (body, chunks):
            assert answer.status_code == 200
            assert answer.headers["x-tiergate-tier"] == "free"
        assert body.json()["service_tier"] == "default"
        *events, done = sse(chunks.text)
        assert done == "[DONE]"
        assert len(events) >= 4
        assert {event["service_tier"] for event in events} == {"default"}
        (row,) = await door.usage_of(events[0]["id"])
        assert (row.tier_requested, row.tier_served) == ("premium", "free")
        read = await samples(door)
        downgraded = value(
            read,
            "tiergate_admission_decisions_total",
            tiergate_tier="premium",
            tiergate_outcome="downgraded",
        )
        assert downgraded >= 2
        (row,) = await door.usage_of(body.json()["id"])
        assert (row.tier_requested, row.tier_served) == ("premium", "free")
        told = await story(door, body.json()["id"])
        said = told["door"]
        assert (said["verdict"], said["tier_asked"], said["tier"]) == (
            "downgrade",
            "premium",
            "free",
        )
        own = said["downgrade"]
        assert own["reason"] in ("slo-unreachable", "saturated")
        assert own["forecast"]["ttft_ms"] >= 2 * own["forecast"]["target_ms"]
        assert own["forecast"]["ttft_ms"] != said["forecast"]["ttft_ms"]
        (line,) = [text for text in lines_of(told) if text.startswith("let in")]
        assert f"as tier free: its own had refused it ({own['reason']})" in line


async def story(door: Door, request_id: str) -> Any:
    """Return what an operator is told of a request."""
    headers = {"authorization": f"Bearer {door.admin_token}"}
    return (await door.http.get(f"/admin/api/requests/{request_id}", headers=headers)).json()


def lines_of(told: Any) -> list[str]:
    """Return the story's sentences."""
    return [line.split("  ", 1)[1] for line in told["story"]]


async def test_without_a_lower_tier_the_first_waits_in_its_own(tmp_path: Path) -> None:
    """A tier below that may not give so long an answer is none to be served in."""
    async with busy_door(tmp_path, free={"max_output_tokens": "1"}) as door:
        await experienced(door, "premium", "downgrade")
        queue = Queue(door)
        assert await queue.fill("premium", most=80) is None
        assert door.services.admission.waiting_by_tier()["premium"] == 80
        await queue.drain()


async def test_a_full_tier_that_downgrades_overflows_into_the_next(tmp_path: Path) -> None:
    """Its own bound is reached; the next tier has room, and says so."""
    premium = {"max_queue": "2", "on_overload": "downgrade"}
    async with busy_door(tmp_path, "off", premium=premium, free={"max_queue": "2"}) as door:
        queue = Queue(door)
        refused = await queue.fill("premium")
        assert refused is not None
        assert door.services.admission.waiting_by_tier() == {"premium": 2, "free": 2}
        assert refused.headers["x-tiergate-reason"] == "tier-capacity"
        await queue.drain()
        tiers = [task.result().headers["x-tiergate-tier"] for task in queue.tasks]
        assert sorted(tiers) == ["free", "free", "premium", "premium"]
        told = [(await story(door, t.result().json()["id"]))["door"] for t in queue.tasks]
        for own in told:
            less = {"reason": "tier-capacity", "forecast": None}
            assert own["downgrade"] == (less if own["tier"] == "free" else None)


async def test_what_was_forecast_is_shown_and_counted(tmp_path: Path) -> None:
    """The admin route and the metrics say how forecasts did; no label names a tenant."""
    async with busy_door(tmp_path) as door:
        await experienced(door, "free", "reject")
        queue = Queue(door)
        assert await queue.fill("free") is not None
        await queue.drain()
        await door.idle()
        headers = {"authorization": f"Bearer {door.admin_token}"}
        assert (await door.http.get("/admin/api/admission")).status_code == 401
        state = (await door.http.get("/admin/api/admission", headers=headers)).json()
        assert state["mode"] == "soft"
        free = state["tiers"]["free"]
        assert (free["on_overload"], free["waiting"]) == ("reject", 0)
        assert free["forecasts"]["num"] >= BURST
        assert 0 <= free["forecasts"]["covered"] <= 1
        assert state["tiers"]["premium"]["forecasts"] is None
        assert state["refusals"]["refused"] == 1
        assert state["hints"]["given"] == 1
        assert state["lengths"]["learned"] >= BURST
        assert {one["tier"] for one in state["load"]["classes"]} <= {"free"}
        assert state["load"]["order"] == "arrival"
        documented = set(re.findall(r"`([^`\s]+)`", DOCS))
        assert sorted(names(state) - documented - {"premium", "free"}) == []
        # One refusal more or less is judged when its time is over.
        await eventually(
            lambda: sum((ledger(door).justified, ledger(door).false)) == 1, "the refusal is judged"
        )
        read = await samples(door)
        assert value(read, "tiergate_retry_hints_total", tiergate_state="given") == 1
        judged = [
            value(read, "tiergate_refusals_total", tiergate_state=state)
            for state in ("justified", "false")
        ]
        assert sum(judged) == 1
        covered = value(read, "tiergate_forecast_coverage", tiergate_tier="free")
        assert 0 <= covered <= 1
        assert value(read, "tiergate_lengths_learned_total") >= BURST


def ledger(door: Door) -> Any:
    return door.services.gate.forecasts.ledger


def names(fields: Any) -> set[str]:
    """Return every key of nested values."""
    if isinstance(fields, list):
        return set().union(*map(names, fields))
    if not isinstance(fields, dict):
        return set()
    return set(fields).union(*map(names, fields.values()))


def test_every_metric_of_forecasts_has_its_line() -> None:
    """What operators alert on is documented where they look."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "admission.md").read_text()
    rooms = ("forecast", "refusals", "retry", "lengths", "admission")
    named = [(name, [*name.split("."), ""][1]) for name in metric_names.DESCRIPTIONS]
    ours = [name for name, room in named if room in rooms]
    assert len(ours) > 10
    assert [name for name in ours if f"`{name}`" not in page] == []


def test_a_hint_is_followed_once_at_its_time() -> None:
    """Early is not taken for it, late is forgotten, and a hint that stands is not put off."""
    book, second = HintBook(), NS_PER_S
    book.give("k", "free", 2000, 0)
    book.give("k", "free", 60_000, second)
    assert not book.comes_back("k", "free", second)
    assert not book.comes_back("other", "free", 2 * second)
    assert not book.comes_back("k", "premium", 2 * second)
    assert book.comes_back("k", "free", 2 * second + NS_PER_MS)
    assert not book.comes_back("k", "free", 2 * second + NS_PER_MS)
    book.give("k", "free", 1000, 10 * second)
    assert not book.comes_back("k", "free", 20 * second)
    book.was_admitted()
    book.was_on_time()
    assert book.score == HintScore(given=3, followed=1, admitted=1, on_time=1)


def test_the_book_of_hints_is_bounded() -> None:
    """As many keys as there may be, it remembers the latest few thousand."""
    book = HintBook()
    for number in range(10_000):
        book.give(f"k{number}", "free", 1000, 0)
    assert not book.comes_back("k0", "free", NS_PER_S)
    assert book.comes_back("k9999", "free", NS_PER_S)


def test_reason_and_error_type_of_a_broken_promise_are_one_row() -> None:
    """The header's word and the metric's word for the same fact stand together."""
    spec = Problem.SLO_UNREACHABLE.value
    assert (spec.reason, spec.error_type, spec.status) == (
        "slo-unreachable",
        "slo_unattainable",
        503,
    )
