"""A point as others read it: fields, determinism, and misses that do not vanish."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sim_world import SHAREGPT, TIGHT, short_rows, write_profile

from engine.core.policies import POLICIES
from engine.sim.faults import Faults
from engine.sim.point import PointSpec, Scene, run_point
from engine.sim.summary import quantiles
from engine.sim.trace import TraceRow, load_trace

ROWS = short_rows(60)


def spec(folder: Path, **changes: Any) -> PointSpec:
    fields: dict[str, Any] = {
        "trace": "", "policy": "sarathi", "rate": 8.0, "requests": 120, "seed": 1,
        "profile": write_profile(folder), "check_laws": True, **changes,
    }  # fmt: skip
    return PointSpec(**fields)


def test_a_point_has_the_documented_fields_and_is_json(tmp_path: Path) -> None:
    """What reports and scripts rely on."""
    point = run_point(spec(tmp_path), ROWS).point
    assert json.loads(json.dumps(point, allow_nan=False)) == point
    assert set(point) >= {
        "policy", "rate", "seed", "requests", "tiers", "goodput", "tokens_per_s", "preemptions",
        "recompute_share", "swap_bytes", "unfinished",
    }  # fmt: skip
    assert list(point["tiers"]) == ["premium", "free"]
    for fields in point["tiers"].values():
        assert {"attainment", "offered", "met", "objective"} <= set(fields)
        assert set(fields["ttft_ms"]) == set(fields["lateness_ms"]) == {"p50", "p95", "p99"}
        assert set(fields["normalised_latency_ms"]) == {"p50", "p95", "p99", "mean"}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_equal_specs_give_equal_bytes(tmp_path: Path, policy: str) -> None:
    """Law L37, for every policy, with faults, and whether or not anybody watches."""
    faults = Faults(abort_share=0.2, slow_share=0.05, slow_factor=3, error_share=0.004)
    one = spec(tmp_path, policy=policy, rate=20.0, faults=faults)
    runs = [run_point(s, ROWS) for s in (one, one, dataclasses.replace(one, check_laws=False))]
    assert len({json.dumps(run.point) for run in runs}) == 1
    assert len({run.records for run in runs}) == 1


def test_policy_and_rate_do_not_change_who_asks_for_what(tmp_path: Path) -> None:
    """Comparisons are paired: the same requests, of the same tiers and predicted alike."""

    def asked(**changes: Any) -> list[tuple[object, ...]]:
        records = run_point(spec(tmp_path, **changes), ROWS).records
        return [(r.id, r.tier, r.tenant, r.prompt, r.wanted, r.predicted) for r in records]

    assert asked() == asked(policy="fcfs") == asked(rate=3.0)
    assert asked() != asked(seed=2)


def test_everyone_offered_is_counted_once(tmp_path: Path) -> None:
    """Law L1 as the report sees it: refused, aborted, failed and served add up, tier by tier."""
    rows = (*ROWS, *[TraceRow(200, 5)] * 6)
    faults = Faults(abort_share=0.3, failed_row_share=0.002)
    result = run_point(spec(tmp_path, requests=300, faults=faults, num_kv_tokens=160), rows)
    reasons = Counter(r.finish_reason for r in result.records)
    assert set(reasons) == {"stop", "cancelled", "failed", "rejected"}
    assert sum(reasons.values()) == 300
    assert reasons["rejected"] == result.point["refused"] > 0
    for name, tier in result.point["tiers"].items():
        mine = [r for r in result.records if r.tier == name]
        assert tier["offered"] == len(mine)
        assert tier["attainment"] == pytest.approx(sum(r.met for r in mine) / len(mine), abs=1e-6)
    assert all(r.finish_reason in ("stop", "length") for r in result.records if r.met)


def test_a_horizon_leaves_the_unfinished_as_misses(tmp_path: Path) -> None:
    """Censored requests count, and their TTFT is infinite: null in the quantiles."""
    whole = run_point(spec(tmp_path, rate=50.0), ROWS)
    cut = run_point(spec(tmp_path, rate=50.0, horizon_s=1.0), ROWS)
    assert whole.point["unfinished"] == 0
    assert cut.point["unfinished"] > 60
    assert cut.point["tiers"]["free"]["offered"] == whole.point["tiers"]["free"]["offered"]
    assert cut.point["tiers"]["free"]["ttft_ms"]["p99"] is None
    assert cut.point["tiers"]["free"]["ttft_ms"]["p95"] is None
    assert whole.point["tiers"]["free"]["ttft_ms"]["p99"] is not None
    assert cut.point["simulated_s"] <= 1.0
    unfinished = [r for r in cut.records if r.finish_reason is None]
    assert len(unfinished) == cut.point["unfinished"]
    assert not any(r.met for r in unfinished)
    assert cut.records[0] == whole.records[0]


def test_figures_of_the_whole_point_add_up(tmp_path: Path) -> None:
    """Goodput, rates, waits and swaps follow from the records and the profile."""
    result = run_point(spec(tmp_path, rate=50.0), ROWS)
    point, records = result.point, result.records
    span_s = records[-1].arrival_ns / 1e9
    assert point["goodput"] == pytest.approx(sum(r.met for r in records) / span_s, abs=1e-5)
    tokens = sum(r.output for r in records)
    assert point["tokens_per_s"] == pytest.approx(tokens / point["simulated_s"], rel=1e-4)
    assert point["parks"] == sum(r.parks for r in records)
    assert point["swap_bytes"] % (TIGHT.block_size * TIGHT.kv_bytes_per_token) == 0
    assert (point["swap_bytes"] > 0) == (point["parks"] > 0)
    waits = [(r.first_token_ns or 0) - r.arrival_ns for r in records]
    assert point["longest_wait_ms"] == pytest.approx(max(waits) / 1e6, abs=1e-3)
    assert point["max_preemptions"] == max(r.preemptions for r in records)
    assert point["preemptions"] == sum(r.preemptions for r in records)
    assert point["tenants"]["count"] == 3
    busy_s = point["mean_step_ms"] * point["steps"] / 1000
    assert busy_s == pytest.approx(point["busy_share"] * point["simulated_s"], rel=1e-3)


def test_prefixes_of_the_trace_reach_the_prefix_cache(tmp_path: Path) -> None:
    """Shared blocks are computed once; without them the same lengths cost more."""
    shared = [TraceRow(1100, 4, prefix_block_ids=(1, 2, 100 + n)) for n in range(20)]
    alone = [dataclasses.replace(row, prefix_block_ids=()) for row in shared]
    profile = dataclasses.replace(
        TIGHT, name="wide", num_kv_tokens=40_000, max_model_len=2000, num_host_kv_tokens=0
    )
    path = write_profile(tmp_path, profile)
    one, other = (
        run_point(spec(tmp_path, profile=path, requests=20, rate=1.0), rows).point
        for rows in (shared, alone)
    )
    assert one["computed_tokens_per_s"] < 0.3 * other["computed_tokens_per_s"]


def test_quantiles_are_observed_values_and_infinity_is_null() -> None:
    """The smallest value that the share does not exceed."""
    assert quantiles([float(n) for n in range(1, 101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert quantiles([1.0, 2.0, float("inf")]) == {"p50": 2.0, "p95": None, "p99": None}
    assert quantiles([]) == {"p50": None, "p95": None, "p99": None}


@pytest.mark.skipif(not SHAREGPT.exists(), reason="the shared traces are not on this machine")
def test_sarathi_meets_the_light_load_of_the_notes() -> None:
    """Scheduling notes, section 3: at 0.8 requests a second premium .98 and free 1.0."""
    rows = load_trace(SHAREGPT)
    point = run_point(PointSpec(str(SHAREGPT), "sarathi", 0.8, 600, seed=1), rows).point
    assert point["tiers"]["premium"]["attainment"] > 0.9
    assert point["tiers"]["free"]["attainment"] > 0.99
    assert point["refused"] == point["unfinished"] == 0


def test_a_host_of_another_format_holds_more_and_is_not_exact(tmp_path: Path) -> None:
    """Link, room and exactness follow the format; all laws hold."""
    profile = dataclasses.replace(
        TIGHT,
        name="int8",
        int8_out_ns_per_token=1e4,
        int8_in_ns_per_token=5e3,
        int8_kv_bytes_per_token=50,
    )
    path = write_profile(tmp_path, profile)
    raw, int8 = (
        Scene(spec(tmp_path, profile=path, host_format=one), ROWS) for one in ("raw", "int8")
    )
    assert int8.capacity.num_host_blocks == 2 * raw.capacity.num_host_blocks
    assert (raw.capacity.host_is_exact, int8.capacity.host_is_exact) == (True, False)
    assert int8.executor().capacity == int8.capacity
    made = run_point(
        spec(
            tmp_path, policy="alise", profile=path, host_format="int8", rate=50.0, check_laws=True
        ),
        ROWS,
    ).point
    assert made["parks"] > 0
    assert made["unfinished"] == 0
