"""The whole core under a late and faulty executor, any policy and any order of commands."""

from __future__ import annotations

from core_copier import Copier
from core_fakes import VOCABULARY
from core_policies import ForcedParks, HostilePolicy, tiny_model
from core_world import World
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from engine.core.engine_core import CoreConfig
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel
from engine.core.policies import make_policy
from engine.core.policy import SchedulingPolicy
from engine.core.request import RequestOrder, SamplingParams, Slo, TbtMode

capacities = st.builds(
    Capacity,
    num_blocks=st.integers(6, 24),
    block_size=st.integers(1, 4),
    max_model_len=st.integers(20, 60),
    max_batch_tokens=st.integers(1, 40),
    max_batch_requests=st.integers(1, 8),
    num_host_blocks=st.sampled_from([0, 1, 3, 8, 40]),
    host_is_exact=st.booleans(),
)
configs = st.builds(
    CoreConfig,
    max_waiting_requests=st.integers(1, 12),
    max_waiting_prompt_tokens=st.integers(10, 200),
)
prompts = st.one_of(
    st.integers(1, 24).map(lambda length: [token % 3 for token in range(length)]),  # shared
    st.lists(st.integers(0, VOCABULARY - 1), min_size=0, max_size=12),
).map(tuple)
samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 20),
    min_tokens=st.integers(0, 4),
    seed=st.integers(0, 2),
    stop_token_ids=st.sampled_from([(), (), (0,), (0, 1, 2)]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
)
slos = st.builds(
    Slo,
    rank=st.integers(0, 1),
    tbt_ns=st.integers(1, 20),
    tbt_mode=st.sampled_from(TbtMode),
    pace_ns=st.sampled_from([0, 0, 1, 9]),
)


def policies() -> st.SearchStrategy[SchedulingPolicy]:
    return st.one_of(
        st.just("fcfs").map(make_policy),
        st.integers(1, 40).map(
            lambda budget: make_policy("sarathi", [("token_budget", budget), ("max_running", 3)])
        ),
        st.integers(0, 1000).map(HostilePolicy),
        st.builds(
            lambda seed, one_in: ForcedParks(make_policy("fcfs"), seed, one_in),
            st.integers(0, 1000),
            st.integers(1, 4),
        ),
    )


# Every copy over with its step; late ones in any order; late ones, a fifth of them lost.
copiers = st.one_of(
    st.builds(Copier),
    st.builds(Copier, st.integers(0, 1000), lost_share=st.sampled_from([0.0, 0.2])),
)
# No model; one whose link is cheap, so that victims are parked; one whose link is dear.
models = st.sampled_from([None, 0.1, 100.0]).map(lambda link: link and tiny_model(link))


class EngineMachine(RuleBasedStateMachine):
    """Commands in any order, also while a step is out; every law after each (see World)."""

    world: World

    @initialize(
        capacity=capacities,
        policy=policies(),
        config=configs,
        enable_prefix_cache=st.booleans(),
        model=models,
        copier=copiers,
    )
    def build(
        self,
        capacity: Capacity,
        policy: SchedulingPolicy,
        config: CoreConfig,
        enable_prefix_cache: bool,
        model: LatencyModel | None,
        copier: Copier,
    ) -> None:
        self.world = World(
            capacity,
            policy,
            config,
            enable_prefix_cache=enable_prefix_cache,
            model=model,
            copier=copier,
        )

    # Few ids, so that ids are used again, also while a step with their last bearer is out.
    @rule(
        names=st.lists(st.integers(0, 11).map(str), min_size=1, max_size=4),
        prompt=prompts,
        sampling=samplings,
        slo=slos,
        salt=st.sampled_from(["red", "blue"]),
        age=st.integers(0, 5),
    )
    def submit(
        self,
        names: list[str],
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        slo: Slo,
        salt: str,
        age: int,
    ) -> None:
        for name in names:
            self.world.submit(
                RequestOrder(
                    id=name,
                    prompt=prompt,
                    sampling=sampling,
                    arrival_ns=self.world.now_ns - age,
                    tenant=salt,
                    tier=f"tier-{slo.rank}",
                    cache_salt=salt,
                    slo=slo,
                )
            )

    @rule(duration_ns=st.integers(0, 100))
    def wait(self, duration_ns: int) -> None:
        self.world.wait(duration_ns)

    @rule(name=st.integers(0, 12).map(str))
    def abort(self, name: str) -> None:
        self.world.abort(name)

    @rule(name=st.integers(0, 12).map(str), num_output_tokens=st.integers(0, 10))
    def stop(self, name: str, num_output_tokens: int) -> None:
        self.world.stop(name, num_output_tokens)

    @rule(data=st.data(), outcome=st.sampled_from(["ok", "ok", "failed rows", "fault"]))
    def half_a_step(self, data: st.DataObject, outcome: str) -> None:
        if self.world.out is None:
            self.world.start()
        elif outcome == "ok":
            self.world.finish()
        elif outcome == "fault":
            self.world.fault()
        else:
            names = [chunk.request_id for chunk in self.world.out.chunks]
            self.world.finish(
                data.draw(st.sets(st.sampled_from(names), max_size=2)) if names else ()
            )

    @rule(steps=st.integers(2, 12))
    def whole_steps(self, steps: int) -> None:
        for _ in range(steps):
            if self.world.out is None and self.world.start() is None:
                break
            self.world.finish()

    @rule()
    def fail_all(self) -> None:
        if len(self.world.live) > 4:
            self.world.fail_all()

    def teardown(self) -> None:
        if hasattr(self, "world") and self.world.is_sound:
            self.world.drain()
            snapshot = self.world.core.snapshot(self.world.now_ns)
            event(f"preempted: {min(snapshot.preemptions_total, 3)}")
            event(f"parked: {min(snapshot.parks_total, 3)}")
            event(f"lost copies: {min(snapshot.lost_copies_total, 3)}")
            event(f"recomputed: {snapshot.recomputed_tokens_total > 0}")
            event(f"prefix hits: {snapshot.cached_tokens_total > 0}")
            event(f"steps: {snapshot.step // 25 * 25}")
            most = max((t.end.preemptions for t in self.world.ended if t.end), default=0)
            event(f"most preemptions of one request: {most}")


TestEngineMachine = EngineMachine.TestCase
