"""A scheduler that takes the simulated device for another one finds out what it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from sim_world import TIGHT, short_rows, write_profile

from engine.core.latency_profile import dump_profile
from engine.core.stats import RequestStats, StepStats
from engine.sim.point import PointSpec, Scene, run_point
from engine.sim.records import Journal
from engine.sim.simulator import Simulator

ROWS = short_rows(60)
WRONG = {
    "a third of every price": {
        name: getattr(TIGHT, name) / 3
        for name in ("base_ns", "token_ns", "tile_ns", "decode_kv_ns", "pair_ns", "floor_ns")
    },
    "hardly a base": {"base_ns": 1e5, "floor_ns": 0.0},
    "tokens for nothing": {"token_ns": 0.0, "tile_ns": 0.0},
}


class Errors:
    """An observer of how far predictions were off."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step(self, stats: StepStats) -> None:
        if stats.predicted_ns:
            self.found.append(abs(stats.predicted_ns / stats.elapsed_ns - 1))

    def on_finish(self, stats: RequestStats) -> None:
        pass


def spec(folder: Path, believed: str = "") -> PointSpec:
    return PointSpec("", "hybrid", 8.0, 150, 1, write_profile(folder), believed_profile=believed)


@pytest.mark.parametrize("name", WRONG)
def test_a_device_that_is_not_as_believed_is_learnt(tmp_path: Path, name: str) -> None:
    """Off by more than a tenth at first, within 10 % in the median of steps 200 to 300."""
    path = tmp_path / "believed.json"
    path.write_text(dump_profile(dataclasses.replace(TIGHT, name="believed", **WRONG[name])))
    scene, errors = Scene(spec(tmp_path, str(path)), ROWS), Errors()
    requests = scene.workload.requests
    journal = Journal(tier.name for tier in scene.spec.tiers)
    core = scene.core(errors)
    Simulator(core, scene.executor(), scene.orders(), journal, []).run(requests, [], None)
    assert errors.found[0] > 0.1
    assert sorted(errors.found[200:300])[50] < 0.10


def test_without_a_belief_the_scheduler_knows_its_device(tmp_path: Path) -> None:
    """Then nothing is learnt, and saying what is so changes nothing."""
    plain = spec(tmp_path)
    told = dataclasses.replace(plain, believed_profile=plain.profile)
    assert run_point(plain, ROWS) == run_point(told, ROWS)
