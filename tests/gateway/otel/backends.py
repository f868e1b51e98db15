"""Real backends of other people's, on free ports: VictoriaMetrics takes OTLP, Prometheus scrapes.

A missing one skips the test with a reason, and fails it when CI is set.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiergate-tests"
VICTORIA = CACHE / "victoria-metrics-1.112.0" / "usr" / "bin" / "victoria-metrics"
START_TIMEOUT_S = 60


def missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Backend:
    """A process with an HTTP port; leave it to end it."""

    def __init__(self, command: list[str], url: str, ready: str, folder: Path) -> None:
        self.url = url
        self._ready = ready
        self._log = folder / "log"
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder)

    def __enter__(self) -> Self:
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if httpx.get(self.url + self._ready).is_success:
                    return self
            except httpx.TransportError:
                pass
            if time.monotonic() > until or self._process.poll() is not None:
                self.__exit__()
                raise AssertionError(self._log.read_text()[-2000:])
            time.sleep(0.05)

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        self._process.wait()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the series that an instant query gives, with their values."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression})
        assert answer.is_success, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]


def victoria(folder: Path) -> Backend:
    """VictoriaMetrics; OTLP goes to `/opentelemetry`."""
    found = str(VICTORIA) if VICTORIA.exists() else None
    if found is None:
        missing("no VictoriaMetrics here: tests/install-victoria brings it")
    address = f"127.0.0.1:{free_port()}"
    flags = [
        "-opentelemetry.usePrometheusNaming",
        "-search.latencyOffset=0s",
        "-retentionPeriod=1d",
    ]
    where = [f"-storageDataPath={folder / 'data'}", f"-httpListenAddr={address}"]
    # A tenth of a small machine is enough for some hundred series.
    command = [str(found), *flags, *where, "-memory.allowedBytes=100MB"]
    return Backend(command, f"http://{address}", "/health", folder)


def prometheus(folder: Path, target: str) -> Backend:
    """Prometheus, scraping `target` (host and port) several times a second."""
    found = shutil.which("prometheus")
    if found is None:
        missing("no Prometheus here: apt-get install prometheus")
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 250ms, scrape_timeout: 250ms}\n"
        "scrape_configs:\n"
        f"  - {{job_name: tiergate, static_configs: [{{targets: ['{target}']}}]}}\n"
    )
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(found), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]  # fmt: skip
    return Backend(command, f"http://{address}", "/-/ready", folder)
