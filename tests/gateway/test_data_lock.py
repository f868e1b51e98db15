"""A data directory has one gateway at a time, and a dead one leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.data_lock import DataDirTaken, only_gateway

HOLD = """
import sys
from pathlib import Path
from gateway.data_lock import only_gateway
with only_gateway(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
ROOT = Path(__file__).resolve().parents[2]


def test_a_second_process_is_told_so_until_the_first_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        told = pytest.raises(DataDirTaken, match="another gateway is running on")
        with told, only_gateway(tmp_path):
            raise AssertionError("two at once")
        holder.kill()
    with only_gateway(tmp_path):
        pass


def test_it_can_be_taken_again_after_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_gateway(tmp_path):
        raise KeyError
    with only_gateway(tmp_path):
        pass
