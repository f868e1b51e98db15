"""What a client is told of its limits, on both stores, and how SDKs read it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_kit import OpenWorld, World, allow, ask

from gateway.limits.calendar import moment_of, unix_us
from gateway.limits.headers import (
    anthropic_headers,
    duration,
    explain,
    openai_headers,
    retry_headers,
    timestamp,
)
from gateway.limits.store import Outcome
from gateway.limits.values import Ask, Denial, Grant
from tenants.values import Budget, Period, Unit

LATE = unix_us(datetime(2026, 11, 30, 23, 58, 30, tzinfo=UTC))


async def decide(world: World, asked: Ask) -> Grant | Denial:
    reply = await world.store.reserve(asked)
    if reply.outcome is Outcome.UNSEEDED:
        reply = await world.store.reserve(asked, {i: (day, 0) for i, day in reply.missing})
    made = Grant if reply.outcome is Outcome.GRANTED else Denial
    return made(asked, reply.readings, reply.at_us)


async def test_the_tightest_limit_is_shown(open_world: OpenWorld) -> None:
    """A key with much left, of a tenant with little: the tenant's numbers, with their reset."""
    key = allow("key:k", requests_per_minute=60, tokens_per_minute=100_000)
    tenant = allow("tenant:t", requests_per_minute=100, tokens_per_minute=5_000)
    async with open_world() as world:
        await decide(world, ask(tenant, output=1000))
        world.advance(30)
        verdict = await decide(world, ask(key, tenant, prompt=500, output=1500))
        assert openai_headers(verdict) == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1m0.75s",
            "x-ratelimit-limit-tokens": "5000",
            "x-ratelimit-remaining-tokens": "2000",
            "x-ratelimit-reset-tokens": "1m0.75s",
        }
        assert anthropic_headers(verdict) == {
            "anthropic-ratelimit-requests-limit": "60",
            "anthropic-ratelimit-requests-remaining": "59",
            "anthropic-ratelimit-requests-reset": "2026-11-21T12:01:31Z",
            "anthropic-ratelimit-tokens-limit": "5000",
            "anthropic-ratelimit-tokens-remaining": "2000",
            "anthropic-ratelimit-tokens-reset": "2026-11-21T12:01:31Z",
            "anthropic-ratelimit-input-tokens-limit": "5000",
            "anthropic-ratelimit-input-tokens-remaining": "2000",
            "anthropic-ratelimit-input-tokens-reset": "2026-11-21T12:01:31Z",
            "anthropic-ratelimit-output-tokens-limit": "5000",
            "anthropic-ratelimit-output-tokens-remaining": "2000",
            "anthropic-ratelimit-output-tokens-reset": "2026-11-21T12:01:31Z",
        }


async def test_input_and_output_have_limits_of_their_own(open_world: OpenWorld) -> None:
    limits = allow(input_tokens_per_minute=1000, output_tokens_per_minute=200, tokens_per_day=5000)
    async with open_world() as world:
        headers = anthropic_headers(await decide(world, ask(limits, prompt=300, output=50)))
        assert headers["anthropic-ratelimit-input-tokens-remaining"] == "700"
        assert headers["anthropic-ratelimit-output-tokens-remaining"] == "150"
        assert headers["anthropic-ratelimit-tokens-remaining"] == "4650"
        assert headers["anthropic-ratelimit-tokens-reset"] == "2026-11-22T00:00:00Z"
        assert "anthropic-ratelimit-requests-limit" not in headers


async def test_what_is_left_falls_with_every_request_under_way(open_world: OpenWorld) -> None:
    limits = allow(requests_per_minute=5)
    async with open_world() as world:
        seen = [openai_headers(await decide(world, ask(limits))) for _ in range(6)]
        left = [headers["x-ratelimit-remaining-requests"] for headers in seen]
        assert left == ["4", "3", "2", "1", "0", "0"]
        assert {headers["x-ratelimit-reset-requests"] for headers in seen} == {"1m0.75s"}


@pytest.mark.parametrize("output", [1, 300, 700])
async def test_who_comes_back_at_the_hint_is_let_in_and_not_before(
    open_world: OpenWorld, output: int
) -> None:
    """The very ask that was refused fits at `retry-after-ms`, and a millisecond before it does not.

    Of `retry-after` the whole seconds are rounded up.
    """
    limits = allow(tokens_per_minute=700)
    async with open_world() as world:
        for _ in range(2):
            await decide(world, ask(limits, output=350))
            world.advance(17.3)
        denial = await decide(world, ask(limits, output=output))
        assert isinstance(denial, Denial)
        hint = retry_headers(denial)
        after_ms = int(hint["retry-after-ms"])
        assert int(hint["retry-after"]) == -(-after_ms // 1000)
        assert "x-should-retry" not in hint
        world.set(denial.at_us + (after_ms - 1) * 1000)
        assert isinstance(await decide(world, ask(limits, output=output)), Denial)
        world.set(denial.at_us + after_ms * 1000)
        assert isinstance(await decide(world, ask(limits, output=output)), Grant)


async def test_a_spent_budget_is_not_to_be_retried(open_world: OpenWorld) -> None:
    """No hint and `x-should-retry: false`, but where the window ends within two minutes."""
    limits = allow("tenant:t", Budget(Period.MONTH, Unit.NANO, 1000), requests_per_minute=50)
    async with open_world(LATE - 31_000_000) as world:
        await decide(world, ask(limits, cost=1000))
        denial = await decide(world, ask(limits, cost=1))
        assert isinstance(denial, Denial)
        assert denial.is_budget
        assert retry_headers(denial) == {"x-should-retry": "false"}
        assert explain(denial) == "The budget of your tenant is spent. It begins anew in 2m1s."
        world.set(LATE)
        denial = await decide(world, ask(limits, cost=1))
        assert isinstance(denial, Denial)
        assert retry_headers(denial) == {"retry-after": "90", "retry-after-ms": "90000"}


async def test_a_day_is_longer_than_an_sdk_waits(open_world: OpenWorld) -> None:
    """The true wait is told, and that there is no point in keeping it."""
    limits = allow(requests_per_day=1)
    async with open_world() as world:
        await decide(world, ask(limits))
        denial = await decide(world, ask(limits))
        assert isinstance(denial, Denial)
        hint = retry_headers(denial)
        assert (hint["retry-after"], hint["x-should-retry"]) == ("43200", "false")
        assert explain(denial) == (
            "The limit of 1 requests per day of your key is reached. Please retry in 11h59m59.75s."
        )


async def test_what_never_fits_is_not_to_be_retried(open_world: OpenWorld) -> None:
    limits = allow("organisation:o", tokens_per_minute=100, model="big/model")
    async with open_world() as world:
        denial = await decide(world, ask(limits, output=101))
        assert isinstance(denial, Denial)
        assert retry_headers(denial) == {"x-should-retry": "false"}
        assert explain(denial) == (
            "The limit of 100 tokens per minute of your organisation for this model is less than "
            "this request may take."
        )


async def test_without_limits_there_are_no_headers(open_world: OpenWorld) -> None:
    async with open_world() as world:
        verdict = await decide(world, ask(allow(concurrent_requests=3)))
        assert openai_headers(verdict) == {}
        assert anthropic_headers(verdict) == {}


def seconds_of(text: str) -> float:
    """Read a duration back."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?", text)
    if text.endswith("ms"):
        return int(text[:-2]) / 1000
    assert parts is not None
    hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    assert minutes < 60
    assert seconds < 60
    return hours * 3600 + minutes * 60 + seconds


@given(st.integers(0, 40 * 86400 * 1_000_000))
def test_durations_read_back_as_they_were_rounded_up(us: int) -> None:
    assert seconds_of(duration(us)) == pytest.approx(-(-us // 1000) / 1000, abs=1e-9)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0s"), (1, "1ms"), (999_000, "999ms"), (999_001, "1s"), (1_000_000, "1s"),
        (59_750_000, "59.75s"), (60_000_000, "1m0s"), (360_000_000, "6m0s"),
        (3_600_000_000, "1h0m0s"), (86_399_500_000, "23h59m59.5s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_the_openai_api_writes_them(us: int, text: str) -> None:
    assert duration(us) == text


@given(st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1)))
def test_timestamps_are_rfc_3339_and_never_too_early(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    us = unix_us(moment)
    read = datetime.fromisoformat(timestamp(us))
    assert timedelta(0) <= read - moment < timedelta(seconds=1)
    assert moment_of(us) == moment


async def test_the_openai_sdk_follows_the_hints(open_world: OpenWorld) -> None:
    """It waits as long as it is told, and does not come back where that is of no use."""
    limits = allow("tenant:t", Budget(Period.MONTH, Unit.TOKENS, 100), tokens_per_minute=50)
    async with open_world() as world:
        await decide(world, ask(limits, output=50))
        rate = await decide(world, ask(limits, output=50))
        world.advance(61)
        await decide(world, ask(limits, output=50))
        budget = await decide(world, ask(limits, output=50))
        never = await decide(world, ask(limits, output=51))
    client = openai.OpenAI(api_key="k", base_url="http://127.0.0.1:1")
    for denial, retried in ((rate, True), (budget, False), (never, False)):
        assert isinstance(denial, Denial)
        response = httpx.Response(429, headers=retry_headers(denial))
        assert client._should_retry(response) is retried
    assert isinstance(rate, Denial)
    pause = client._parse_retry_after_header(httpx.Headers(retry_headers(rate)))
    assert pause == int(retry_headers(rate)["retry-after-ms"]) / 1000
