"""Small worlds for the simulator's tests: profiles of round numbers and short random traces."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from engine.core.clock import NS_PER_MS
from engine.core.engine_core import EngineCore
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile, dump_profile
from engine.core.policies import make_policy
from engine.core.request import Slo, TbtMode
from engine.sim.executor import SimulatedExecutor
from engine.sim.laws import LawWatch
from engine.sim.orders import OrderMaker
from engine.sim.predictors import make_predictor
from engine.sim.records import Journal, RequestRecord
from engine.sim.simulator import Simulator
from engine.sim.workload import SimRequest, SimTier, TraceRow

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SHAREGPT = DATA / "traces" / "sharegpt8k_llama2_lengths.csv.gz"

# 10 ms a step and 1 ms a token: latencies that can be added up by hand.
ROUND = LatencyProfile(
    name="round",
    base_ns=10 * NS_PER_MS,
    token_ns=NS_PER_MS,
    block_size=4,
    num_kv_tokens=4000,
    max_model_len=400,
    max_batch_tokens=100,
    max_batch_requests=16,
)
# Every term of the form, a pool for about six requests of `short_rows`, a host for four.
TIGHT = LatencyProfile(
    name="tight",
    base_ns=5e6,
    floor_ns=6e6,
    token_ns=1e5,
    tile_tokens=8,
    tile_ns=2e5,
    decode_kv_ns=2e4,
    mixed_kv_factor=1.5,
    pair_ns=300,
    prompt_kv_ns=500,
    row_ns=1e4,
    link_ns=2e5,
    link_out_ns_per_token=2e4,
    link_in_ns_per_token=1e4,
    kv_bytes_per_token=100,
    num_kv_tokens=240,
    num_host_kv_tokens=160,
    block_size=4,
    max_model_len=160,
    max_batch_tokens=64,
    max_batch_requests=12,
)


def write_profile(folder: Path, profile: LatencyProfile = TIGHT) -> str:
    """Return the path of the profile as a file."""
    path = folder / f"{profile.name}.json"
    path.write_text(dump_profile(profile))
    return str(path)


def short_rows(count: int = 60, seed: int = 0) -> tuple[TraceRow, ...]:
    rng = random.Random(seed)
    return tuple(
        TraceRow(rng.randrange(1, 60), rng.randrange(1, 30), number * 0.02, f"t{number % 3}")
        for number in range(count)
    )


def tier(name: str = "free", *, tbt_ms: float = 500, mode: TbtMode = TbtMode.GAP) -> SimTier:
    slo = Slo(1, 20 * NS_PER_MS, 0, int(tbt_ms * NS_PER_MS), mode)
    return SimTier(name, slo, 1.0, 0.95)


def request(
    name: str, at_ms: float, prompt: int, output: int, of_tier: SimTier | None = None
) -> SimRequest:
    return SimRequest(name, int(at_ms * NS_PER_MS), prompt, output, of_tier or tier(), "someone")


def simulate(
    requests: Sequence[SimRequest],
    profile: LatencyProfile = ROUND,
    policy: str = "fcfs",
    aborts: Sequence[tuple[int, str]] = (),
) -> tuple[dict[str, RequestRecord], Journal]:
    """Run these very requests, laws asserted; returns the records by id."""
    lengths = {r.id: r.num_output_tokens for r in requests}
    capacity, model = profile.capacity(), LatencyModel(profile)
    core = EngineCore(
        capacity,
        make_policy(policy, (), model),
        enable_prefix_cache=False,
        model=model,
        predictor=make_predictor("oracle", lengths, 0),
    )
    journal = Journal({r.tier.name for r in requests})
    laws = LawWatch(core, journal)
    executor = SimulatedExecutor(capacity, LatencyModel(profile), lengths)
    simulator = Simulator(core, executor, OrderMaker(capacity, 64), journal, [laws])
    outcome = simulator.run(requests, aborts)
    laws.at_end(outcome.ended_ns, is_complete=True)
    return {record.id: record for record in journal.records(requests)}, journal
