"""The door in virtual time: nobody vanishes, refusals obey the rules, nothing oscillates."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cache

import pytest
from sim_world import short_rows, write_profile

from engine.core.admission import Action, Verdict
from engine.core.forecast import Newcomer
from engine.core.request import Slo
from engine.sim.point import PointResult, PointSpec, run_point
from engine.sim.workload import SimTier

MS = 1_000_000
TIERS = (
    SimTier("premium", Slo(0, 200 * MS, 0, 100 * MS), share=0.05, objective=0.99),
    SimTier("free", Slo(1, 800 * MS, 0, 500 * MS), share=0.95, objective=0.95),
)
ROWS = short_rows(200)
Heard = list[tuple[Newcomer, Verdict, int]]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_profile(tmp_path_factory.mktemp("profile"))


@cache
def run(profile: str, **changes: object) -> tuple[PointResult, Heard]:
    """More than a tiny device can serve, first come, first served."""
    heard: Heard = []
    spec = PointSpec("", "sarathi", 60.0, 600, seed=1, profile=profile, tiers=TIERS)
    spec = dataclasses.replace(spec, **changes)  # type: ignore[arg-type]
    result = run_point(spec, ROWS, listener=lambda *said: heard.append(said))
    return result, heard


def test_off_is_as_if_there_were_no_door(profile: str) -> None:
    """Nothing is judged, and shadow changes nothing of what happens."""
    off, heard = run(profile)
    assert not heard
    assert "admission" not in off.point
    shadow, heard = run(profile, admission="shadow")
    assert len(heard) == 600
    told = dict(shadow.point)
    assert told.pop("admission")["refused"] == 0
    assert told == off.point
    assert shadow.records == off.records


def test_offered_is_refused_and_submitted_and_every_law_holds(profile: str) -> None:
    """Soft mode under a load that cannot be served: conservation, with the door's own words."""
    result, heard = run(profile, admission="soft", check_laws=True)
    refused = [record for record in result.records if record.finish_reason == "rejected"]
    assert refused
    assert len(result.records) == 600
    assert len(refused) == result.point["refused"] == result.point["admission"]["refused"]
    assert {record.refusal for record in refused} <= {"slo-unreachable", "saturated"}
    assert not any(record.met or record.output for record in refused)
    assert {record.tier for record in refused} == {"free"}
    assert Counter(verdict.action for _, verdict, _ in heard)[Action.REFUSE] == len(refused)


def test_who_would_be_refused_would_have_missed(profile: str) -> None:
    """In shadow mode the truth is known of everyone: nine in ten refusals are right, or more."""
    result, heard = run(profile, admission="shadow")
    by_id = {record.id: record for record in result.records}
    would = [by_id[who.id] for who, verdict, _ in heard if verdict.would is Action.REFUSE]
    assert len(would) > 50
    assert sum(not record.met_ttft for record in would) >= 0.9 * len(would)


def test_refusing_by_forecast_does_not_oscillate(profile: str) -> None:
    """Law L41: admissions do not come in bursts with long shut doors between.

    Under a steady overload the share refused of each fifth of the second half stays near the mean.
    """
    result, _ = run(profile, admission="soft", requests=1200, rate=75.0)
    late = [r for r in result.records[600:] if r.tier == "free"]
    fifth = len(late) // 5
    shares = [
        sum(r.finish_reason == "rejected" for r in late[i * fifth : (i + 1) * fifth]) / fifth
        for i in range(5)
    ]
    mean = sum(shares) / 5
    assert 0.05 < mean < 0.95
    assert all(abs(share - mean) < 0.35 for share in shares), shares


def test_refusing_at_the_target_keeps_a_queue_worth_its_place(profile: str) -> None:
    """Hard mode on first come, first served: most who are let in are on time, and most were not."""
    off, _ = run(profile, rate=32.0)
    hard, _ = run(profile, rate=32.0, admission="hard")
    assert hard.point["goodput"] > 2 * off.point["goodput"]


def test_an_unknown_mode_is_one_clear_error() -> None:
    """The message names what there is."""
    with pytest.raises(ValueError, match="must be one of off, shadow, soft, hard"):
        run_point(PointSpec("", "fcfs", 1.0, 1, admission="maybe"), ROWS)
