"""`tiergate replay` against `tiergate serve`, as processes: what is measured is what is billed."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_serve import ROOT, START_LIMIT_S, environment, serving
from tiny_checkpoint import write_checkpoint

COUNT = 24


def tiergate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", *arguments], cwd=ROOT, env=environment(),
        text=True, capture_output=True, timeout=START_LIMIT_S, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_what_a_real_gateway_does_is_measured_as_it_bills_it(tmp_path: Path) -> None:
    """Every answer is as long as the trace says, in its own tier, token for token as billed.

    And the folder lies beside a simulation of the same workload in one report.
    """
    trace = tmp_path / "lengths.csv"
    rows = [f"{10 + 7 * n},{1 + 5 * (n % 9)}" for n in range(COUNT)]
    trace.write_text("input_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    workload = (
        "--trace", str(trace), "--requests", str(COUNT), "--premium-share", "0.5",
        "--max-prompt-tokens", "120",
    )  # fmt: skip
    data, measured = tmp_path / "data", tmp_path / "measured"
    with serving(data, "--demo", "--model", str(write_checkpoint(tmp_path / "tiny"))) as gateway:
        done = tiergate(
            "replay", *workload, "--url", gateway.ready["url"], "--rate", "20",
            "--keys-file", str(data / "ready.json"), "--token-ids", "3:250", "--label", "tiny",
            "--out", str(measured), "--json", "-",
        )  # fmt: skip
        gateway.process.terminate()
        gateway.process.wait(60)
    assert done.returncode == 0, done.stderr
    point = json.loads(done.stdout)
    assert point["measured"]["outcomes"] == {"length": COUNT}
    assert point["measured"]["served_tiers"] == {"premium": "premium", "free": "free"}
    tokens = point["measured"]["tokens"]
    assert tokens["answers_of_another_length"] == 0
    assert tokens["prompt_tokens_by_server"] == tokens["prompt_tokens_wanted"]
    (path,) = (measured / "records").iterdir()
    with gzip.open(path, "rt", newline="") as file:
        records = list(csv.DictReader(file))
    for row in records:
        assert row["output_tokens"] == row["true_output_tokens"]
        times = [float(row[c]) for c in ("arrival_ms", "first_token_ms", "finished_ms")]
        assert times == sorted(times)
    with sqlite3.connect(data / "tiergate.db") as ledger:
        billed = ledger.execute("SELECT prompt_tokens, output_tokens FROM usage").fetchall()
    ledger.close()
    wanted = Counter((int(r["prompt_tokens"]), int(r["output_tokens"])) for r in records)
    trial = (16, 4)  # the trial's own few requests are billed too
    got = Counter(billed)
    assert got[trial] >= 2
    assert got - Counter({trial: got[trial]}) == wanted
    simulated, both = tmp_path / "simulated", tmp_path / "both"
    done = tiergate(
        "compare", *workload, "--policies", "sarathi", "--rates", "20", "--seeds", "1",
        "--profile", "builtin-cpu", "--jobs", "1", "--out", str(simulated),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = tiergate("report", str(simulated), str(measured), "--out", str(both))
    assert done.returncode == 0, done.stderr
    with (both / "summary.csv").open(newline="") as file:
        assert {row["policy"] for row in csv.DictReader(file)} == {"sarathi", "tiny (measured)"}
