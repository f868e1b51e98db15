"""Measuring an engine: the scenarios make the steps they promise, and records become medians."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
import scripted_executor as scripted
from engine_kit import DEADLINE_S, config_of

from engine.core.errors import EngineUnavailable, ModelLoadError
from engine.core.latency_fit import Observation
from engine.core.latency_profile import dump_profile, parse_profile
from engine.serving import profiling
from engine.serving.client import EngineInfo
from engine.serving.profiling import DECODE_STEPS, Plan, Scenario, make_plan, measure
from engine.serving.step_records import (
    Measured,
    StepRecord,
    make_profile,
    summarise,
    timed_steps,
    typical_ns,
)

INFO = EngineInfo(
    model="m",
    model_path="",
    runner="r",
    device="cpu",
    dtype="float32",
    policy="fcfs",
    max_model_len=2048,
    block_size=16,
    num_blocks=8192,
    max_batch_tokens=512,
    max_batch_requests=64,
    pid=1,
    load_s=0.0,
)


def record(began_ns: int, *, ended_ns: int = 0, writing_ns: int = 0, **fields: float) -> StepRecord:
    step = StepRecord(began_ns, ended_ns or began_ns + 1, writing_ns, 1, 2, 0, 2, 20, 0.0, 0)
    return dataclasses.replace(step, **fields)  # type: ignore[arg-type]


async def measured(*scenarios: Scenario, rounds: int = 1, **config: object) -> Measured:
    plan = Plan(scenarios, rounds=rounds, budget_s=60.0)
    return await measure(
        config_of(**config),  # type: ignore[arg-type]
        lambda stage, fraction: None,
        plan=plan,
        recorder="recorded_executor:make",
    )


def seen(found: Measured, decodes: int, prompt_tokens: int, cached: int = 0) -> list[Observation]:
    return [
        o
        for o in found.observations
        if (o.num_decodes, o.num_tokens - o.num_decodes, o.prompt_kv)
        == (decodes, prompt_tokens, cached)
    ]


async def test_rows_decode_together_behind_their_contexts() -> None:
    """A decode scenario shows steps of all its rows, and their context is what was asked for."""
    found = await measured(Scenario(rows=5, context=100))
    (together,) = seen(found, 5, 0)
    assert 5 * 100 <= together.kv_tokens <= 5 * (100 + 2 * DECODE_STEPS)
    assert together.ns > 0
    assert 0 <= found.loop_share <= 1
    assert found.facts["kv_bytes_per_token"] == 64
    assert found.neighbours is None or found.neighbours >= 0


async def test_prompts_come_alone_in_the_sizes_and_behind_the_starts_asked_for() -> None:
    """A start is made with the prefix cache; a prompt longer than a step is cut by the engine."""
    found = await measured(Scenario(prompts=((0, 40), (64, 24), (512, 200), (0, 700))))
    (whole,) = seen(found, 0, 40)
    assert whole.pairs == 40 * 20
    (behind,) = seen(found, 0, 24, cached=64)
    assert behind.pairs == 24 * (64 + 12)
    assert len(seen(found, 0, 200, cached=512)) == 1
    assert len(seen(found, 0, 512)) == 1
    assert len(seen(found, 0, 188, cached=512)) == 1


async def test_prompts_come_beside_rows_that_decode() -> None:
    found = await measured(Scenario(rows=3, context=16, prompts=((0, 50), (0, 120))))
    assert {(o.num_decodes, o.num_tokens) for o in found.observations} >= {(3, 53), (3, 123)}


async def test_every_round_counts_and_equal_steps_are_one_observation() -> None:
    found = await measured(Scenario(rows=2, context=10), Scenario(rows=4, context=10), rounds=3)
    assert found.rounds == 3.0
    assert len(seen(found, 2, 0)) >= 1
    assert len(seen(found, 4, 0)) == 1


async def test_a_model_that_cannot_be_loaded_is_said_in_one_line() -> None:
    with pytest.raises(ModelLoadError, match="cheese"):
        await measured(Scenario(rows=1, context=4), options={"load": "refuse"})


async def test_an_engine_that_dies_ends_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for rows to decode must not wait for an engine that is gone."""
    monkeypatch.setattr(profiling, "TOKEN_IDS", (scripted.RAISE,))
    with pytest.raises(EngineUnavailable):
        async with asyncio.timeout(DEADLINE_S):
            await measured(Scenario(rows=2, context=3, prompts=((0, 5),)))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_batch_requests": 1},
        {"max_batch_requests": 2, "max_batch_tokens": 2},
        {"max_model_len": 32},
        {"max_model_len": 2, "max_batch_tokens": 1, "max_batch_requests": 1},
        {"num_blocks": 40},
        {"max_batch_tokens": 8192, "max_batch_requests": 256, "max_model_len": 32768},
    ],
)
def test_a_plan_fits_the_engine_it_is_for(changes: dict[str, int], quick: bool) -> None:
    """No scenario asks for more rows, context or tokens than the engine holds, and one is left."""
    info = dataclasses.replace(INFO, **changes)  # type: ignore[arg-type]
    plan = make_plan(info, quick=quick)
    for scenario in plan.scenarios:
        assert scenario.rows + bool(scenario.prompts) <= info.max_batch_requests
        assert scenario.rows * scenario.context <= info.num_blocks * info.block_size
        assert scenario.context < info.max_model_len
        for start, size in scenario.prompts:
            assert start % info.block_size == 0
            assert 1 <= size <= info.max_batch_tokens
            assert start + size < info.max_model_len
    assert plan.scenarios or info.num_blocks == 40 or info.max_model_len == 2
    for traffic in plan.traffic:
        assert 1 <= traffic.users <= info.max_batch_requests
        assert max(4, traffic.most_prompt) + max(2, traffic.most_output) <= info.max_model_len
    tokens = [scenario.num_tokens for scenario in plan.scenarios]
    assert tokens == sorted(tokens), "the smallest come first"


def test_a_step_lasts_until_the_next_batch_less_the_writing_of_its_line() -> None:
    steps = [record(100), record(160, writing_ns=7), record(300, writing_ns=10), record(400)]
    steps[2] = dataclasses.replace(steps[2], continues=0)  # idle before it: nobody knows how long
    windows = [(50, 0), (250, 1), (1000, -1)]
    assert [(i, s.began_ns, ns) for i, s, ns in timed_steps(steps, windows)] == [
        (0, 100, 60 - 7),
        (1, 300, 100),
    ]


def test_steps_outside_the_scenarios_count_for_nothing() -> None:
    steps = [record(at) for at in range(100, 200, 10)]
    assert list(timed_steps(steps, [(500, 0), (600, -1)])) == []
    assert list(timed_steps(steps, [(10, 0), (50, -1)])) == []


def test_disturbances_hardly_move_an_observation() -> None:
    """A slow step counts as two of its round at most; a slow round loses against two others."""
    calm, spike, slow = [10, 10, 10, 10], [10, 10, 10, 9000], [30, 30, 30, 30]
    assert typical_ns([calm]) == 10
    assert typical_ns([spike]) == (10 + 10 + 10 + 20) / 4
    assert typical_ns([calm, slow, calm]) == 10


def test_equal_steps_become_one_observation() -> None:
    """Their contexts' mean, their round's mean, the median of the rounds."""
    steps = [record(at, kv_tokens=20 + i) for i, at in enumerate((100, 110, 120, 9120, 9130, 9140))]
    windows = [(0, 0), (200, 0), (9000, 0), (10**6, -1)]
    found = summarise(INFO, {}, steps, windows, num_scenarios=1)
    (one,) = found.observations
    assert one.ns == ((10 + 10 + 20) / 3 + 10) / 2
    assert one.samples == 5
    assert one.kv_tokens == pytest.approx(22.0)
    assert found.num_steps == 5
    assert found.loop_share == pytest.approx(0.9)


def test_steps_of_traffic_that_are_alike_become_one_observation() -> None:
    """Within a factor of two in size: their means, an outlier as four medians at most."""
    sizes = (4, 5, 7, 4, 9)
    steps = [
        record(100 + 10 * i, num_decodes=n, num_tokens=n, kv_tokens=10 * n)
        for i, n in enumerate(sizes)
    ]
    steps.append(record(9000, num_decodes=1))
    found = summarise(INFO, {}, steps, [(0, 1), (10**6, -1)], num_scenarios=1)
    (one,) = found.observations  # there is a single step of nine decodes
    assert one.in_service
    assert one.samples == 4
    assert one.num_decodes == one.num_tokens == 5
    assert one.kv_tokens == 50
    assert one.ns == 10
    assert found.rounds == 0


def test_too_few_samples_are_no_observation() -> None:
    steps = [record(at) for at in (100, 110, 120)]
    windows = [(0, 0), (300, 0), (600, 0), (900, -1)]
    assert summarise(INFO, {}, steps, windows, num_scenarios=1).observations == ()
    assert summarise(INFO, {}, [], [], num_scenarios=1).observations == ()


def test_the_profile_says_what_was_measured_and_how_well_it_holds() -> None:
    observations = tuple(
        Observation(rows, chunk > 0, rows + chunk, rows * context, chunk**2 / 2, 0, ns)
        for rows in (0, 1, 8)
        for context in (10, 500)
        for chunk in (0, 16, 128)
        if rows or chunk
        for ns in [1e6 + 2e4 * (rows + chunk) + 50.0 * rows * context]
    )
    facts = {
        "kv_bytes_per_token": 96,
        "int8_kv_bytes_per_token": 50.5,
        "link_ns": 4000.0,
        "link_out_ns_per_token": 12.3456,
        "link_in_ns_per_token": 9.0,
        "int8_out_ns_per_token": 40.0,
        "int8_in_ns_per_token": 20.0,
        "raw out: mean error": 0.0123,
    }
    made = make_profile(
        Measured(INFO, observations, facts, 0.05, 400, 3.0, 0.123), "mine", "two cores"
    )
    assert (made.name, made.num_kv_tokens, made.max_batch_requests) == ("mine", 131_072, 64)
    assert made.base_ns == pytest.approx(1e6, rel=0.01)
    assert made.token_ns == pytest.approx(2e4, rel=0.01)
    assert (made.link_ns, made.link_out_ns_per_token) == (4000.0, 12.35)
    assert (made.int8_kv_bytes_per_token, made.int8_out_ns_per_token) == (51, 40.0)
    assert made.with_host_format("int8").link_in_ns_per_token == 20.0
    assert made.fit["link_error"] == {"raw out: mean error": 0.012}
    assert set(made.fit["error"]) == {"decode", "prefill", "mixed"}
    assert all(error["max"] < 0.01 for error in made.fit["error"].values())
    assert "two cores" in made.fit["source"]
    assert made.fit["busy_neighbour_cores"] == 0.12
    assert parse_profile(dump_profile(made), "mine.json") == made
