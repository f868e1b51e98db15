"""`tiergate serve --workers` as people run it: its one clear line, its signals, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis_kit import RedisServer
from tiny_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[3]
START_LIMIT_S = 120.0


def command(data: Path, *flags: str) -> list[str]:
    base = [sys.executable, "-m", "gateway.cli.main", "serve", "--data-dir", str(data)]
    return [*base, "--threads", "1", "--port", "0", *flags]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TIERGATE_")}
    return kept | more


def until(holds: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + START_LIMIT_S
    while not holds():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.05)


@contextmanager
def serving(
    data: Path, redis: RedisServer, *flags: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Start a gateway with two workers; yield its process and what its ready file says."""
    data.mkdir(exist_ok=True)
    ready, err = data / "ready.json", data / "err.txt"
    ready.unlink(missing_ok=True)
    with err.open("w") as stderr:
        process = subprocess.Popen(
            command(data, "--workers", "2", "--demo", "--ready-file", str(ready), *flags),
            cwd=ROOT, env=environment(TIERGATE_REDIS_URL=redis.url), text=True,
            stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    try:
        until(lambda: ready.exists() or process.poll() is not None, "it is ready")
        assert process.poll() is None, err.read_text()
        yield process, json.loads(ready.read_text())
    finally:
        process.kill()
        process.wait()


def ask(ready: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
    return httpx.post(
        f"{ready['url']}/v1/chat/completions",
        json=body | fields,
        headers={"authorization": f"Bearer {ready['keys']['free']}"},
        timeout=60,
    )


def test_several_workers_without_redis_are_one_clear_line(tmp_path: Path) -> None:
    """Limits that every worker counts for itself would be other limits: it does not start."""
    model = write_checkpoint(tmp_path / "tiny")
    done = subprocess.run(
        command(tmp_path / "data", "--workers", "2", "--model", str(model)),
        cwd=ROOT, env=environment(), text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "2 workers, and no Redis" in line
    assert "TIERGATE_REDIS_URL" in line
    assert "Traceback" not in done.stderr


def test_an_engine_that_cannot_start_is_one_clear_line(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """The workers that were waiting for it end with it."""
    model = write_checkpoint(tmp_path / "tiny")
    flags = ("--workers", "2", "--model", str(model), "--policy", "coin-toss")
    done = subprocess.run(
        command(tmp_path / "data", *flags), cwd=ROOT, text=True, capture_output=True,
        env=environment(TIERGATE_REDIS_URL=redis_server.url), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        line for line in done.stderr.splitlines() if "coin-toss" in line
    ]
    assert not (tmp_path / "data" / "run").exists()


@pytest.mark.slow
def test_a_parent_that_is_killed_leaves_no_process(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """SQLite, real model, kill -9 of the parent: all end; the next run is not disturbed."""
    model = write_checkpoint(tmp_path / "tiny")
    data = tmp_path / "data"
    with serving(data, redis_server, "--model", str(model)) as (process, ready):
        assert ready["pid"] == process.pid
        assert [ask(ready).status_code for _ in range(6)] == [200] * 6
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3
        process.kill()
        process.wait()
        until(lambda: not any(is_running(child) for child in family), "all have ended")
    with serving(data, redis_server, "--model", str(model)) as (process, ready):
        assert ask(ready).status_code == 200
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not any(is_running(child) for child in family)
    assert not (data / "run").exists()
    assert not (data / "ready.json").exists()
    rows = subprocess.run(
        [sys.executable, "-c", COUNT, str(data / "tiergate.db")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(rows.stdout) == 7


COUNT = (
    "import sqlite3, sys; "
    "print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM usage').fetchone()[0])"
)


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
