"""`tiergate slo verify` of a report whose tenant has been given to another organisation since."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NOTE = "the organisation is 'default' in the file, and 'payer' in the ledger today"


def test_a_tenant_that_has_moved_is_told_and_its_report_is_right(
    tiergate: Any, home: Path, tmp_path: Path
) -> None:
    """In text on stderr, and in the result as JSON; the exit code is that of a report that fits."""
    file = tmp_path / "report.html"
    for command in (
        ("tenant", "add", "acme", "--tier", "premium"),
        ("org", "add", "payer"),
        ("slo", "report", "--tenant", "acme", "--out", str(file)),
        ("tenant", "set", "acme", "--org", "payer"),
    ):
        done = tiergate(*command)
        assert done.code == 0, done.err
    told = []
    for form in ((), ("--json",)):
        # As a process of its own: pytest has handlers for what is logged, a command has none.
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli.main", "slo", "verify", str(file), *form],
            env={**os.environ, "TIERGATE_DATA_DIR": str(home)},
            text=True, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert done.stderr.startswith(f"{file}: {NOTE}")
        assert done.stderr.count("\n") == 1
        told.append(done.stdout)
    assert "0 requests of acme" in told[0]
    result = json.loads(told[1])
    assert result["verified"] is True
    (note,) = result["report"]["notes"]
    assert note.startswith(NOTE)
