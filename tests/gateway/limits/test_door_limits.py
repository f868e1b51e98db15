"""Limits at the door: asked once before admission, settled by the bill before the last byte."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, text_body
from openai import APIStatusError, RateLimitError
from tiny_checkpoint import write_checkpoint

from engine.core.clock import utc_now
from gateway.limits.values import Totals
from tenants.values import DEFAULT_ORGANISATION_ID, Budget, Period, Scope, Unit, UsageRecord

FAMILIES = ("requests", "tokens")
PARTS = ("limit", "remaining", "reset")
RATE_HEADERS = {f"x-ratelimit-{part}-{family}" for part in PARTS for family in FAMILIES}


async def limit(door: Door, tier: str = "premium", **limits: int | None) -> None:
    """Give the tenant of a tier limits; its keys must not have been used yet."""
    repository = door.ledger.repository
    await repository.set_limits(Scope.TENANT, f"{tier}-tenant", limits, utc_now())


async def budget(door: Door, unit: Unit, amount: int, tier: str = "premium") -> None:
    """Give the tenant of a tier a budget for the month."""
    wanted = Budget(Period.MONTH, unit, amount, 50)
    name = f"{tier}-tenant"
    await door.ledger.repository.set_budgets(Scope.TENANT, name, [wanted], utc_now())


async def totals(door: Door) -> Totals:
    """Return what the store of limits has, once it has been told everything."""
    assert await door.services.desk.limiter.flush(5)
    return await door.services.desk.limiter.totals(DEFAULT_ORGANISATION_ID)


async def even(door: Door, rows: list[UsageRecord]) -> Totals:
    """The law of a storm's end: all is given back but what these rows of the ledger say."""
    sums = await totals(door)
    assert sums.open.requests == 0
    assert sums.reserved == sums.settled + sums.released
    assert sums.settled.tokens == sum(r.prompt_tokens + r.output_tokens for r in rows)
    assert sums.settled.cost_nano == sum(r.cost_nano for r in rows)
    assert sums.lapsed.requests == 0
    return sums


def rate_headers(answer: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k.startswith("x-ratelimit-")}


@pytest.mark.parametrize("stream", [False, True])
async def test_headers_are_there_in_full_on_success_and_on_refusal(
    door: Door, stream: bool
) -> None:
    """What is left falls with each request; the one too many is a 429 with its true wait."""
    await limit(door, requests_per_minute=2, tokens_per_minute=1000)
    body = chat_body("Hi", max_tokens=3, stream=stream)
    answers = [await door.post(CHAT, body) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert all(set(rate_headers(a)) == RATE_HEADERS for a in answers)
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["1", "0", "0"]
    assert {a.headers["x-ratelimit-limit-tokens"] for a in answers} == {"1000"}
    refused = answers[2]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "2 requests per minute of your tenant" in refused.json()["error"]["message"]
    assert 50_000 < int(refused.headers["retry-after-ms"]) <= 61_000
    assert int(refused.headers["retry-after"]) <= 61
    assert "x-should-retry" not in refused.headers
    assert "x-tiergate-reason" not in refused.headers
    rows = await door.usage(2)
    sums = await even(door, rows)
    assert sums.reserved.requests == 2, "who is refused has taken nothing"


async def test_who_has_no_limits_is_not_counted(door: Door) -> None:
    """No limit, no question: the limiter hears nothing of such a request, its client neither."""
    await limit(door, "free", requests_per_minute=5)
    answer = await door.post(CHAT, chat_body(max_tokens=1))
    assert answer.status_code == 200
    assert not rate_headers(answer)
    assert door.services.desk.limiter.state.granted == 0
    limited = await door.post(CHAT, chat_body(max_tokens=1), "free")
    assert "x-ratelimit-limit-requests" in limited.headers
    assert "x-ratelimit-limit-tokens" not in limited.headers, "nothing limits its tokens"
    assert door.services.desk.limiter.state.granted == 1


@pytest.mark.parametrize("fields", [{"model": "talker"}, {"model": "another"}])
async def test_limits_of_a_model_hold_for_that_model(door: Door, fields: dict[str, str]) -> None:
    """A limit for one model concerns requests of that model, and no others."""
    repository = door.ledger.repository
    await repository.set_limits(
        Scope.TENANT, "premium-tenant", {"requests_per_minute": 1}, utc_now(), **fields
    )
    answers = [await door.post(CHAT, chat_body(max_tokens=1)) for _ in range(2)]
    expected = 429 if fields["model"] == "talker" else 200
    assert [a.status_code for a in answers] == [200, expected]


@pytest.mark.parametrize("pace_ms", [0, 2])
async def test_a_reader_of_the_last_byte_finds_the_limits_settled(
    tmp_path: Path, pace_ms: int
) -> None:
    """One seat and no spare token: whoever asks again after the last byte is never refused."""
    async with open_door(tmp_path) as door:
        await door.ledger.repository.change_tier("premium", {"pace_ms": str(pace_ms)})
        # 5 tokens of each answer are used (with the prompt 9 or so), 59 reserved.
        await limit(door, concurrent_requests=1, tokens_per_minute=900)
        for turn in range(12):
            body = chat_body("Hi", max_tokens=5 if turn % 2 else 50, stop="f", stream=turn % 3 > 0)
            answer = await door.post(CHAT, body)
            assert answer.status_code == 200, (turn, answer.text)
            assert door.services.desk.limiter.state.open_holds == 0
        await even(door, await door.usage(12))


async def test_a_budget_is_spent_to_the_token_and_then_says_so(door: Door) -> None:
    """Reserved at the most, settled at what was made; spent, it tells the SDK not to come back."""
    await budget(door, Unit.TOKENS, 300)
    # 20 tokens of prompt and 6 made ("abcde" and the stop): 10 fit beside a reservation of 50.
    body = text_body("-" * 20, max_tokens=30, stop="f")
    async with door.openai(max_retries=4) as client:
        for _ in range(10):
            await client.completions.create(**body)
        with pytest.raises(RateLimitError) as caught:
            await client.completions.create(**body)
    error = caught.value
    assert error.code == "insufficient_quota"
    assert error.type == "insufficient_quota"
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers
    assert "budget" in error.message
    rows = await door.usage(10)
    assert sum(r.prompt_tokens + r.output_tokens for r in rows) == 260
    await even(door, rows)
    assert door.services.desk.limiter.state.denied == {"budget": 1}, "the SDK came once"
    assert door.services.desk.limiter.state.alerts == 1
    fits = await door.post(TEXT, text_body("-" * 20, max_tokens=20))
    assert fits.status_code == 200, "what is left is there to the last token"
    assert (await door.post(TEXT, text_body("x", max_tokens=1))).status_code == 429


async def test_money_is_charged_by_the_tier_that_served(tmp_path: Path) -> None:
    """A downgrade reserves the dearest tier it may end in, and pays the one it ended in."""
    async with open_door(tmp_path) as door:
        repository = door.ledger.repository
        prices = {"price_prompt_nano": "10", "price_output_nano": "100"}
        await repository.change_tier(
            "premium", prices | {"on_overload": "downgrade", "max_queue": "1"}
        )
        await repository.change_tier("free", {"price_prompt_nano": "1", "price_output_nano": "7"})
        await eventually(
            lambda: any(t.price_prompt_nano == 1 for t in door.services.tiers.current),
            "the new prices are known",
        )
        await budget(door, Unit.NANO, 10_000)
        door.close_gate()
        body = text_body("x" * 10, max_tokens=4)
        own = asyncio.create_task(door.post(TEXT, body))
        await eventually(lambda: door.services.admission.waiting == 1, "the queue is full")
        lower = asyncio.create_task(door.post(TEXT, body))
        await eventually(lambda: door.services.admission.waiting == 2, "it overflowed")
        assert (await totals(door)).open.cost_nano == 2 * (10 * 10 + 4 * 100)
        door.open_gate()
        assert [(await a).json()["service_tier"] for a in (own, lower)] == ["priority", "default"]
        rows = await door.usage(2)
        assert sorted(r.cost_nano for r in rows) == [10 + 4 * 7, 100 + 400]
        await even(door, rows)


async def test_every_refusal_after_the_reservation_gives_it_back(tmp_path: Path) -> None:
    """A full queue, a stopping gateway: the limits are as if nobody had come."""
    async with open_door(tmp_path, settings={"max_queue": 1}) as door:
        await limit(door, requests_per_minute=100, tokens_per_minute=10_000)
        door.close_gate()
        first = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=2)))
        await eventually(lambda: door.services.admission.waiting == 1, "the queue is full")
        refused = [await door.post(CHAT, chat_body(max_tokens=2)) for _ in range(5)]
        assert Counter(a.status_code for a in refused) == {503: 5}
        assert {a.headers["x-ratelimit-remaining-requests"] for a in refused} == {"99"}
        assert all(set(rate_headers(a)) == RATE_HEADERS for a in refused)
        sums = await totals(door)
        assert (sums.reserved.requests, sums.released.requests, sums.open.requests) == (6, 5, 1)
        door.open_gate()
        answer = await first
        assert answer.headers["x-ratelimit-remaining-requests"] == "99"
        sums = await even(door, await door.usage(1))
        assert sums.settled.requests == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_pays_for_what_was_made_and_frees_the_seat(
    tmp_path: Path, stream: bool
) -> None:
    """A disconnect settles what the ledger bills, and the seat is there for the next."""
    async with open_door(tmp_path, options={"step_s": 0.01}) as door:
        await limit(door, concurrent_requests=1, tokens_per_minute=5000)
        body = chat_body(max_tokens=900, stream=stream, temperature=1)
        leaving = asyncio.create_task(door.post(CHAT, body))
        await eventually(
            lambda: any(c.num_answer_tokens > 3 for a in door.services.live for c in a.choices),
            "it has begun",
        )
        busy = await door.post(CHAT, chat_body(max_tokens=1))
        assert busy.status_code == 429
        assert "concurrent requests" in busy.json()["error"]["message"]
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await eventually(lambda: door.services.desk.limiter.state.open_holds == 0, "it is free")
        assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
        rows = await door.usage(2)
        (left,) = [r for r in rows if r.finish_reason == "cancelled"]
        assert 3 < left.output_tokens < 900
        await even(door, rows)


async def test_a_paced_stream_that_is_left_settles_what_was_delivered(tmp_path: Path) -> None:
    """What was made and not shown is neither billed nor taken from the limits."""
    async with open_door(tmp_path) as door:
        await door.ledger.repository.change_tier("premium", {"pace_ms": "40"})
        await limit(door, tokens_per_minute=5000)
        async with door.openai() as client:
            body = chat_body(max_tokens=200, temperature=1)
            stream: Any = await client.chat.completions.create(stream=True, **body)
            for _ in range(4):
                await anext(stream)
            await stream.close()
        rows = await door.usage(1)
        assert rows[0].output_tokens < 100
        await even(door, rows)


async def test_a_day_without_a_count_begins_with_requests_not_choices(door: Door) -> None:
    """As after a restart: of a request with six choices the ledger has six rows, the day one."""
    asked = await door.post(TEXT, text_body(["aa", "bbb"], n=3, max_tokens=2))
    assert asked.status_code == 200
    await door.usage(6)
    await limit(door, requests_per_day=500)
    key = await door.ledger.repository.create_key("premium-tenant", utc_now(), "second")
    headers = {"authorization": f"Bearer {key.plaintext}"}
    answer = await door.http.post(TEXT, json=text_body(max_tokens=1), headers=headers)
    assert answer.headers["x-ratelimit-remaining-requests"] == "498"


async def test_choices_and_prompts_are_one_request(door: Door) -> None:
    """Of several prompts with several choices each, every prompt counts once, every answer."""
    await limit(door, requests_per_minute=10, tokens_per_minute=1000)
    answer = await door.post(TEXT, text_body(["aa", "bbb"], n=3, max_tokens=4, ignore_eos=True))
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "9"
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - 5 - 6 * 4)
    rows = await door.usage(6)
    sums = await even(door, rows)
    assert sums.settled.requests == 1
    assert sums.settled.tokens == 5 + 6 * 4


async def test_an_answer_of_no_tokens_is_a_request_and_no_more(door: Door) -> None:
    """`max_tokens` 0 reaches no engine: it has its place among the requests and costs nothing."""
    await limit(door, requests_per_minute=1, tokens_per_minute=1000)
    answers = [await door.post(CHAT, chat_body(max_tokens=0)) for _ in range(2)]
    assert [a.status_code for a in answers] == [200, 429]
    sums = await even(door, [])
    assert (sums.settled.requests, sums.settled.tokens) == (1, 0)


async def test_an_engine_that_dies_gives_back_what_was_not_served(tmp_path: Path) -> None:
    """Who got nothing has taken nothing; who got something has taken that."""
    options = {"mortal": True, "step_s": 0.01}
    async with open_door(tmp_path, process=True, options=options) as door:
        await limit(door, requests_per_minute=10, tokens_per_minute=10_000)
        running = asyncio.create_task(
            door.post(CHAT, chat_body(max_tokens=900, temperature=1, stream=True))
        )
        await eventually(
            lambda: any(c.num_answer_tokens > 3 for a in door.services.live for c in a.choices),
            "it has begun",
        )
        deadly = await door.post(TEXT, text_body("\x07", max_tokens=5))
        assert deadly.status_code >= 500
        await running
        rows = await door.usage(1)
        assert rows[0].finish_reason == "failed"
        sums = await even(door, rows)
        assert (sums.settled.requests, sums.released.requests) == (1, 1)


async def test_a_refusal_by_a_limit_is_in_the_journal_and_in_the_metrics(door: Door) -> None:
    """An operator finds out which request was refused, and which limit was used up how often."""
    await limit(door, tokens_per_minute=60)
    served = await door.post(CHAT, chat_body(max_tokens=40))
    refused = await door.post(CHAT, chat_body(max_tokens=40), **{"x-request-id": "over-1"})
    assert (served.status_code, refused.status_code) == (200, 429)
    admin = {"authorization": f"Bearer {door.admin_token}"}
    story = (await door.http.get("/admin/api/requests/over-1", headers=admin)).json()
    assert story["door"]["refusal"]["reason"] == "rate_limited"
    assert story["door"]["refusal"]["status"] == 429
    assert story["door"]["refusal"]["retry_after_ms"] == int(refused.headers["retry-after-ms"])
    text = (await door.http.get("/metrics")).text
    assert 'tiergate_limits_refusals_total{tiergate_limit="tokens_per_minute"} 1.0' in text
    assert 'tiergate_limits_refusals_total{tiergate_limit="budget"} 0.0' in text
    assert 'tiergate_limits_reservations_total{tiergate_state="granted"} 1.0' in text
    assert "tiergate_limits_store_up 1.0" in text
    counted = 'tiergate_requests_total{gen_ai_operation_name="chat",tiergate_outcome="{}"'
    assert counted.replace("{}", "rate_limited") in text
    assert (await door.http.get("/readyz")).json()["degraded"] == []


async def test_a_limit_that_is_changed_holds_from_then_on(door: Door) -> None:
    """A running gateway follows; what was used before counts."""
    await limit(door, requests_per_minute=1)
    assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200
    assert (await door.post(CHAT, chat_body(max_tokens=1))).status_code == 429
    await limit(door, requests_per_minute=3)

    async def is_let_in() -> bool:
        return bool((await door.post(CHAT, chat_body(max_tokens=1))).status_code == 200)

    await eventually(is_let_in, "the new limit holds")
    answer = await door.post(CHAT, chat_body(max_tokens=1))
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


async def test_an_ask_beyond_the_limit_itself_is_told_so(door: Door) -> None:
    """What can never fit has no time to come back at, and says that it is no use."""
    await limit(door, tokens_per_minute=50)
    refused = await door.post(CHAT, chat_body(max_tokens=100))
    assert refused.status_code == 429
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    async with door.openai(max_retries=5) as client:
        with pytest.raises(APIStatusError):
            await client.chat.completions.create(**chat_body(max_tokens=100))
    assert door.services.desk.limiter.state.denied == {"tokens_per_minute": 2}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_messages_route_tells_limits_by_its_own_names(door: Door, stream: bool) -> None:
    """`anthropic-ratelimit-*` in full, resets as moments; its error type, and the same hints."""
    await limit(door, requests_per_minute=1, tokens_per_minute=1000)
    body = {
        "model": "talker",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
        "stream": stream,
    }
    answers = [await door.post("/v1/messages", body) for _ in range(2)]
    assert [a.status_code for a in answers] == [200, 429]
    families = ("requests", "tokens", "input-tokens", "output-tokens")
    for answer in answers:
        for family, part in itertools.product(families, ("limit", "remaining", "reset")):
            assert f"anthropic-ratelimit-{family}-{part}" in answer.headers
        assert answer.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert answer.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        assert not rate_headers(answer)
    assert answers[1].json()["error"]["type"] == "rate_limit_error"
    assert int(answers[1].headers["retry-after"]) > 50
    await even(door, await door.usage(1))


BODIES: dict[str, dict[str, Any]] = {
    CHAT: chat_body(),
    TEXT: text_body(),
    "/v1/messages": {
        "model": "talker",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
    },
    "/v1/responses": {"model": "talker", "input": "Hi"},
    "/v1/embeddings": {"model": "talker", "input": "Hi"},
}
UNBILLED = {"/v1/messages/count_tokens"}


async def test_every_route_that_bills_goes_through_the_limits(tmp_path: Path) -> None:
    """A tenant that may do nothing can do nothing, on any route that there is."""
    import engine.model.loader  # takes a while: not within the start's deadline

    model = write_checkpoint(tmp_path / "tiny")  # a real one, since it can embed
    engine = {"executor": "model", "model": str(model), "served_name": "talker", "threads": 1}
    async with open_door(tmp_path, engine=engine) as door:
        await limit(door, requests_per_minute=0)
        paths = (await door.http.get("/openapi.json")).json()["paths"]
        posts = {path for path, verbs in paths.items() if path[:4] == "/v1/" and "post" in verbs}
        assert posts - UNBILLED == BODIES.keys(), "a new route needs a body here"
        for path, body in BODIES.items():
            for stream in (False, True):
                answer = await door.post(path, body | {"stream": stream})
                assert answer.status_code == 429, (path, answer.text)
        denied = door.services.desk.limiter.state.denied
        assert denied == {"requests_per_minute": 2 * len(BODIES)}
        served = await door.post("/v1/embeddings", BODIES["/v1/embeddings"], "free")
        assert served.status_code == 200, "who has no such limit is served"


async def test_embeddings_take_their_prompts_and_no_more(tmp_path: Path) -> None:
    """No token of an answer is reserved for a vector; what is billed is what was read."""
    import engine.model.loader  # takes a while

    model = write_checkpoint(tmp_path / "tiny")
    engine = {"executor": "model", "model": str(model), "served_name": "talker", "threads": 1}
    async with open_door(tmp_path, engine=engine) as door:
        await limit(door, tokens_per_minute=40)
        body = {"model": "talker", "input": ["a quick fox", "sea"]}
        answer = await door.post("/v1/embeddings", body)
        used = answer.json()["usage"]["prompt_tokens"]
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(40 - used)
        await even(door, await door.usage(2))


async def test_who_sends_no_max_tokens_is_not_refused_for_that(door: Door) -> None:
    """An answer then is as long as the limits could grant at most, of all choices together."""
    await limit(door, tokens_per_minute=100)
    await limit(door, "free", output_tokens_per_minute=30)
    prompt = "-" * 20
    long = await door.post(TEXT, text_body(prompt, ignore_eos=True))
    assert long.json()["usage"]["completion_tokens"] == 80
    assert long.json()["choices"][0]["finish_reason"] == "length"
    assert (await door.post(TEXT, text_body(prompt, ignore_eos=True))).status_code == 429
    shared = await door.post(TEXT, text_body([prompt, "-"], n=2, ignore_eos=True), "free")
    assert shared.json()["usage"]["completion_tokens"] == 4 * 7
    assert (await door.post(TEXT, text_body(prompt, max_tokens=31), "free")).status_code == 429


async def test_money_bounds_an_answer_of_no_stated_length(door: Door) -> None:
    """As much as the whole budget buys at the tier's prices, beside the prompt."""
    prices = {"price_prompt_nano": "10", "price_output_nano": "100"}
    await door.ledger.repository.change_tier("premium", prices)
    await budget(door, Unit.NANO, 1500)
    answer = await door.post(TEXT, text_body("-" * 20, ignore_eos=True))
    assert answer.json()["usage"]["completion_tokens"] == (1500 - 20 * 10) // 100
    assert (await even(door, await door.usage(1))).settled.cost_nano == 1500
