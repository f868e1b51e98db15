"""The hybrid under everything that goes wrong: the laws, its bound on waiting, its promise."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_world import DATA, TIGHT, short_rows, write_profile

from engine.core.clock import NS_PER_MS
from engine.core.engine_core import EngineCore
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import load_profile
from engine.core.policies.hybrid import Hybrid
from engine.core.policies.hybrid_options import HybridOptions
from engine.core.request import Slo, TbtMode
from engine.core.waiting_queue import RERANKED_PER_STEP
from engine.sim.executor import SimulatedExecutor
from engine.sim.faults import Faults
from engine.sim.orders import OrderMaker
from engine.sim.point import PointResult, PointSpec, run_point
from engine.sim.predictors import make_predictor
from engine.sim.records import Journal
from engine.sim.simulator import Simulator
from engine.sim.trace import TraceRow, load_trace
from engine.sim.workload import SimRequest, SimTier

ROWS = short_rows(60)
SWITCHES = [
    "time_budget", "defer", "memory_pace", "deadlines", "triage", "displace", "park", "predict",
    "least_pause_s", "second_s", "oldest_s", "reserve",
]  # fmt: skip
PREDICTORS = ["oracle", "liar", "constant:1", "constant:100000", "history", "noisy:2"]
SHAREGPT = DATA / "traces" / "sharegpt8k_llama2_lengths.csv.gz"


def tier(
    name: str,
    rank: int,
    *,
    ttft_ms: float,
    tbt_ms: float,
    mode: TbtMode = TbtMode.GAP,
    share: float = 1.0,
) -> SimTier:
    slo = Slo(rank, int(ttft_ms * NS_PER_MS), 0, int(tbt_ms * NS_PER_MS), mode)
    return SimTier(name, slo, share, 0.95)


GAP = (tier("premium", 0, ttft_ms=60, tbt_ms=20), tier("free", 1, ttft_ms=300, tbt_ms=100))
STREAM = tuple(
    dataclasses.replace(t, slo=dataclasses.replace(t.slo, tbt_mode=TbtMode.STREAM)) for t in GAP
)
THREE = (*GAP, tier("batch", 2, ttft_ms=5000, tbt_ms=4000, mode=TbtMode.STREAM))
# A park pays with a bank of 4 s and more: tiers whose streams are that far ahead.
RICH = (
    tier("premium", 0, ttft_ms=60, tbt_ms=1000, mode=TbtMode.STREAM),
    tier("free", 1, ttft_ms=400, tbt_ms=5000, mode=TbtMode.STREAM),
)
IMPOSSIBLE = (
    tier("premium", 0, ttft_ms=1e-6, tbt_ms=1e-6),
    tier("free", 1, ttft_ms=1e9, tbt_ms=1e9, mode=TbtMode.STREAM),
)
TIERS = {
    "gap": GAP,
    "stream": STREAM,
    "three": THREE,
    "rich": RICH,
    "impossible": IMPOSSIBLE,
    "all premium": GAP[:1],
}
EVERYTHING = Faults(
    abort_share=0.2,
    slow_share=0.05,
    error_share=0.004,
    failed_row_share=0.001,
    late_copy_share=0.1,
    lost_copy_share=0.05,
)


def run(folder: Path, policy: str = "hybrid", **changes: Any) -> PointResult:
    fields: dict[str, Any] = {
        "trace": "", "policy": policy, "rate": 30.0, "requests": 80, "seed": 3, "tiers": GAP,
        "profile": write_profile(folder), "check_laws": True, **changes,
    }  # fmt: skip
    return run_point(PointSpec(**fields), ROWS)


@pytest.mark.parametrize("tiers", TIERS.values(), ids=TIERS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_laws_hold_whatever_is_promised_and_predicted(
    tmp_path: Path, tiers: tuple[SimTier, ...], predictor: str
) -> None:
    """Leavers, slow and failing steps, promises nobody can keep: all end, nothing leaks."""
    made = run(tmp_path, tiers=tiers, predictor=predictor, faults=EVERYTHING).point
    assert made["unfinished"] == 0
    assert made["max_preemptions"] <= 4


@given(
    tiers=st.sampled_from([*TIERS.values()]),
    seed=st.integers(0, 10**6),
    pool=st.integers(26, 90),
    host=st.integers(0, 60),
    rate=st.sampled_from([2.0, 30.0, 1000.0]),
    options=st.dictionaries(
        st.sampled_from(SWITCHES),
        st.just(0.0),
    ),
)
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_laws_hold_in_any_pool_with_any_idea_taken_out(
    tmp_path_factory: pytest.TempPathFactory,
    tiers: tuple[SimTier, ...],
    seed: int,
    pool: int,
    host: int,
    rate: float,
    options: dict[str, float],
) -> None:
    """Ablations are policies too: none of them may stall the engine or lose anybody."""
    made = run(
        tmp_path_factory.mktemp("world"),
        tiers=tiers,
        seed=seed,
        requests=25,
        rate=rate,
        num_kv_tokens=4 * pool,
        num_host_kv_tokens=4 * host,
        policy_options=tuple(options.items()),
        faults=EVERYTHING,
    )
    assert made.point["unfinished"] == 0


def test_parks_and_displacements_happen_in_these_worlds(tmp_path: Path) -> None:
    """Else the laws above would say nothing of them."""
    assert run(tmp_path, tiers=RICH, requests=100).point["parks"] > 10
    without_host = run(tmp_path, requests=100, num_host_kv_tokens=0).point
    assert without_host["preemptions"] > 0


@pytest.mark.parametrize("predictor", ["liar", "constant:1", "noisy:2"])
def test_a_lie_costs_at_most_a_tenth_of_the_throughput(tmp_path: Path, predictor: str) -> None:
    """Law L25: with the worst predictor the hybrid makes 0.9 of the tokens of first come, too."""

    def rate(policy: str) -> float:
        made = run(tmp_path, policy, predictor=predictor, requests=300, check_laws=False).point
        assert made["unfinished"] == 0
        return float(made["tokens_per_s"])

    assert rate("hybrid") >= 0.9 * rate("fcfs")


def test_the_guard_stops_thrash() -> None:
    """Short prompts, long answers, no host: fewer contexts are lost, and more tokens made."""
    rng = random.Random(1)
    rows = [TraceRow(rng.randint(20, 80), rng.randint(400, 1200)) for _ in range(400)]

    def made(guard: float) -> dict[str, Any]:
        spec = PointSpec(
            "",
            "hybrid",
            rate=5,
            requests=300,
            seed=1,
            num_kv_tokens=16384,
            num_host_kv_tokens=0,
            policy_options=(("guard", guard),),
        )
        return run_point(spec, rows).point

    with_it, without = made(1), made(0)
    assert with_it["preemptions"] < 0.6 * without["preemptions"]
    assert with_it["tokens_per_s"] > 1.1 * without["tokens_per_s"]


def first_tokens(requests: list[SimRequest], options: HybridOptions) -> dict[str, int]:
    """Serve these on the tight profile; when each had its first token."""
    model, lengths = LatencyModel(TIGHT), {r.id: r.num_output_tokens for r in requests}
    core = EngineCore(
        TIGHT.capacity(),
        Hybrid(model, options),
        enable_prefix_cache=False,
        model=model,
        predictor=make_predictor("oracle", lengths, 0),
    )
    journal = Journal({r.tier.name for r in requests})
    executor = SimulatedExecutor(TIGHT.capacity(), LatencyModel(TIGHT), lengths)
    Simulator(core, executor, OrderMaker(TIGHT.capacity(), 64), journal).run(requests)
    return {record.id: record.first_token_ns or 0 for record in journal.records(requests)}


def test_a_flood_of_short_prompts_does_not_starve_a_long_one() -> None:
    """Law L21: a lost prompt, the only one, is started within a bound that is counted in starts.

    Its turn comes `oldest_every` starts after it has waited for `oldest_s`, and is seen when the
    waiting have been ranked again, so many in a step; then its room is made like that of others.
    """
    patient, hasty = tier("free", 1, ttft_ms=1e5, tbt_ms=100), tier("hurry", 1, ttft_ms=1, tbt_ms=9)
    shorts = [
        SimRequest(f"short{n:05}", n * NS_PER_MS, 20, 3, patient, "other") for n in range(800)
    ]
    long = SimRequest("long", 100 * NS_PER_MS, 130, 3, hasty, "someone")
    requests = sorted([*shorts, long], key=lambda r: r.arrival_ns)
    options = HybridOptions(second_s=0, oldest_s=0.1, oldest_every=50, fair_seats=0)
    first = first_tokens(requests, options)
    assert first["long"] < shorts[-1].arrival_ns, "it waited until the flood was over"
    begun = sum(200 * NS_PER_MS < at_ns < first["long"] for at_ns in first.values())
    num_waiting = sum(r.arrival_ns < first["long"] < first[r.id] for r in requests)
    starts_in_step = TIGHT.max_batch_tokens // 20 + 1
    steps = math.ceil((num_waiting + 1) / RERANKED_PER_STEP) + 10
    assert begun <= options.oldest_every + steps * starts_in_step
    without = first_tokens(requests, dataclasses.replace(options, oldest_every=0))
    assert without["long"] == max(without.values()), "nothing but its turn lets it in before"


@pytest.mark.skipif(not SHAREGPT.exists(), reason="the shared traces are not on this machine")
@pytest.mark.parametrize("host", [None, 0])
def test_a_flood_of_free_never_costs_premium_its_objective(host: int | None) -> None:
    """Three times what the device can do, with and without a host: premium stays at 0.99."""
    rows = load_trace(SHAREGPT)
    spec = PointSpec("", "hybrid", 6.6, 300, seed=2, num_host_kv_tokens=host)
    made = run_point(spec, rows).point
    premium = made["tiers"]["premium"]
    assert premium["attainment"] >= premium["objective"]
    assert made["tiers"]["free"]["attainment"] < 0.95
    assert made["unfinished"] == 0
    assert load_profile(spec.profile).num_host_kv_tokens > 0
