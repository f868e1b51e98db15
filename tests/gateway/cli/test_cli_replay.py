"""`tiergate replay` and `tiergate report` against a server that does everything wrong it can.

That server (awkward_server.py) answers by script, and only when the test lets it: what is proved
here is proved by order, never by a stopwatch.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import awkward_server as server
import pytest
from awkward_server import Awkward, awkward_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.clock import NS_PER_MS
from engine.sim.lengths import Lengths
from engine.sim.measured import UNSEEN, UNSEEN_COLUMNS, MeasuredJournal
from engine.sim.point import PointSpec, run_point, workload_of
from engine.sim.record_file import COLUMNS
from engine.sim.trace import TraceRow

ROOT = Path(__file__).parents[3]
KEYS = "premium=key-premium,free=key-free"
SCRIPT = [
    server.PLAIN, server.BUNCHED, server.REFUSED, server.TRUNCATED, server.ERROR, server.SILENT,
    server.NO_STREAM, server.NO_USAGE, server.SHORT, server.DROPPED,
]  # fmt: skip


def write_trace(path: Path, outputs: list[int], prompts: int = 40) -> Path:
    """Write a trace with these output lengths; prompts are longer row by row."""
    rows = [f"{place * 0.01:.2f},{prompts + place},{n}" for place, n in enumerate(outputs)]
    path.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]) + "\n")
    return path


def command(trace: Path, books: Awkward, count: int, *more: str) -> tuple[str, ...]:
    return (
        "replay", "--trace", str(trace), "--url", books.url, "--requests", str(count),
        "--rate", "200", "--premium-share", "0.5", *more,
    )  # fmt: skip


def read_rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def near(cell: str) -> Any:
    """A number within the microsecond that records are written to; else the cell itself."""
    try:
        return pytest.approx(float(cell), abs=1e-3)
    except ValueError:
        return cell


def test_every_way_to_fail_counts_as_offered_and_missed(tiergate: Any, tmp_path: Path) -> None:
    """One request of each kind: whole ones are judged, all others are misses with a reason."""
    trace = write_trace(tmp_path / "t.csv", SCRIPT)
    out, point = tmp_path / "measured", tmp_path / "point.json"
    with awkward_server() as books:
        done = tiergate(
            *command(trace, books, len(SCRIPT), "--keys", KEYS, "--timeout-s", "3"),
            *("--out", str(out), "--json", str(point)),
        )
    assert done.code == 0, done.err
    (path,) = (out / "records").iterdir()
    rows = {int(row["true_output_tokens"]): row for row in read_rows(path)}
    assert set(rows) == set(SCRIPT)
    ends = {n: (row["finish_reason"], int(row["output_tokens"])) for n, row in rows.items()}
    assert ends == {
        server.PLAIN: ("length", 6),
        server.BUNCHED: ("length", 12),
        server.REFUSED: ("rejected", 0),
        server.TRUNCATED: ("failed", 3),
        server.ERROR: ("failed", 3),
        server.SILENT: ("expired", 0),
        server.NO_STREAM: ("failed", 0),
        server.NO_USAGE: ("length", 5),
        server.SHORT: ("stop", 2),
        server.DROPPED: ("failed", 0),
    }
    whole = {server.PLAIN, server.BUNCHED, server.NO_USAGE, server.SHORT}
    assert {n for n, row in rows.items() if row["met"] == "1"} <= whole
    assert rows[server.REFUSED]["refusal"] == "429 rate_limit_exceeded"
    assert {row[column] for row in rows.values() for column in UNSEEN_COLUMNS} == {""}
    found = json.loads(point.read_text())
    assert found["requests"] == sum(t["offered"] for t in found["tiers"].values()) == len(SCRIPT)
    assert found["attainment"] <= 0.4
    assert (found["refused"], found["unfinished"]) == (1, 0)
    assert {found[field] for field in UNSEEN} == {None}
    measured = found["measured"]
    assert measured["outcomes"] == {
        "length": 3, "stop": 1, "rejected": 1, "failed": 4, "expired": 1,
    }  # fmt: skip
    assert measured["tokens"]["counted_by"]["text"] == 1
    assert measured["tokens"]["answers_of_another_length"] == 1
    assert "3 answers" not in done.err
    assert "1 answers were not as long as the trace's" in done.err
    assert set(measured["details"]) == {
        "429 rate_limit_exceeded", "broken off: engine", "answered without a stream",
        "no whole answer within the time limit",
        "broken off: the connection ended before it was whole",
        "the connection ended before the answer began",
    }  # fmt: skip


def test_no_key_is_ever_written(tiergate: Any, tmp_path: Path) -> None:
    """Neither to a file nor to a terminal, though the server says keys aloud."""
    trace = write_trace(tmp_path / "t.csv", [server.REFUSED, server.ERROR, server.PLAIN])
    out = tmp_path / "measured"
    with awkward_server() as books:
        done = tiergate(*command(trace, books, 3, "--keys", KEYS, "--out", str(out)))
        refused = tiergate(*command(trace, books, 3, "--keys", "premium=sesame,free=key-free"))
    assert done.code == 0, done.err
    written = done.out + done.err + refused.out + refused.err
    for path in (path for path in out.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        written += (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    assert refused.code == 2
    assert "no such key: ***" in refused.err
    for key in ("key-premium", "key-free", "sesame"):
        assert key not in written


def test_requests_are_sent_when_due_however_slow_the_server_is(
    tiergate: Any, tmp_path: Path
) -> None:
    """The server answers nobody until all are there: who waited for answers would wait for ever.

    And each came with its own tier's key, with as many tokens as the simulator's.
    """
    count = 40
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN] * count)
    point = tmp_path / "point.json"
    with awkward_server(hold=count) as books:
        done = tiergate(*command(trace, books, count, "--keys", KEYS, "--json", str(point)))
        assert done.code == 0, done.err
        assert books.most_open == count
        sent = [(one.key, len(one.body["prompt"]), one.body["max_tokens"]) for one in books.played]
    spec = PointSpec(str(trace), "fcfs", 200.0, count, 1)
    tiers = spec.tiers
    spec = PointSpec(
        str(trace), "fcfs", 200.0, count, 1,
        tiers=tuple([type(t)(t.name, t.slo, 0.5, t.objective) for t in tiers]),
    )  # fmt: skip
    wanted = [(f"key-{r.tier}", r.prompt, r.wanted) for r in run_point(spec).records]
    assert Counter(sent) == Counter(wanted)
    assert json.loads(point.read_text())["measured"]["client"]["held_back"] == 0


def test_what_the_bound_holds_back_counts_from_its_schedule(tiergate: Any, tmp_path: Path) -> None:
    """With one connection they go one by one, and each is judged from its own time, not turn."""
    count = 6
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN] * count)
    out = tmp_path / "measured"
    with awkward_server() as books:
        done = tiergate(
            *command(trace, books, count, "--keys", KEYS, "--out", str(out)),
            *("--rate", "100000", "--concurrency", "1"),
        )
        assert done.code == 0, done.err
        assert books.most_open == 1
    (path,) = (out / "records").iterdir()
    rows = read_rows(path)
    client = {row["id"]: row for row in read_rows(out / "client" / path.name)}
    for before, row in pairwise(rows):
        # It was due while the one before was still under way, and began only after that.
        assert float(row["arrival_ms"]) < float(before["finished_ms"])
        assert float(client[row["id"]]["begun_ms"]) >= float(before["finished_ms"])
        assert float(row["first_token_ms"]) > float(before["finished_ms"])
    measured = json.loads((out / "run.json").read_text())["measured"]["measured"]
    assert measured["client"]["held_back"] == count - 1
    assert "held back" in done.err


@pytest.mark.parametrize(
    ("takes_tokens", "takes_extras", "form", "pins"),
    [
        (True, True, "tokens", {"min_tokens", "ignore_eos"}),
        (True, False, "tokens", set()),
        (False, True, "text", {"min_tokens", "ignore_eos"}),
        (False, False, "text", set()),
    ],
)
def test_a_server_is_asked_as_it_can_be_asked(
    tiergate: Any, tmp_path: Path, takes_tokens: bool, takes_extras: bool, form: str, pins: set[str]
) -> None:
    """Token ids and pinned lengths where it takes them, else texts whose length is learnt first."""
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN] * 4, prompts=200)
    point = tmp_path / "p.json"
    with awkward_server(takes_tokens=takes_tokens, takes_extras=takes_extras) as books:
        done = tiergate(*command(trace, books, 4, "--keys", KEYS, "--json", str(point)))
        assert done.code == 0, done.err
        bodies = [one.body for one in books.played]
    assert {frozenset(body) & {"min_tokens", "ignore_eos"} for body in bodies} == {frozenset(pins)}
    measured = json.loads(point.read_text())["measured"]
    assert measured["prompts"] == form
    counted = measured["tokens"]
    # Three tokens for two words, and two more: learnt, so lengths are right to a token or two.
    wanted, got = counted["prompt_tokens_wanted"], counted["prompt_tokens_by_server"]
    assert abs(got - wanted) <= (0 if form == "tokens" else 2 * len(bodies))
    assert ("no token ids" in done.err) is (form == "text")


def test_a_chat_only_server_can_be_measured(tiergate: Any, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN] * 3)
    with awkward_server() as books:
        done = tiergate(
            *command(trace, books, 3, "--keys", KEYS, "--prompts", "chat", "--json", "-")
        )
        assert {one.path for one in books.played} == {"/v1/chat/completions"}
    assert done.code == 0, done.err
    assert done.json["measured"]["tokens"]["counted_by"] == {"each": 3}
    assert done.json["tokens_per_s"] > 0


REFUSALS = [
    ((), "with --keys or --keys-file"),
    (("--keys", KEYS, "--keys-file", "x"), "with --keys or --keys-file"),
    (("--keys", "premium=key-premium"), "there is none for tier 'free'"),
    (("--keys", "premium=nope,free=key-free"), "refused the key of tier 'premium' (HTTP 401"),
    (("--keys", "premium=key-premium,free=nope"), "refused the key of tier 'free' (HTTP 401"),
    (("--keys-file", "/nowhere"), "--keys-file /nowhere: No such file"),
    (("--keys", KEYS, "--url", "http://127.0.0.1:9"), "no server answers at http://127.0.0.1:9"),
    (("--keys", KEYS, "--url", "nowhere"), "--url: must look like http"),
    (("--keys", KEYS, "--rate", "0"), "rate must be above 0"),
    (("--keys", KEYS, "--trace", "/nowhere.csv"), "trace /nowhere.csv: No such file"),
    (("--keys", KEYS, "--prompts", "songs"), "--prompts: must be auto, tokens"),
    (("--keys", KEYS, "--pin", "hope"), "--pin: must be auto, both"),
    (("--keys", KEYS, "--token-ids", "5"), "--token-ids: must be FIRST:LAST"),
    (("--keys", KEYS, "--concurrency", "0"), "--concurrency: must be 1 to"),
    (("--keys", KEYS, "--timeout-s", "0"), "--timeout-s: must be above 0"),
    (("--keys", KEYS, "--label", "///"), "--label: must be a short name"),
    (("--keys", KEYS, "--scale", "0"), "scale must be above 0"),
    (("--keys", KEYS, "--max-prompt-tokens", "0"), "max prompt tokens must be at least 1"),
    (("--keys", KEYS, "--json", "/nowhere/p.json"), "/nowhere/p.json: cannot be written"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
def test_what_is_wrong_is_one_line_and_nothing_is_played(
    tiergate: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Exit code 2, one line, no file, and not one request of the run at the server."""
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN])
    out = tmp_path / "measured"
    before = set(tmp_path.iterdir())
    with awkward_server() as books:
        done = tiergate(*command(trace, books, 1, "--out", str(out), *arguments))
        assert books.played == []
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_ctrl_c_writes_what_there_is_and_says_so(tmp_path: Path) -> None:
    """Requests under way count as unfinished, those not yet due are not in it, exit code 130."""
    trace = write_trace(tmp_path / "t.csv", [server.SILENT])
    out = tmp_path / "measured"
    keys = tmp_path / "keys"
    keys.write_text(KEYS)
    with awkward_server() as books:
        arguments = command(
            trace, books, 10_000, "--keys-file", str(keys), "--out", str(out), "--json", "-"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli.main", *arguments, "--rate", "50"],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={k: v for k, v in os.environ.items() if not k.startswith("TIERGATE_")},
        )  # fmt: skip
        end = time.monotonic() + 60
        while len(books.played) < 5:
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    point = json.loads(said)
    assert point["measured"]["stopped_early"] is True
    assert point["measured"]["asked_requests"] == 10_000
    assert 5 <= point["requests"] == point["unfinished"] < 10_000
    assert point["attainment"] == 0
    run = json.loads((out / "run.json").read_text())
    assert run["requests"] == point["requests"]
    assert re.search(r"stopped early: \d+ of 10000", (out / "report.html").read_text())


def test_measured_and_simulated_stand_in_one_report(tiergate: Any, tmp_path: Path) -> None:
    """Both at the same rate, on the same requests; the page names the server and the profile."""
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN] * 8)
    simulated, measured, both = (tmp_path / name for name in ("simulated", "measured", "both"))
    with awkward_server() as books:
        done = tiergate(*command(trace, books, 8, "--keys", KEYS, "--out", str(measured)))
        assert done.code == 0, done.err
    done = tiergate(
        "compare", "--trace", str(trace), "--policies", "fcfs,sarathi", "--rates", "200",
        "--seeds", "1", "--requests", "8", "--premium-share", "0.5", "--jobs", "1",
        "--out", str(simulated),
    )  # fmt: skip
    assert done.code == 0, done.err
    done = tiergate("report", str(simulated), str(measured), "--out", str(both))
    assert done.code == 0, done.err
    page = (both / "report.html").read_text()
    for word in ("fcfs", "sarathi", "measured", books.url, "mistral-7b"):
        assert word in page
    with (both / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["policy"] for row in rows} == {"fcfs", "sarathi", "measured"}
    parts = []
    for folder in (simulated, measured):
        with (folder / "summary.csv").open(newline="") as file:
            parts += list(csv.DictReader(file))
    assert len(rows) == len(parts) == 9
    for row, part in zip(rows, parts, strict=True):
        assert {k: near(v) for k, v in row.items()} == {k: near(v) for k, v in part.items()}
    assert len(list((both / "records").iterdir())) == 3
    again = tiergate("report", str(both), "--out", str(tmp_path / "again"))
    assert again.code == 0, again.err


def test_other_workloads_are_not_laid_beside_each_other(tiergate: Any, tmp_path: Path) -> None:
    """Nor the same point twice, nor a folder that is none; each is one line."""
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN] * 4)

    def simulate_into(name: str, *more: str) -> str:
        done = tiergate(
            "compare", "--trace", str(trace), "--policies", "fcfs", "--rates", "5", "--jobs", "1",
            "--seeds", "1", "--requests", "4", "--out", str(tmp_path / name), *more,
        )  # fmt: skip
        assert done.code == 0, done.err
        return str(tmp_path / name)

    one, same = simulate_into("one"), simulate_into("same")
    scaled = simulate_into("scaled", "--scale", "0.5")
    for folders, said in [
        ((one, scaled), "are not of one workload: lengths"),
        ((one, same), "fcfs at 5 with seed 1 is in"),
        ((one, str(tmp_path)), "run.json: No such file"),
    ]:
        done = tiergate("report", *folders, "--out", str(tmp_path / "out"))
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert done.err.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", None), ("trace", "gone"), ("policies", 0), ("measured", {"it": {}})],
)
def test_a_folder_that_says_too_little_of_itself_is_one_line(
    tiergate: Any, tmp_path: Path, field: str, value: object
) -> None:
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN] * 4)
    done = tiergate(
        "compare", "--trace", str(trace), "--policies", "fcfs", "--rates", "5", "--jobs", "1",
        "--seeds", "1", "--requests", "4", "--out", str(tmp_path / "one"),
    )  # fmt: skip
    assert done.code == 0, done.err
    file = tmp_path / "one" / "run.json"
    run = json.loads(file.read_text())
    run[field] = value
    if value is None:
        del run[field]
    file.write_text(json.dumps(run))
    done = tiergate("report", str(tmp_path / "one"), "--out", str(tmp_path / "out"))
    assert (done.code, done.out) == (2, "")
    assert str(tmp_path / "one") in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


ROWS = st.lists(
    st.builds(
        TraceRow,
        num_prompt_tokens=st.integers(1, 400),
        num_output_tokens=st.integers(1, 60),
        tenant=st.sampled_from(["", "a", "b"]),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=ROWS,
    rate=st.floats(0.1, 100),
    count=st.integers(1, 30),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1.0, 0.3]),
    longest=st.sampled_from([None, 50]),
)
def test_schedule_and_verdicts_are_the_simulators(
    rows: list[TraceRow], rate: float, count: int, seed: int, scale: float, longest: int | None
) -> None:
    """What would be sent is what is simulated; and whoever sees the simulation's tokens come at

    their times judges every request as the simulation does.
    """
    spec = PointSpec(
        "",
        "sarathi",
        rate,
        count,
        seed,
        tenants=3,
        lengths=Lengths(scale, longest),
        num_kv_tokens=1600,
    )
    schedule = workload_of(spec, rows).requests
    events: dict[str, list[Any]] = {}

    def listen(core: Any) -> Any:
        finish = core.finish_step

        def finish_step(*args: Any) -> Any:
            found = finish(*args)
            for event in found:
                events.setdefault(event.request_id, []).append(event)
            return found

        core.finish_step = finish_step
        return core

    records = run_point(spec, rows, wrap=listen).records
    planned = [(r.id, r.tenant, r.tier.name, r.arrival_ns, r.num_prompt_tokens,
                r.num_output_tokens) for r in schedule]  # fmt: skip
    assert planned == [(r.id, r.tenant, r.tier, r.arrival_ns, r.prompt, r.wanted) for r in records]
    journal = MeasuredJournal([tier.name for tier in spec.tiers], schedule[-1].arrival_ns)
    for request, record in zip(schedule, records, strict=True):
        mine = events.get(request.id, [])
        stats = next((e.stats for e in mine if e.stats is not None), None)
        journal.tell(
            request,
            [event.at_ns for event in mine if event.token_id is not None],
            None if stats is None else stats.finish_reason,
            record.finished_ns or 0,
        )
    seen = (
        "met", "met_ttft", "met_tbt", "late_tokens", "worst_lateness_ns", "first_token_ns",
        "ttft_due_ns", "finished_ns", "finish_reason", "output", "wanted", "prompt",
    )  # fmt: skip
    for told, record in zip(journal.records(schedule), records, strict=True):
        if record.finish_reason != "rejected":  # the core refuses before any step
            assert {name: getattr(told, name) for name in seen} == {
                name: getattr(record, name) for name in seen
            }


def test_a_measured_record_has_the_simulators_columns(tiergate: Any, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN])
    records = tmp_path / "records.csv.gz"
    with awkward_server() as books:
        done = tiergate(
            *command(trace, books, 1, "--keys", "premium=key-premium,free=-"),
            *("--premium-share", "1", "--records", str(records)),
        )
    # The key of a tier that no request is of is not even asked about.
    assert done.code == 2
    assert "'free' is no tier; there are premium" in done.err
    with awkward_server() as books:
        done = tiergate(
            *command(trace, books, 1, "--keys", "premium=key-premium", "--premium-share", "1"),
            *("--records", str(records)),
        )
    assert done.code == 0, done.err
    (row,) = read_rows(records)
    assert tuple(row) == COLUMNS
    assert float(row["first_token_due_ms"]) > 0
    assert NS_PER_MS == 1_000_000


def test_a_second_run_sends_other_prompts_of_the_same_lengths(
    tiergate: Any, tmp_path: Path
) -> None:
    """Or the server's prefix cache would still hold those of the first."""
    trace = write_trace(tmp_path / "t.csv", [server.PLAIN] * 5)
    runs = []
    for _ in range(2):
        with awkward_server() as books:
            done = tiergate(*command(trace, books, 5, "--keys", KEYS, "--json", "-"))
            assert done.code == 0, done.err
            runs.append([tuple(one.body["prompt"]) for one in books.played])
    assert sorted(map(len, runs[0])) == sorted(map(len, runs[1]))
    beginnings = [prompt[:16] for run in runs for prompt in run]
    assert len(set(beginnings)) == 10


def test_time_runs_out_from_the_schedule_also_for_who_is_held_back(
    tiergate: Any, tmp_path: Path
) -> None:
    """One connection, and a server that is silent on it: nobody waits longer than their limit."""
    trace = write_trace(tmp_path / "t.csv", [server.SILENT] * 4)
    with awkward_server() as books:
        done = tiergate(
            *command(trace, books, 4, "--keys", KEYS, "--json", "-", "--rate", "100000"),
            *("--concurrency", "1", "--timeout-s", "1"),
        )
    assert done.code == 0, done.err
    assert done.json["measured"]["outcomes"] == {"expired": 4}
