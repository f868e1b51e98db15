"""One point: a trace, a policy, a rate and a seed in, one dictionary of results out.

It puts the pieces together and knows no grid and no file but the trace and the profile. Equal
specs give equal results, byte for byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.core.clock import NS_PER_S
from engine.core.engine_core import CoreConfig, EngineCore
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import LatencyProfile, load_profile
from engine.core.policies import make_policy
from engine.sim.executor import SimulatedExecutor
from engine.sim.faults import NO_FAULTS, Faults, StepFaults, draw_aborts
from engine.sim.orders import OrderMaker, output_cap
from engine.sim.predictors import make_predictor
from engine.sim.records import Journal, RequestRecord
from engine.sim.simulator import Simulator
from engine.sim.summary import StepTotals, summarize
from engine.sim.tiers import DEFAULT_TIERS
from engine.sim.workload import SimRequest, SimTier, TraceRow, draw_workload, load_trace

UNBOUNDED_PROMPT_TOKENS = 1 << 40


@dataclass(frozen=True, slots=True)
class PointSpec:
    """What to simulate. `rate` is in requests a second, `policy_options` are (name, number).

    `num_kv_tokens` and `num_host_kv_tokens` replace the profile's pools, `max_model_len` its
    context window, `max_output_tokens` the trace's own cap (its longest answer, up to the next
    power of two). Without `horizon_s` the run goes on until everyone has ended.
    """

    trace: str
    policy: str
    rate: float
    requests: int
    seed: int = 0
    profile: str = "mistral-7b-rtx6000ada"
    policy_options: tuple[tuple[str, float], ...] = ()
    tiers: tuple[SimTier, ...] = DEFAULT_TIERS
    arrivals: str = "poisson"
    predictor: str = "noisy:0.4"
    tenants: int = 1
    num_kv_tokens: int | None = None
    num_host_kv_tokens: int | None = None
    max_model_len: int | None = None
    max_output_tokens: int | None = None
    max_waiting_requests: int = 1_000_000
    faults: Faults = NO_FAULTS
    check_laws: bool = False
    horizon_s: float | None = None


@dataclass(frozen=True, slots=True)
class PointResult:
    """The point as JSON-ready fields (see summary.py), and what became of each request."""

    point: dict[str, Any]
    records: tuple[RequestRecord, ...] = field(repr=False)


def run_point(spec: PointSpec, rows: Sequence[TraceRow] | None = None) -> PointResult:
    """Simulate one point; `rows` is the trace where it is read already.

    Raises TraceError, ProfileError, PredictorError, ArrivalError or ValueError (an unknown policy
    or option), each one sentence.
    """
    profile = load_profile(spec.profile)
    rows = load_trace(spec.trace) if rows is None else rows
    workload = draw_workload(
        rows,
        spec.tiers,
        rate=spec.rate,
        requests=spec.requests,
        seed=spec.seed,
        arrivals=spec.arrivals,
        tenants=spec.tenants,
    )
    capacity = _capacity(spec, profile)
    lengths = {r.id: r.num_output_tokens for r in workload.requests}
    # The scheduler corrects its model by what it measures; the device's own never moves.
    device, model = LatencyModel(profile), LatencyModel(profile)
    totals = StepTotals(capacity)
    core = EngineCore(
        capacity,
        make_policy(spec.policy, spec.policy_options, model),
        CoreConfig(spec.max_waiting_requests, UNBOUNDED_PROMPT_TOKENS),
        observer=totals,
        enable_prefix_cache=workload.has_prefixes,
        model=model,
        predictor=make_predictor(spec.predictor, lengths, spec.seed),
    )
    faults = None if spec.faults == NO_FAULTS else StepFaults(spec.faults, spec.seed)
    executor = SimulatedExecutor(capacity, device, lengths, faults)
    cap = spec.max_output_tokens or output_cap(rows)
    orders = OrderMaker(capacity, cap, has_prefixes=workload.has_prefixes)
    journal = Journal(tier.name for tier in spec.tiers)

    def life_ns(request: SimRequest) -> int:
        step_ns = device.decode_ns(request.num_prompt_tokens) + profile.base_ns + profile.floor_ns
        prompt_ns = device.prefill_ns(0, request.num_prompt_tokens) + step_ns
        return int(prompt_ns + request.num_output_tokens * step_ns)

    simulator = Simulator(core, executor, orders, journal, [totals])
    outcome = simulator.run(
        workload.requests,
        draw_aborts(spec.faults, workload.requests, life_ns, spec.seed),
        None if spec.horizon_s is None else int(spec.horizon_s * NS_PER_S),
    )
    records = journal.records(workload.requests)
    point = summarize(spec.policy, spec.rate, spec.seed, spec.tiers, records, journal.lateness)
    point |= totals.fields(outcome, profile)
    return PointResult(point, records)


def _capacity(spec: PointSpec, profile: LatencyProfile) -> Capacity:
    changes = {
        name: value
        for name in ("num_kv_tokens", "num_host_kv_tokens", "max_model_len")
        if (value := getattr(spec, name)) is not None
    }
    capacity = dataclasses.replace(profile, **changes).capacity()
    if spec.faults.num_host_blocks is not None:
        capacity = dataclasses.replace(capacity, num_host_blocks=spec.faults.num_host_blocks)
    return capacity
