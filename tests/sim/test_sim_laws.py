"""The laws, asserted after every step of simulated runs; and proof that the watch would see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_world import TIGHT, short_rows, write_profile

from engine.core.batch import Batch, Chunk, Copy, StepResult
from engine.core.policies import POLICIES
from engine.sim.executor import SimulatedFault
from engine.sim.faults import NO_FAULTS, Faults, draw_aborts
from engine.sim.laws import ShadowMemory
from engine.sim.point import PointSpec, Scene, run_point

ROWS = short_rows(60)
FAULTS = {
    "none": NO_FAULTS,
    "aborts": Faults(abort_share=0.5),
    "errors": Faults(error_share=0.01, failed_row_share=0.002),
    "slow": Faults(slow_share=0.1, slow_factor=20),
    "no host": Faults(num_host_blocks=0, abort_share=0.1),
    "late copies": Faults(late_copy_share=0.3, abort_share=0.1),
    "lost copies": Faults(late_copy_share=0.1, lost_copy_share=0.2, abort_share=0.1),
    "host full": Faults(num_host_blocks=6, abort_share=0.1, error_share=0.003),
}


def point(folder: Path, policy: str, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "trace": "", "policy": policy, "rate": 25.0, "requests": 100, "seed": 3,
        "profile": write_profile(folder), "check_laws": True, **changes,
    }  # fmt: skip
    return run_point(PointSpec(**fields), ROWS).point


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_keeps_the_laws_through_every_fault(
    tmp_path: Path, policy: str, faults: Faults
) -> None:
    """Overloaded, short of memory: everyone ends, nothing leaks, every step is lawful."""
    assert point(tmp_path, policy, faults=faults)["unfinished"] == 0


@pytest.mark.parametrize("predictor", ["oracle", "liar", "constant:1", "noisy:2", "history"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_false_predictions_break_no_law(tmp_path: Path, policy: str, predictor: str) -> None:
    """Law L25: predictions order, they never guard safety."""
    made = point(tmp_path, policy, predictor=predictor)
    assert made["unfinished"] == made["refused"] == 0


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    seed=st.integers(0, 10**6),
    pool=st.integers(26, 80),
    host=st.integers(0, 60),
    faults=st.builds(
        Faults,
        abort_share=st.sampled_from([0, 0.1, 0.5]),
        slow_share=st.sampled_from([0, 0.1]),
        error_share=st.sampled_from([0, 0.002, 0.02]),
        failed_row_share=st.sampled_from([0, 0.002]),
        late_copy_share=st.sampled_from([0, 0.1, 1]),
        lost_copy_share=st.sampled_from([0, 0.05, 0.5]),
    ),
    arrivals=st.sampled_from(["poisson", "gamma:4", "trace"]),
    rate=st.sampled_from([2.0, 20.0, 500.0]),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_random_worlds_are_lawful(
    tmp_path_factory: pytest.TempPathFactory,
    policy: str,
    seed: int,
    pool: int,
    host: int,
    faults: Faults,
    arrivals: str,
    rate: float,
) -> None:
    """Any policy, pool, host, load and faults: the laws hold and everyone ends."""
    made = point(
        tmp_path_factory.mktemp("world"),
        policy,
        seed=seed,
        requests=25,
        rate=rate,
        arrivals=arrivals,
        num_kv_tokens=4 * pool,
        num_host_kv_tokens=4 * host,
        faults=faults,
    )
    assert made["unfinished"] == 0


def test_the_pool_is_short_enough_for_the_tests_to_mean_something(tmp_path: Path) -> None:
    """Without a host requests are preempted, with one a policy that swaps parks them."""
    without = point(tmp_path, "fcfs", faults=FAULTS["no host"])
    assert without["preemptions"] > 0
    assert without["recompute_share"] > 0
    assert point(tmp_path, "fcfs")["parks"] == 0
    assert point(tmp_path, "alise")["parks"] > 0


def test_aborts_hit_all_moments_of_a_life() -> None:
    """Some leave before they would start, some between, some after their end."""
    scene = Scene(
        PointSpec("", "fcfs", 5.0, 2000, faults=Faults(abort_share=0.5), profile="builtin-cpu"),
        ROWS,
    )
    aborts = scene.aborts()
    assert len(aborts) / 2000 == pytest.approx(0.5, abs=0.05)
    assert len({name for _, name in aborts}) == len(aborts)
    arrival = {r.id: r.arrival_ns for r in scene.workload.requests}
    assert all(at_ns >= arrival[name] for at_ns, name in aborts)
    life = {r.id: 1000 for r in scene.workload.requests}
    delays = sorted(
        at_ns - arrival[name]
        for at_ns, name in draw_aborts(
            Faults(abort_share=1), scene.workload.requests, lambda r: life[r.id], 0
        )
    )
    assert delays[0] < 20
    assert delays[1000] == pytest.approx(1000, abs=80)
    assert delays[-1] > 1980


@pytest.mark.parametrize(
    "fields",
    [
        {"abort_share": 1.1},
        {"slow_share": -0.1},
        {"slow_factor": 0},
        {"late_copy_share": 2},
        {"lost_copy_share": -1},
        {"late_copy_factor": 0.5},
        {"num_host_blocks": -1},
    ],
)
def test_impossible_faults_are_refused(fields: dict[str, Any]) -> None:
    """A share is a probability."""
    with pytest.raises(ValueError):
        Faults(**fields)


def chunk(name: str, start: int, end: int, *blocks: int) -> Chunk:
    return Chunk(name, start, (0,) * (end - start), blocks, None)


class TestShadowMemory:
    """The watch sees what it is there to see."""

    def memory(self) -> ShadowMemory:
        """Five tokens of `a` in blocks 1 and 2."""
        memory = ShadowMemory(TIGHT.capacity())
        self.step(memory, Batch(1, (chunk("a", 0, 5, 1, 2),)))
        return memory

    def step(
        self,
        memory: ShadowMemory,
        batch: Batch,
        copied: tuple[int, ...] = (),
        lost: tuple[int, ...] = (),
        *,
        has_failed: bool = False,
    ) -> None:
        """Make a step; these copies are over with it."""
        memory.dispatch(batch)
        result = StepResult(batch.step, (), 1, (), copied, lost)
        memory.complete(batch, SimulatedFault(1) if has_failed else result)

    def test_a_context_is_read_where_it_was_written(self) -> None:
        """Right block, right part, enough of it."""
        memory = self.memory()
        self.step(memory, Batch(2, (chunk("a", 5, 6, 1, 2),)))
        for wrong in (
            chunk("b", 5, 6, 1, 2),  # another's
            chunk("a", 5, 6, 2, 1),  # the wrong way round
            chunk("a", 7, 8, 1, 2),  # never computed
            chunk("a", 5, 6, 1, 3),  # nobody's
        ):
            with pytest.raises(AssertionError):
                memory.dispatch(Batch(3, (wrong,)))

    def test_a_context_survives_the_host_and_comes_back_elsewhere(self) -> None:
        """Parked, overwritten on the device, returned to other blocks; all of it late."""
        memory = self.memory()
        self.step(memory, Batch(2, (chunk("c", 0, 3, 9),), parks=(Copy("a", (1, 2), (7, 8), 1),)))
        self.step(memory, Batch(3, (chunk("c", 3, 4, 9),)), (1,))
        self.step(memory, Batch(4, (chunk("b", 0, 8, 1, 2),)))
        self.step(memory, Batch(5, (), returns=(Copy("a", (5, 6), (7, 8), 2),)), (2,))
        self.step(memory, Batch(6, (chunk("a", 5, 6, 5, 6),)))
        with pytest.raises(AssertionError, match="reads a block of b"):
            memory.dispatch(Batch(7, (), parks=(Copy("a", (1, 2), (7, 8), 3),)))

    def test_a_copy_under_way_has_both_sides_to_itself(self) -> None:
        """Not written, not read where it arrives, not carried on, for as long as it takes."""
        memory = self.memory()
        self.step(memory, Batch(2, (), parks=(Copy("a", (1, 2), (7, 8), 1),)))
        self.step(memory, Batch(3, (chunk("b", 0, 8, 3, 4),)))
        for wrong in (
            Batch(4, (chunk("c", 0, 2, 1),)),  # writes what is being read
            Batch(4, (), parks=(Copy("b", (3, 4), (8, 9), 2),)),  # arrives where another does
        ):
            with pytest.raises(AssertionError, match="two places of a step"):
                memory.dispatch(wrong)
        memory = self.memory()
        self.step(memory, Batch(2, (), parks=(Copy("a", (1, 2), (7, 8), 1),)))
        with pytest.raises(AssertionError, match="block of nobody"):
            memory.dispatch(Batch(3, (), returns=(Copy("a", (5, 6), (7, 8), 2),)))  # not there yet

    def test_a_lost_copy_leaves_garbage(self) -> None:
        """Where it was to arrive nothing may be read."""
        memory = self.memory()
        self.step(memory, Batch(2, (), parks=(Copy("a", (1, 2), (7, 8), 1),)), (), (1,))
        with pytest.raises(AssertionError, match="block of nobody"):
            memory.dispatch(Batch(3, (), returns=(Copy("a", (5, 6), (7, 8), 2),)))

    def test_a_failed_step_leaves_garbage(self) -> None:
        """Nothing that it wrote or carried may be read."""
        memory = self.memory()
        self.step(memory, Batch(2, (chunk("a", 5, 6, 1, 2),)), has_failed=True)
        with pytest.raises(AssertionError, match="block of nobody"):
            memory.dispatch(Batch(3, (chunk("a", 6, 7, 1, 2),)))
        memory = self.memory()
        self.step(memory, Batch(2, (), parks=(Copy("a", (1, 2), (7, 8), 1),)), has_failed=True)
        with pytest.raises(AssertionError, match="block of nobody"):
            memory.dispatch(Batch(3, (), returns=(Copy("a", (3, 4), (7, 8), 2),)))

    def test_no_block_has_two_uses_in_one_step(self) -> None:
        """Neither two chunks, nor a chunk and a copy; and no block that is none."""
        for batch, what in (
            (Batch(2, (chunk("b", 0, 2, 3), chunk("c", 0, 2, 3))), "two places"),
            (Batch(2, (chunk("b", 0, 2, 1),), parks=(Copy("a", (1, 2), (7, 8), 1),)), "two places"),
            (Batch(2, (chunk("b", 0, 2, 0),)), "no such block"),
            (Batch(2, (chunk("b", 0, 2, 61),)), "no such block"),
            (Batch(2, (), parks=(Copy("a", (1, 2), (7, 41), 1),)), "no such block"),
        ):
            with pytest.raises(AssertionError, match=what):
                self.memory().dispatch(batch)
