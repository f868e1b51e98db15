"""A Redis of its own for a test: on a Unix socket in a folder of its own, gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from gateway.limits.redis_store import load_script

START_TIMEOUT_S = 30
VIRTUAL_TIME = "virtual-time"


def redis_binary() -> str:
    """Return the server's program; skips the test without one, and fails it where CI is set."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        reason = "no Redis here: apt-get install redis-server"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _with_clock(clock: str) -> str:
    script, shipped = load_script(), "redis.call('TIME')"
    assert script.count(shipped) == 1
    return script.replace(shipped, clock)


def virtual_script() -> str:
    """Return the limiter's script with its clock replaced by a list that tests write.

    The script as it ships takes no time from anybody, so nothing in production can set it.
    """
    return _with_clock(f"redis.call('LRANGE', '{VIRTUAL_TIME}', 0, 1)")


def ticking_script() -> str:
    """Return the script with a clock that moves 80 ms with every call: calls have an order."""
    return _with_clock(
        f"(function() local n = redis.call('INCRBY', '{VIRTUAL_TIME}', 80000)"
        " return {math.floor(n / 1000000), n % 1000000} end)()"
    )


class RedisServer:
    """A server that can be started, killed, stopped in its tracks and started again, empty."""

    def __init__(self, *options: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tg-redis-", dir="/tmp"))
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = self._folder / "socket"
        self.url = f"unix://{self.socket}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def start(self) -> None:
        log = self._folder / "log"
        plain = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--daemonize", "no"]
        command = [redis_binary(), *plain, "--dir", str(self._folder), *self._options]
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"Redis did not start:\n{log.read_text()}")
                time.sleep(0.01)

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), protocol=2)

    def kill(self) -> None:
        """SIGKILL: nothing is said to anybody, nothing is kept."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it in its tracks: connections stay open, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def start_workers(configs: Sequence[dict[str, Any]]) -> list[subprocess.Popen[bytes]]:
    """Start a process of limit_worker.py for each of these."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[2])])
    worker = here / "limit_worker.py"
    return [
        subprocess.Popen(
            [sys.executable, worker, json.dumps(config)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        for config in configs
    ]


def results_of(workers: Sequence[subprocess.Popen[bytes]]) -> list[Any]:
    """Wait for workers and return what each has seen."""
    try:
        outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    return [json.loads(out.splitlines()[-1]) for out in outputs]
