"""A whole comparison, run for real on a small trace: the same folder on one core and on two."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path

import pytest

from engine.sim import comparison, record_file
from engine.sim.capacity import MedianTtft
from engine.sim.choices import parse_choices
from engine.sim.comparison import Comparison, PointError
from engine.sim.point import PointSpec, run_point
from engine.sim.tally import Tally, job_of, run_job
from engine.sim.trace import load_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short requests."""
    path = tmp_path_factory.mktemp("trace") / "small.csv"
    draw = random.Random(1)
    lines = [f"{draw.randint(20, 900)},{draw.randint(2, 60)}" for _ in range(60)]
    path.write_text("input_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    return path


def base(trace: Path, **changes: object) -> PointSpec:
    fields = {"trace": str(trace), "policy": "", "rate": 1.0, "requests": 30, "tenants": 2}
    return PointSpec(**{**fields, **changes})  # type: ignore[arg-type]


def asked(trace: Path, jobs: int, *, search: bool = False) -> Comparison:
    return Comparison(
        base=base(trace),
        choices=parse_choices("fcfs,sarathi[token_budget=64;predictor=oracle]"),
        rates=[2.0, 8.0],
        seeds=[1, 2],
        jobs=jobs,
        search=search,
        tolerance=0.4,
        version="tiergate 0",
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_cores_change_nothing_but_the_time(trace: Path, tmp_path: Path) -> None:
    """Byte for byte, records included; and every point is heard of as it ends."""
    found = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        heard: list[tuple[Tally, int, int]] = []

        def listen(tally: Tally, done: int, total: int, heard: list = heard) -> None:  # type: ignore[type-arg]
            heard.append((tally, done, total))

        comparison.compare(asked(trace, jobs), folder, load_trace(trace), listen)
        assert [(done, total) for _, done, total in heard] == [(i, 8) for i in range(1, 9)]
        found.append(files(folder))
    assert list(found[0]) == list(found[1])
    assert found[0] == found[1]
    assert "records/sarathi-token_budget=64-predictor=oracle_8_2.csv.gz" in found[0]
    run = json.loads(found[0]["run.json"])
    assert run["format"] == "tiergate.compare.v1"
    assert run["trace"]["rows"] == 60
    assert run["policies"][1]["predictor"] == "oracle"
    assert str(trace.parent) not in found[0]["run.json"].decode()


def test_records_hold_what_the_point_counted(trace: Path, tmp_path: Path) -> None:
    """Attainment counted again from the file is that of the point."""
    [choice] = parse_choices("sarathi")
    job = job_of(choice, base(trace, tenants=3), 6.0, 4)
    path = tmp_path / "records.csv.gz"
    tally = run_job(type(job)(job.label, job.spec, path))
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == record_file.COLUMNS
    assert len(rows) == 30
    for tier, fields in tally.point["tiers"].items():
        mine = [row for row in rows if row["tier"] == tier]
        assert len(mine) == fields["offered"]
        assert sum(row["met"] == "1" for row in mine) == fields["met"]
    waits = sorted(float(r["first_token_ms"]) - float(r["arrival_ms"]) for r in rows)
    assert tally.ttft_p50_ms == pytest.approx((waits[14] + waits[15]) / 2, abs=0.01)
    assert sum(h.offered for h in tally.ttft.values()) == 30
    assert set(tally.attainment_by_tenant) == {row["tenant"] for row in rows}


def test_a_tally_says_what_the_point_says(trace: Path) -> None:
    """But for the policy, which is called by its label: ablations must not share a name."""
    [choice] = parse_choices("sarathi[token_budget=64]")
    job = job_of(choice, base(trace), 2.0, 1)
    assert run_job(job).point == {**run_point(job.spec).point, "policy": choice.label}


def test_a_comparison_can_bisect_for_capacities(trace: Path, tmp_path: Path) -> None:
    report = comparison.compare(
        asked(trace, 1, search=True), tmp_path, load_trace(trace), lambda *_: None
    )
    assert [one.label for one in report.capacities] == list(report.tallies.labels)
    assert json.loads((tmp_path / "run.json").read_text())["capacity"]["method"] == "bisection"
    assert "found by bisection" in (tmp_path / "report.html").read_text()


def test_capacity_by_another_criterion_is_where_the_median_crosses_it(trace: Path) -> None:
    """Run again at the rate found: the median is below the limit, and above it one step on."""
    import dataclasses

    searched = dataclasses.replace(asked(trace, 1), criterion=MedianTtft(400.0), seeds=[1])
    found = comparison.search(searched, lambda *_: None, lowest=0.1, highest=500.0)
    for choice, one in zip(searched.choices, found, strict=True):
        assert not one.at_least
        at, beyond = (
            run_job(job_of(choice, searched.base, rate, 1)).ttft_p50_ms
            for rate in (one.rate, float(f"{one.rate * 1.4:.5g}"))
        )
        assert at < 400.0 <= beyond * 1.001


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requests": 0}, "requests must be 1 to"),
        ({"tenants": 0}, "tenants must be 1 to"),
        ({"num_kv_tokens": 3}, "kv tokens must be at least one block"),
        ({"num_host_kv_tokens": -1}, "host tokens must not be negative"),
        ({"horizon_s": 0.0}, "horizon must be above 0"),
        ({"max_model_len": 0}, "max_model_len must be at least 1"),
        ({"profile": "nope"}, "unknown profile 'nope'"),
        ({"predictor": "magic"}, "predictor 'magic'"),
        ({"arrivals": "trace"}, "arrivals trace: the trace has no"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    trace: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        comparison.check_all(base(trace, **changes), parse_choices("fcfs"), [1.0], [1])


def test_every_policy_of_a_list_is_checked_first(trace: Path) -> None:
    for text, said in (("fcfs,nope", "unknown policy 'nope'"), ("fcfs[x=1]", "no option")):
        with pytest.raises(ValueError, match=said):
            comparison.check_all(base(trace), parse_choices(text), [1.0], [1])
    for rates in ([], [1.0, -1.0], [float("nan")]):
        with pytest.raises(PointError, match="rate"):
            comparison.check_all(base(trace), parse_choices("fcfs"), rates, [1])
