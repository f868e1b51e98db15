"""Paced tiers through real HTTP: what the client sees, what is billed, and what is judged.

A pace of a minute makes sure that whatever is held back stays so for the length of a test: nothing
here depends on how long anything takes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, sse, text_body

from engine.core.clock import utc_now
from engine.core.stats import RequestStats
from gateway.answer import deadline_exceeded
from gateway.live import LiveAnswers

ALPHABET = "abcdefghijklmnopqrstuvwxyz."
MINUTE = {"pace_ms": "60000", "tbt_ms": "100000"}


class Reader:
    """Reads a stream as it comes."""

    def __init__(self, response: httpx.Response) -> None:
        self.events: list[Any] = []
        self._lines = response.aiter_lines()

    async def read(self, num_texts: int | None = None) -> list[str]:
        """Read on until so many texts were seen, or to the end; return all texts so far."""
        async for line in self._lines:
            if line:
                data = line.removeprefix("data: ")
                self.events.append(data if data == "[DONE]" else json.loads(data))
            if num_texts is not None and len(self.texts) >= num_texts:
                break
        return self.texts

    @property
    def texts(self) -> list[str]:
        choices = [c for e in self.events if isinstance(e, dict) for c in e.get("choices", [])]
        return [text for c in choices if (text := c["delta"].get("content"))]


@asynccontextmanager
async def asked(door: Door, body: dict[str, Any], tier: str = "premium") -> AsyncIterator[Reader]:
    """Send a streamed request; the client leaves at the end of the block."""
    request = {"json": body | {"stream": True}, "headers": door.auth(tier)}
    async with door.http.stream("POST", CHAT, **request) as response:
        assert response.status_code == 200
        yield Reader(response)


async def engine_is_idle(door: Door) -> None:
    def nothing_runs() -> bool:
        now = door.services.host.engine.snapshot
        assert now is not None
        return now.finished_total > 0 and now.free_blocks == now.num_blocks

    await eventually(nothing_runs, "the engine has nothing left to do")


@pytest.mark.parametrize("mode", ["gap", "stream"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "temperature": 1, "seed": 5, "max_tokens": 12},
        {"logprobs": True, "top_logprobs": 2},
        {"stream_options": {"include_usage": True}},
        {"stop": ["klm"], "stream_options": {"include_usage": True}},
        {"max_tokens": 0},
    ],
    ids=["plain", "choices", "logprobs", "usage", "stop", "no-tokens"],
)
async def test_pacing_changes_when_and_nothing_else(
    tmp_path: Path, mode: str, fields: dict[str, Any]
) -> None:
    """The same events choice by choice, the same usage, the same end."""
    seen = []
    async with open_door(tmp_path) as door:
        await door.ledger.repository.change_tier("premium", {"pace_ms": "5", "tbt_mode": mode})
        for tier in ("free", "premium"):
            body = chat_body(stream=True, **fields)
            events = sse((await door.post(CHAT, body, tier)).text)
            assert events.pop() == "[DONE]"
            usage = [e["usage"] for e in events if e.get("usage")]
            choices: dict[int, list[Any]] = {}
            for choice in [choice for event in events for choice in event["choices"]]:
                choices.setdefault(choice["index"], []).append(choice)
            seen.append((choices, usage))
        await door.idle()
        rows = await door.usage(0 if fields.get("max_tokens") == 0 else 2 * fields.get("n", 1))
    assert seen[0] == seen[1]
    billed = [
        sorted((r.output_tokens, r.finish_reason) for r in rows if r.tier_served == tier)
        for tier in ("free", "premium")
    ]
    assert billed[0] == billed[1]


async def test_an_echo_comes_with_the_first_token(tmp_path: Path) -> None:
    """The prompt's text is not held back, nor is it a token of the answer."""
    async with open_door(tmp_path) as door:
        await door.ledger.repository.change_tier("premium", {"pace_ms": "5"})
        events = sse((await door.post(TEXT, text_body(echo=True, stream=True))).text)
        texts = [choice["text"] for e in events[:-1] for choice in e["choices"]]
        assert "".join(texts) == "Say:" + ALPHABET


async def test_who_leaves_a_paced_stream_pays_for_what_was_delivered(tmp_path: Path) -> None:
    """The engine is long done; one token was seen, and one token is billed, as cancelled."""
    async with open_door(tmp_path) as door:
        await door.ledger.repository.change_tier("premium", MINUTE)
        async with asked(door, chat_body()) as reader:
            assert await reader.read(1) == ["a"]
            await engine_is_idle(door)
            assert len(door.services.live) == 1
        await door.idle()
        (row,) = await door.usage()
        assert (row.finish_reason, row.prompt_tokens, row.output_tokens) == ("cancelled", 4, 1)
        assert row.slo_met is None


@pytest.mark.parametrize("n", [1, 3])
async def test_who_leaves_while_the_engine_works_frees_the_seat(tmp_path: Path, n: int) -> None:
    """Each choice has its own pace: one token of each was seen, and the work ends at once."""
    async with open_door(tmp_path, options={"step_s": 0.01}) as door:
        await door.ledger.repository.change_tier("premium", MINUTE)
        body = chat_body(n=n, temperature=1, ignore_eos=True, max_tokens=900)
        async with asked(door, body) as reader:
            assert len(await reader.read(n)) == n
            seen = {c["index"] for e in reader.events for c in e["choices"]}
            assert seen == set(range(n))
        await door.idle()
        rows = await door.usage(n)
        assert [(row.finish_reason, row.output_tokens) for row in rows] == [("cancelled", 1)] * n
        assert (
            "tiergate_cancel_duration_seconds_count 1.0" in (await door.http.get("/metrics")).text
        )


async def test_a_stop_string_ends_the_work_though_nobody_has_seen_it(tmp_path: Path) -> None:
    """Text is looked at when it is made: the engine does not go on for the pacer's sake."""
    async with open_door(tmp_path, options={"step_s": 0.005}) as door:
        await door.ledger.repository.change_tier("premium", MINUTE)
        body = chat_body(temperature=1, seed=3, max_tokens=900, stop=["e"])
        async with asked(door, body) as reader:
            await reader.read(1)
            await engine_is_idle(door)
            now = door.services.host.engine.snapshot
            assert now is not None
            assert now.output_tokens_total < 900
        await door.idle()


async def test_a_whole_answer_is_shown_at_once_when_the_gateway_stops(tmp_path: Path) -> None:
    """What is only held back needs no error: the client gets all of it, and a good end."""
    async with open_door(tmp_path) as door:
        await door.ledger.repository.change_tier("premium", MINUTE)
        async with asked(door, chat_body()) as reader:
            await reader.read(1)
            await engine_is_idle(door)
            live: LiveAnswers = door.services.live
            assert await live.drain(0.0, asyncio.Event()) == 1
            assert await reader.read() == list(ALPHABET)
            assert reader.events[-1] == "[DONE]"
        await door.idle()
        (row,) = await door.usage()
        assert (row.finish_reason, row.output_tokens) == ("stop", 28)


async def test_an_error_comes_behind_what_was_held_back(tmp_path: Path) -> None:
    """Nothing that was made is lost, and the error is not delayed by a pace."""
    async with open_door(tmp_path, options={"step_s": 0.005}) as door:
        await door.ledger.repository.change_tier("premium", MINUTE)
        body = chat_body(temperature=1, ignore_eos=True, max_tokens=900)
        async with asked(door, body) as reader:
            await reader.read(1)
            (answer,) = door.services.live
            (choice,) = answer.choices
            await eventually(lambda: choice.num_answer_tokens > 20, "some are held")
            answer.cut(deadline_exceeded())
            texts = await reader.read()
            assert len(texts) > 20
            assert reader.events[-1]["error"]["code"] == "deadline_exceeded"
        await door.idle()
        (row,) = await door.usage()
        assert len(texts) <= row.output_tokens < 900


@pytest.mark.parametrize("is_made", [True, False], ids=["all made", "still made"])
async def test_to_revoke_a_key_is_no_way_to_all_of_a_stream(tmp_path: Path, is_made: bool) -> None:
    """What is held back is neither shown nor billed, whether or not the engine is done with it."""
    async with open_door(tmp_path, options={"step_s": 0.005}) as door:
        await door.ledger.repository.change_tier("premium", MINUTE)
        endless: dict[str, Any] = {"temperature": 1, "ignore_eos": True, "max_tokens": 900}
        async with asked(door, chat_body(**({} if is_made else endless))) as reader:
            await reader.read(1)
            if is_made:
                await engine_is_idle(door)
            await door.ledger.repository.revoke_key(door.keys["premium"], utc_now())
            assert len(await reader.read()) == 1
            assert reader.events[-1]["error"]["code"] == "invalid_api_key"
        await door.idle()
        (row,) = await door.usage()
        assert (row.finish_reason, row.output_tokens) == ("cancelled", 1)


async def test_a_plain_answer_of_a_paced_tier_comes_at_once(tmp_path: Path) -> None:
    """Nobody would see the pace: the body is there when the engine is done."""
    async with open_door(tmp_path) as door:
        await door.ledger.repository.change_tier("premium", MINUTE)
        body = (await door.post(CHAT, chat_body())).json()
        assert body["choices"][0]["message"]["content"] == ALPHABET


async def test_engine_and_door_judge_one_promise_alike(tmp_path: Path) -> None:
    """The engine stalls for 2.5 s behind some fifteen early tokens, with 1 s promised.

    Only the unpaced gap promise is broken, by one token. A stream has fifteen seconds in hand, a
    paced one of 200 ms three, and of a plain answer of the gap tier nobody sees the gap. The
    engine's own records say the same as the ledger's rows, which are the door's.
    """
    promise = {"rank": "1", "ttft_ms": "60000", "tbt_ms": "1000"}
    options = {"stall_at": 15, "stall_s": 2.5, "step_s": 0.002}
    records: dict[str, RequestStats] = {}
    async with open_door(tmp_path, options=options) as door:
        repository = door.ledger.repository
        for tier, more in (
            ("gap", {}),
            ("stream", {"tbt_mode": "stream"}),
            ("paced", {"pace_ms": "200"}),
        ):
            await repository.create_tier(tier, promise | more)
            tenant = await repository.create_tenant(f"{tier}-tenant", tier, utc_now())
            door.keys[tier] = (await repository.create_key(tenant.id, utc_now())).plaintext
        door.services.host.engine.add_finish_listener(
            lambda stats: records.__setitem__(stats.request_id, stats)
        )
        door.close_gate()
        tasks = [
            asyncio.create_task(door.post(CHAT, chat_body(stream=stream), tier))
            for tier, stream in (("gap", True), ("stream", True), ("paced", True), ("gap", False))
        ]
        await eventually(lambda: door.services.admission.waiting == 4, "all are in")
        door.open_gate()
        assert {(await task).status_code for task in tasks} == {200}
        rows = await door.usage(4)
    late = {(row.tier_served, row.stream): row.late_tokens for row in rows}
    assert late == {
        ("gap", True): 1,
        ("stream", True): 0,
        ("paced", True): 0,
        ("gap", False): 0,
    }
    assert {row.request_id: row.late_tokens for row in rows} == {
        name: stats.late_tokens for name, stats in records.items()
    }
