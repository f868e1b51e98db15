"""`tiergate slo rules` and `slo openslo` as an operator runs them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from openslo_checks import check_documents
from prometheus_kit import ROOT, run

FILES = {"rules": "tiergate.rules.yml", "openslo": "tiergate.openslo.yml"}


def tiergate(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TIERGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", *arguments, "--data-dir", str(data)],
        cwd=ROOT, env=kept, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_a_fresh_ledger_gives_what_ships_and_no_file_is_overwritten(
    tmp_path: Path, what: str
) -> None:
    data, out = tmp_path / "data", tmp_path / "some" / "where"
    shipped = ROOT / "dashboards" / {"rules": "prometheus", "openslo": "openslo"}[what]
    printed = tiergate(data, "slo", what)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == (shipped / FILES[what]).read_text()
    done = tiergate(data, "slo", what, "--out", str(out))
    file = out / FILES[what]
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"written: {file}\n"
    assert file.read_text() == printed.stdout
    # Prometheus runs as another user.
    assert stat.S_IMODE(file.stat().st_mode) & 0o004
    file.write_text("mine")
    refused = tiergate(data, "slo", what, "--out", str(out))
    assert refused.returncode == 2
    assert refused.stderr == f"error: {file} is there already; --force replaces it\n"
    assert file.read_text() == "mine"
    assert tiergate(data, "slo", what, "--out", str(out), "--force").returncode == 0
    assert file.read_text() == printed.stdout
    assert [path.name for path in out.iterdir()] == [file.name]


def test_rules_follow_the_tiers_and_the_flags(tmp_path: Path) -> None:
    data = tmp_path / "data"
    fields = ("rank=2", "ttft_ms=9000", "tbt_ms=900", "objective=1")
    assert tiergate(data, "tier", "add", "Best.effort_1", *fields).returncode == 0
    flags = ("--job", "llm", "--docs-url", "https://docs.example.com/alerts")
    assert tiergate(data, "slo", "rules", "--out", str(tmp_path), *flags).returncode == 0
    file = tmp_path / FILES["rules"]
    done = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", file)
    assert done.returncode == 0, done.stdout + done.stderr
    groups = yaml.safe_load(file.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert "tiergate-slo-Best.effort_1-all" in {group["name"] for group in groups}
    assert all('job="tiergate"' not in rule["expr"] for rule in rules)
    pages = {
        rule["annotations"]["runbook_url"]
        for rule in rules
        if rule.get("alert") == "TiergateSilent"
    }
    assert pages == {"https://docs.example.com/alerts#tiergatesilent"}
    made = tiergate(data, "slo", "openslo")
    assert "tier Best.effort_1 is left out" in made.stderr
    check_documents(list(yaml.safe_load_all(made.stdout)))


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for flags in (("--out", str(tmp_path / "file" / "folder")), ("--job", "")):
        done = tiergate(tmp_path / "data", "slo", "rules", *flags)
        assert (done.returncode, done.stdout) == (2, "")
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "Traceback" not in done.stderr
