"""`/admin/api/engine` while it matters: requests held in every state, copies under way, rates."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from door_kit import Door, eventually, open_door
from test_door_aborts import SWAPPING, Stage, copying_in, copying_out, parked
from test_door_operations import samples, value

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.stats import Snapshot, StepStats
from engine.serving.client import EngineInfo
from gateway.engine_view import engine_fields
from gateway.engine_watch import NUM_SAMPLES, EngineWatch

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "http.md").read_text()
SNAPSHOT = Snapshot(1, 0, 2, 3, 1, 40, 60, 100)
STEP = StepStats(1, 0, 4 * NS_PER_MS, 1, 0, 0, 1, 0, 60, predicted_ns=2 * NS_PER_MS)
INFO = EngineInfo("m", "/m", "lean", "cpu", "bf16", "hybrid", 64, 16, 100, 512, 8, 1, 0.5)


async def engine_of(door: Door) -> dict[str, Any]:
    """Read the route; what it says of itself must be in order whatever the state."""
    headers = {"authorization": f"Bearer {door.admin_token}"}
    state = (await door.http.get("/admin/api/engine", headers=headers)).json()
    engine: dict[str, Any] = state["engine"]
    memory = engine["memory"]
    assert memory["free"] + memory["held"] == memory["blocks"]
    assert memory["host_free"] + memory["host_held"] == memory["host_blocks"]
    for place in ("waiting", "running", "parked"):
        assert sum(engine[place]["by_tier"].values()) == engine[place]["requests"]
    assert engine["swap"]["leaving"] + engine["swap"]["returning"] <= engine["parked"]["requests"]
    return engine


@pytest.mark.parametrize("reach", [copying_out, parked, copying_in], ids=lambda r: r.__name__)
async def test_a_parked_request_is_seen_wherever_its_context_is(tmp_path: Path, reach: Any) -> None:
    """On its way out, on the host, on its way back: by tier, with its blocks and its tokens."""
    options = {"step_s": 0, "num_blocks": 22, "host_blocks": 100, "elapsed_ns": 20_000_000}
    engine = {"prefix_caching": False} | SWAPPING
    async with open_door(tmp_path, engine=engine, options=options) as door:
        stage = Stage(door)
        try:
            await reach(stage)
            shown = await engine_of(door)
            assert shown["parked"]["by_tier"] == {"premium": 1}
            assert shown["parked"]["tokens"] > 100
            assert shown["memory"]["host_held"] > 0
            swap = shown["swap"]
            way = {"copying_out": (1, 0), "parked": (0, 0), "copying_in": (0, 1)}[reach.__name__]
            assert (swap["leaving"], swap["returning"]) == way
            assert swap["parks_total"] == 1
            assert (swap["tokens_out_total"] > 0) is (reach is not copying_out)
            assert (swap["tokens_in_total"], swap["lost_copies_total"]) == (0, 0)
            assert shown["policy"] == {"name": "fastserve", "options": {"starvation_s": 1e6}}
            assert shown["latency"]["profile"] == "builtin-cpu"
            latency = shown["latency"]
            assert latency["factor"] > 0
            assert 0 <= latency["error_p50"] <= latency["error_p99"]
            read = await samples(door)
            shares = ("0.5", "0.99")
            errors = [
                value(read, "tiergate_engine_step_error", tiergate_quantile=s) for s in shares
            ]
            assert 0 <= errors[0] <= errors[1]
            assert value(read, "tiergate_engine_step_factor") > 0
            assert value(read, "tiergate_kv_parks_total") == 1
            assert value(read, "tiergate_kv_lost_copies_total") == 0
            copied = value(read, "tiergate_kv_copied_tokens_total", tiergate_state="out")
            assert copied == swap["tokens_out_total"]
            held = value(read, "tiergate_kv_host_blocks", tiergate_state="used")
            assert held == shown["memory"]["host_held"]
            assert value(read, "tiergate_engine_computed_tokens_total") > 100
            assert value(read, "tiergate_engine_recomputed_tokens_total") == 0
            page = await door.http.get("/admin/engine", auth=httpx.BasicAuth("x", door.admin_token))
            assert f"{way[0]} out, {way[1]} back" in page.text
        finally:
            await stage.leave()
        last = await engine_of(door)
        assert last["memory"]["held"] == last["memory"]["host_held"] == 0
        assert [last[p]["requests"] for p in ("waiting", "running", "parked")] == [0, 0, 0]


async def test_rates_are_those_of_the_last_seconds(tmp_path: Path) -> None:
    """They come from the engine's own totals: what was generated shows, and nothing else moves."""
    async with open_door(tmp_path) as door:
        headers = {"authorization": f"Bearer {door.admin_token}"}

        async def recent() -> Any:
            return (await engine_of(door))["recent"]

        await eventually(recent, "there is something to compare")
        await door.post("/v1/completions", {"model": "talker", "prompt": "x", "max_tokens": 9})
        await door.idle()
        found = await recent()
        assert found["output_tokens_per_s"] > 0
        assert found["steps"]["per_s"] > 0
        assert found["preemptions_per_s"] == found["tokens_out_per_s"] == 0
        refused = await door.http.get("/admin/api/engine")
        assert refused.status_code == 401
        assert headers["authorization"] not in refused.text
        await asyncio.sleep(0)


def test_rates_are_differences_over_the_time_between() -> None:
    watch = EngineWatch()
    watch.look(SNAPSHOT, 0)
    for _ in range(3):
        watch.on_step(STEP)
    later = replace(
        SNAPSHOT, output_tokens_total=50, computed_tokens_total=200, recomputed_tokens_total=20,
        prompt_tokens_total=100, cached_tokens_total=25, copied_out_tokens_total=640,
    )  # fmt: skip
    found = watch.recent(later, 2 * NS_PER_S)
    assert found is not None
    assert (found["seconds"], found["output_tokens_per_s"]) == (2.0, 25.0)
    assert (found["tokens_out_per_s"], found["tokens_in_per_s"]) == (320.0, 0.0)
    assert (found["recompute_share"], found["prefix_hit_share"]) == (0.1, 0.25)
    assert found["steps"] == {
        "per_s": 1.5, "mean_ms": 4.0, "longest_ms": 4.0, "busy_share": 0.006,
        "measured_over_predicted": 2.0,
    }  # fmt: skip


def test_the_watch_forgets_and_another_engine_begins_anew() -> None:
    """However long it runs it looks back ten seconds; totals that fall are another engine's."""
    watch = EngineWatch()
    assert watch.recent(SNAPSHOT, 5) is None
    for tick in range(4 * 3600):  # an hour of a look every quarter of a second
        now = replace(SNAPSHOT, submitted_total=tick)
        watch.look(now, tick * NS_PER_S // 4)
    found = watch.recent(now, tick * NS_PER_S // 4)
    assert found is not None
    assert NUM_SAMPLES - 2 <= found["seconds"] <= NUM_SAMPLES
    assert found["requests_in_per_s"] == pytest.approx(4, rel=0.1)
    assert watch.recent(SNAPSHOT, tick * NS_PER_S) is None
    watch.look(SNAPSHOT, tick * NS_PER_S)
    watch.look(None, tick * NS_PER_S)
    fresh = watch.recent(replace(SNAPSHOT, submitted_total=7), (tick + 1) * NS_PER_S)
    assert fresh is not None
    assert (fresh["seconds"], fresh["requests_in_per_s"]) == (1.0, 7.0)


def test_every_field_is_documented() -> None:
    """docs/http.md names each field of `engine`, however deep."""
    watch = EngineWatch()
    watch.look(SNAPSHOT, 0)
    fields = engine_fields(INFO, SNAPSHOT, watch.recent(SNAPSHOT, 1), 1)

    def names(value: dict[str, Any]) -> set[str]:
        found = set(value)
        for inner in value.values():
            if isinstance(inner, dict):
                found |= names(inner)
        return found

    documented = set(re.findall(r"`([^`\s]+)`", DOCS))
    assert sorted(names(fields) - documented) == []
