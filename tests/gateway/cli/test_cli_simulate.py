"""`tiergate simulate`, `compare` and `capacity`, run for real on a small trace made here."""

from __future__ import annotations

import csv
import gzip
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Fifty short requests, at recorded times."""
    draw, at = random.Random(1), 0.0
    lines = ["arrival_s,input_tokens,output_tokens"]
    for _ in range(50):
        at += draw.expovariate(2.0)
        lines.append(f"{at:.3f},{draw.randint(20, 900)},{draw.randint(2, 40)}")
    path = tmp_path / "small.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def point(trace: Path, *more: str) -> tuple[str, ...]:
    return ("simulate", "--trace", str(trace), "--policy", "sarathi", "--requests", "40", *more)


def test_a_point_is_shown_with_a_line_for_each_tier(tiergate: Any, trace: Path) -> None:
    done = tiergate(*point(trace, "--rate", "2"))
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("sarathi at 2 requests/s: 40 requests, seed 1, mistral-7b")
    assert [line.split()[0] for line in lines if line.strip().startswith(("premium", "free"))] == [
        "premium",
        "free",
    ]
    assert "goodput" in done.out
    assert "preemptions" in done.out


def test_json_has_the_documented_fields_and_equal_runs_are_equal(
    tiergate: Any, trace: Path
) -> None:
    done = tiergate(*point(trace, "--rate", "2", "--json", "-"))
    assert done.code == 0
    found = done.json
    assert {
        "policy", "rate", "seed", "requests", "tiers", "goodput", "tokens_per_s", "preemptions",
        "recompute_share", "swap_bytes", "unfinished",
    } <= set(found)  # fmt: skip
    assert (found["policy"], found["rate"], found["seed"]) == ("sarathi", 2.0, 1)
    assert found["requests"] == 40
    for tier in ("premium", "free"):
        fields = found["tiers"][tier]
        assert {"attainment", "offered"} <= set(fields)
        for name in ("ttft_ms", "lateness_ms", "normalised_latency_ms"):
            assert {"p50", "p95", "p99"} <= set(fields[name])
    assert sum(fields["offered"] for fields in found["tiers"].values()) == 40
    assert tiergate(*point(trace, "--rate", "2", "--json", "-")).out == done.out
    assert tiergate(*point(trace, "--rate", "2", "--seed", "2", "--json", "-")).out != done.out


def test_files_are_written_beside_the_table(tiergate: Any, trace: Path, tmp_path: Path) -> None:
    target, records = tmp_path / "point.json", tmp_path / "requests.csv.gz"
    done = tiergate(*point(trace, "--rate", "2", "--json", str(target), "--records", str(records)))
    assert done.code == 0
    assert "goodput" in done.out
    with gzip.open(records, "rt", newline="") as file:
        assert len(list(csv.DictReader(file))) == 40
    assert json.loads(target.read_text())["requests"] == 40


def test_options_tiers_arrivals_and_faults_arrive(
    tiergate: Any, trace: Path, tmp_path: Path
) -> None:
    """Three tiers of a file, recorded arrivals, half of the clients gone, the laws asserted."""
    tier = {"rank": 0, "ttft_ms": 500, "tbt_ms": 100, "objective": 0.9, "share": 1}
    names = ("gold", "silver", "bronze")
    rows = [{**tier, "name": name, "rank": rank} for rank, name in enumerate(names)]
    file = tmp_path / "tiers.json"
    file.write_text(json.dumps(rows))
    done = tiergate(
        *point(trace, "--rate", "2", "--tiers", str(file), "--arrivals", "trace"),
        *("--option", "token_budget=64", "--predictor", "oracle", "--fault", "abort=0.5"),
        *("--check-laws", "--kv-tokens", "1600", "--json", "-"),
    )
    assert done.code == 0, done.err
    assert list(done.json["tiers"]) == list(names)
    assert done.json["policy"] == "sarathi[token_budget=64]"
    assert done.json["attainment"] < 0.9
    plain = tiergate(*point(trace, "--rate", "2", "--json", "-")).json
    assert done.json["steps"] != plain["steps"]


def test_premium_share_is_the_share_of_premium(tiergate: Any, trace: Path) -> None:
    done = tiergate(*point(trace, "--rate", "2", "--premium-share", "1", "--json", "-"))
    assert done.json["tiers"]["premium"]["offered"] == 40
    assert (
        done.json["tiers"]["free"] | {"offered": 0, "attainment": None}
        == (done.json["tiers"]["free"])
    )
    shown = tiergate(*point(trace, "--rate", "2", "--premium-share", "1"))
    assert shown.code == 0, shown.err


REFUSALS = [
    (("--rate", "0"), "rate must be above 0"),
    (("--rate", "nan"), "rate must be above 0"),
    (("--rate", "fast"), "--rate"),
    ((), "Missing option '--rate'"),
    (("--rate", "1", "--requests", "0"), "requests must be 1 to"),
    (("--rate", "1", "--policy", "nope"), "unknown policy 'nope'; known: "),
    (("--rate", "1", "--policy", "sarathi["), "must be NAME"),
    (("--rate", "1", "--option", "nope=1"), "policy 'sarathi' has no option nope"),
    (("--rate", "1", "--option", "token_budget"), "must be key=value"),
    (("--rate", "1", "--profile", "nope"), "unknown profile 'nope'; known: "),
    (("--rate", "1", "--host-format", "int4"), "unknown host format 'int4'; known: raw, int8"),
    (("--rate", "1", "--fault", "late-copy=2"), "the shares of faults must be from 0 to 1"),
    (("--rate", "1", "--predictor", "magic"), "predictor 'magic'"),
    (("--rate", "1", "--sigma", "-1"), "--sigma: must be from 0 to 10"),
    (("--rate", "1", "--sigma", "1", "--predictor", "oracle"), "give one"),
    (("--rate", "1", "--premium-share", "2"), "--premium-share: must be from 0 to 1"),
    (("--rate", "1", "--arrivals", "sometimes"), "arrivals 'sometimes'"),
    (("--rate", "1", "--kv-tokens", "1"), "kv tokens must be at least one block"),
    (("--rate", "1", "--fault", "flood=1"), "--fault: 'flood' is none of abort"),
    (("--rate", "1", "--fault", "abort=2"), "from 0 to 1"),
    (("--rate", "1", "--json", "/nowhere/at/all.json"), "/nowhere/at/all.json: cannot be written"),
    (("--rate", "1", "--tiers", "/nowhere.json"), "tiers /nowhere.json: No such file"),
    (("--rate", "1", "--trace", "/nowhere.csv"), "trace /nowhere.csv: No such file"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
def test_bad_input_is_one_line_and_leaves_nothing(
    tiergate: Any, trace: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Exit code 2, the field named, no file half written."""
    records = tmp_path / "records.csv.gz"
    before = set(tmp_path.iterdir())
    done = tiergate(*point(trace, "--records", str(records), *arguments))
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("input_tokens\n5\n", "column output_tokens is missing"),
        ("input_tokens,output_tokens\n5,5\n-3,5\n", "input_tokens of row 2 must be 1 to"),
        ("input_tokens,output_tokens\n5,99999999999\n", "output_tokens of row 1 must be 1 to"),
        ("input_tokens,output_tokens\n", "no row below the header"),
    ],
)
def test_a_bad_trace_is_told_with_its_row(
    tiergate: Any, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    done = tiergate(*point(path, "--rate", "1"))
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_impossible_tiers_are_told_with_their_row(
    tiergate: Any, trace: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tiers.json"
    row = {"name": "a", "rank": 0, "ttft_ms": 1, "tbt_ms": 1, "objective": 1.5, "share": 1}
    file.write_text(json.dumps([row]))
    done = tiergate(*point(trace, "--rate", "1", "--tiers", str(file)))
    assert (done.code, done.out) == (2, "")
    assert "row 1: objective must be above 0 and at most 1" in done.err


def comparison(trace: Path, out: Path, *more: str) -> tuple[str, ...]:
    return (
        *("compare", "--trace", str(trace), "--policies", "fcfs,sarathi[token_budget=64]"),
        *("--rates", "2:6:4", "--seeds", "2", "--requests", "30", "--out", str(out), *more),
    )


def test_a_comparison_on_all_cores_writes_its_folder(trace: Path, tmp_path: Path) -> None:
    """As an operator would start it: a process of its own, with workers of its own."""
    out = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", *comparison(trace, out, "--jobs", "2")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"written: {out}/report.html\n"
    assert "sarathi[token_budget=64]" in done.stdout
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "intervals.csv",
        "plots",
        "points.jsonl",
        "records",
        "report.html",
        "run.json",
        "summary.csv",
    ]
    assert len(list((out / "records").iterdir())) == 8
    with (out / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 3
    assert {row["rate"] for row in rows} == {"2", "6"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_comparison_refuses_to_write_over_things(
    tiergate: Any, trace: Path, tmp_path: Path
) -> None:
    """Before it runs anything; an earlier comparison is replaced when that is asked for."""
    out = tmp_path / "report"
    short = ("--jobs", "1", "--rates", "2", "--seeds", "1", "--requests", "5")
    assert tiergate(*comparison(trace, out, *short)).code == 0
    done = tiergate(*comparison(trace, out, *short))
    assert (done.code, done.out) == (2, "")
    assert "holds an earlier run" in done.err
    assert tiergate(*comparison(trace, out, *short, "--replace")).code == 0
    (tmp_path / "taken").write_text("")
    done = tiergate(*comparison(trace, tmp_path / "taken", *short))
    assert (done.code, "there is a file of that name" in done.err) == (2, True)


def test_rates_that_do_not_fit_beside_each_other_stand_below(
    tiergate: Any, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut off in a narrow terminal."""
    from gateway.cli import sim_output

    monkeypatch.setattr(sim_output, "WIDTH_IN_A_PIPE", 62)
    short = ("--jobs", "1", "--rates", "2,3,4,5", "--seeds", "1", "--requests", "5")
    done = tiergate(*comparison(trace, tmp_path / "report", *short))
    heads = [line.split() for line in done.out.splitlines() if "in time, %" in line]
    assert [head[3:] for head in heads] == [["2"], ["3"], ["4"], ["5", "capacity"]]
    assert "…" not in done.out


def is_at_work(worker: psutil.Process) -> bool:
    return worker.cpu_times().user > 0.5


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_comparison_that_is_stopped_leaves_nothing(
    trace: Path, tmp_path: Path, sign: signal.Signals, code: int
) -> None:
    """Neither a folder nor a worker, and no traceback."""
    out = tmp_path / "report"
    long = ("--jobs", "2", "--requests", "20000", "--rates", "1")
    command = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", *comparison(trace, out, *long)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers: list[psutil.Process] = []
    # Two and the tracker of their resources; one that has not read its orders yet would complain.
    while len(workers) < 3 or not all(is_at_work(worker) for worker in workers[1:]):
        assert command.poll() is None, command.communicate()
        workers = psutil.Process(command.pid).children(recursive=True)
        workers.sort(key=lambda worker: "resource_tracker" not in " ".join(worker.cmdline()))
    command.send_signal(sign)
    said, complained = command.communicate(timeout=120)
    assert (command.returncode, said, complained) == (code, "", "")
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert [path.name for path in tmp_path.iterdir()] == ["small.csv"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rates", "0"), "--rates: '0' must be a rate above 0"),
        (("--rates", "1:2"), "--rates: '1:2' must be"),
        (("--rates", "2:1:0.5"), "holds no rate"),
        (("--rates", "1:1000000:0.001"), "must be"),
        (("--rates", "1:9000:1"), "more than 1000"),
        (("--seeds", "0"), "--seeds: there must be 1 to 1000"),
        (("--seeds", "a,b"), "--seeds: must be a number or a list"),
        (("--policies", "fcfs,fcfs"), "is there twice"),
        (("--policies", "fcfs,nope"), "unknown policy 'nope'"),
        (("--criterion", "p99"), "criterion 'p99': must be slo"),
        (("--jobs", "0"), "jobs must be 1 to"),
        (("--tolerance", "0"), "--tolerance: must be from"),
    ],
)
def test_a_comparison_that_cannot_be_is_one_line(
    tiergate: Any, trace: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "report"
    done = tiergate(*comparison(trace, out, *arguments))
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert [path for path in tmp_path.iterdir() if "report" in path.name] == []


def test_capacity_is_told_with_its_interval(tiergate: Any, trace: Path, tmp_path: Path) -> None:
    """As a table, and as JSON whose capacity is one that `simulate` confirms."""
    asked = (
        *("capacity", "--trace", str(trace), "--policy", "fcfs,sarathi", "--requests", "30"),
        *("--seeds", "1,2", "--criterion", "ttft-p50:300", "--tolerance", "0.3", "--jobs", "1"),
    )
    target = tmp_path / "capacity.json"
    done = tiergate(*asked, "--json", str(target))
    assert done.code == 0, done.err
    assert "median TTFT below 300 ms" in done.out
    found = json.loads(target.read_text())
    assert found["format"] == "tiergate.capacity.v1"
    assert [one["policy"] for one in found["policies"]] == ["fcfs", "sarathi"]
    for one in found["policies"]:
        assert one["low"] <= one["mean"] <= one["high"]
        assert set(one["by_seed"]) == {"1", "2"}
        assert 0.01 < one["capacity"] < 1000
    assert tiergate(*asked, "--json", "-").json == found


def test_capacity_refuses_a_range_that_is_none(tiergate: Any, trace: Path) -> None:
    done = tiergate(
        "capacity", "--trace", str(trace), "--policy", "fcfs", "--lowest", "2", "--start", "1"
    )
    assert (done.code, done.out) == (2, "")
    assert "--lowest, --start, --highest" in done.err


def test_the_simulator_needs_no_torch(trace: Path) -> None:
    """It runs where the muscle is not installed."""
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from gateway.cli.main import run\n"
        f"sys.exit(run({list(point(trace, '--rate', '2', '--json', '-'))!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"] == 40
