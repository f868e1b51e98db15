"""One point: a trace, a policy, a rate and a seed in, one dictionary of results out.

It puts the pieces together and knows no grid and no file but the trace and the profile. Equal
specs give equal results, byte for byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.core.admission import AdmissionRules, Mode
from engine.core.clock import NS_PER_S
from engine.core.engine_core import CoreConfig, EngineCore
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import RAW, LatencyProfile, load_profile
from engine.core.length_predictor import LengthPredictor
from engine.core.policies import make_policy
from engine.core.stats import Observer
from engine.sim.door import Listener, SimulatedDoor, parse_mode
from engine.sim.executor import SimulatedExecutor
from engine.sim.faults import NO_FAULTS, CopyFaults, Faults, StepFaults, draw_aborts
from engine.sim.laws import LawWatch
from engine.sim.lengths import AS_RECORDED, Lengths
from engine.sim.orders import OrderMaker, output_cap
from engine.sim.predictors import PredictorError, make_predictor
from engine.sim.records import Journal, RequestRecord
from engine.sim.simulator import Core, Simulator
from engine.sim.summary import StepTotals, summarize
from engine.sim.tiers import DEFAULT_TIERS
from engine.sim.workload import (
    SimRequest,
    SimTier,
    TraceRow,
    Workload,
    draw_workload,
    load_trace,
)

UNBOUNDED_PROMPT_TOKENS = 1 << 40


@dataclass(frozen=True, slots=True)
class PointSpec:
    """What to simulate. `rate` is in requests a second, `policy_options` are (name, number).

    `num_kv_tokens` and `num_host_kv_tokens` replace the profile's pools, `max_model_len` its
    context window, `lengths` says how the trace's requests are shortened, and
    `max_output_tokens` replaces the trace's own cap (its longest answer, up to the next
    power of two). `host_format` is how the host keeps parked contexts, "raw" or "int8". Without
    `horizon_s` the run goes on until everyone has ended. `believed_profile` is what the scheduler
    takes the device for at first, where that is not `profile`. `admission` is the mode of the door
    in front of the core (see engine/core/admission.py).
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
    host_format: str = RAW
    faults: Faults = NO_FAULTS
    check_laws: bool = False
    horizon_s: float | None = None
    lengths: Lengths = AS_RECORDED
    believed_profile: str = ""
    admission: str = "off"


def workload_of(spec: PointSpec, rows: Sequence[TraceRow]) -> Workload:
    """Return who asks for what and when: the same for a simulation and for a real server."""
    return draw_workload(
        spec.lengths.apply(rows),
        spec.tiers,
        rate=spec.rate,
        requests=spec.requests,
        seed=spec.seed,
        arrivals=spec.arrivals,
        tenants=spec.tenants,
    )


@dataclass(frozen=True, slots=True)
class PointResult:
    """The point as JSON-ready fields (see summary.py), and what became of each request."""

    point: dict[str, Any]
    records: tuple[RequestRecord, ...] = field(repr=False)


class Scene:
    """One spec made ready: profile, capacity and workload, and as many equal cores as wanted."""

    def __init__(self, spec: PointSpec, rows: Sequence[TraceRow] | None = None) -> None:
        rows = load_trace(spec.trace) if rows is None else rows
        self.spec = spec
        self.profile = load_profile(spec.profile).with_host_format(spec.host_format)
        self.capacity = _capacity(spec, self.profile)
        self._rows = spec.lengths.apply(rows)
        self.max_output_tokens = spec.max_output_tokens or output_cap(self._rows)
        self.workload = workload_of(spec, rows)
        self.lengths = {r.id: r.num_output_tokens for r in self.workload.requests}

    def predictor(self) -> LengthPredictor:
        """Return a new predictor of this scene's lengths."""
        spec = self.spec
        return make_predictor(spec.predictor, self.lengths, spec.seed, self._learned)

    def core(
        self, observer: Observer | None = None, predictor: LengthPredictor | None = None
    ) -> EngineCore:
        """Return a new core; it corrects its own latency model by what it measures."""
        spec, believed = self.spec, self.profile
        if spec.believed_profile:
            believed = load_profile(spec.believed_profile).with_host_format(spec.host_format)
        model = LatencyModel(believed)
        return EngineCore(
            self.capacity,
            make_policy(spec.policy, spec.policy_options, model),
            CoreConfig(spec.max_waiting_requests, UNBOUNDED_PROMPT_TOKENS),
            observer=observer,
            enable_prefix_cache=self.workload.has_prefixes,
            model=model,
            predictor=predictor or self.predictor(),
        )

    def _learned(self, num_warm: int) -> LengthPredictor:
        """Return the predictor that learns while the run goes on."""
        try:
            from engine.sim.learned import make_learned
        except ImportError as error:
            raise PredictorError(
                f"predictor learned: {error.name} is not installed (pip install 'tiergate[engine]')"
            ) from error
        return make_learned(
            num_warm,
            self._rows,
            self.workload,
            max_output_tokens=self.max_output_tokens,
            tenants=self.spec.tenants,
            seed=self.spec.seed,
        )

    def executor(self) -> SimulatedExecutor:
        """Return the device: its latency model is its own and never moves."""
        spec, model = self.spec, LatencyModel(self.profile)
        if spec.faults == NO_FAULTS:
            return SimulatedExecutor(self.capacity, model, self.lengths)
        return SimulatedExecutor(
            self.capacity,
            model,
            self.lengths,
            StepFaults(spec.faults, spec.seed),
            CopyFaults(spec.faults, spec.seed),
        )

    def orders(self) -> OrderMaker:
        """Return what makes the orders of this workload."""
        return OrderMaker(
            self.capacity, self.max_output_tokens, has_prefixes=self.workload.has_prefixes
        )

    def aborts(self) -> list[tuple[int, str]]:
        """Return who leaves when."""
        profile, device = self.profile, LatencyModel(self.profile)

        def life_ns(request: SimRequest) -> int:
            """Return about how long it would take alone."""
            step_ns = device.decode_ns(request.num_prompt_tokens)
            step_ns += max(profile.base_ns, profile.floor_ns)
            prompt_ns = device.prefill_ns(0, request.num_prompt_tokens)
            return int(prompt_ns + (1 + request.num_output_tokens) * step_ns)

        return draw_aborts(self.spec.faults, self.workload.requests, life_ns, self.spec.seed)


def run_point(
    spec: PointSpec,
    rows: Sequence[TraceRow] | None = None,
    *,
    wrap: Callable[[EngineCore], Core] | None = None,
    listener: Listener | None = None,
) -> PointResult:
    """Simulate one point; `rows` is the trace where it is read already.

    `wrap` puts something around the core, a recorder for example; `listener` hears the door's
    verdicts. Raises TraceError, ProfileError, PredictorError, ArrivalError or ValueError (an
    unknown policy, option or mode), each one sentence.
    """
    scene = Scene(spec, rows)
    requests = scene.workload.requests
    totals = StepTotals(scene.capacity, requests[-1].arrival_ns)
    journal = Journal(tier.name for tier in spec.tiers)
    mode, predictor = parse_mode(spec.admission), scene.predictor()
    door = None
    if mode is not Mode.OFF:
        door = SimulatedDoor(AdmissionRules(mode), predictor, listener)
    core = scene.core(totals, predictor)
    laws = None
    if spec.check_laws:
        laws = LawWatch(core, journal, has_prefixes=scene.workload.has_prefixes)
    simulator = Simulator(
        core if wrap is None else wrap(core),
        scene.executor(),
        scene.orders(),
        journal,
        [totals] if laws is None else [totals, laws],
        door,
    )
    horizon_ns = None if spec.horizon_s is None else int(spec.horizon_s * NS_PER_S)
    outcome = simulator.run(requests, scene.aborts(), horizon_ns)
    if laws is not None:
        laws.at_end(outcome.ended_ns, is_complete=horizon_ns is None)
    records = journal.records(requests)
    point = summarize(
        spec.policy, spec.rate, spec.seed, spec.tiers, records, journal.lateness, outcome.ended_ns
    )
    point |= totals.fields(outcome, scene.profile)
    if door is not None:
        point["admission"] = door.fields()
    return PointResult(point, records)


def _capacity(spec: PointSpec, profile: LatencyProfile) -> Capacity:
    changes = {
        name: value
        for name in ("num_kv_tokens", "num_host_kv_tokens", "max_model_len")
        if (value := getattr(spec, name)) is not None
    }
    capacity = dataclasses.replace(profile, **changes).capacity()
    capacity = dataclasses.replace(capacity, host_is_exact=spec.host_format == RAW)
    if spec.faults.num_host_blocks is not None:
        capacity = dataclasses.replace(capacity, num_host_blocks=spec.faults.num_host_blocks)
    return capacity
