"""Prometheus, promtool, Alertmanager and a webhook for tests: real programs on free ports."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway.slo_rules import RuleOptions
from tenants.tiers import new_tier
from tenants.values import TierRecord

START_LIMIT_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "amtool": "prometheus-alertmanager",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "docker-compose": "docker-compose",
}
OPTIONS = RuleOptions()


def program(name: str) -> str:
    """Return the path of a program; skips the test without it, and fails it where CI is set."""
    found = shutil.which(name)
    if found is None:
        reason = f"no {name} here: apt-get install {PACKAGES[name]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        [program(name), *map(str, arguments)],
        text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


def a_tier(name: str, objective: str, rank: int = 0, **more: str) -> TierRecord:
    """Return a tier with an objective."""
    fields = {"rank": str(rank), "ttft_ms": "500", "tbt_ms": "100", "objective": objective}
    return new_tier(name, fields | more)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.loads(response.read())


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = START_LIMIT_S) -> Any:
    """Return what `condition` gives as soon as it is true; fails with `what` if it never is."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


@contextmanager
def _process(command: Sequence[str], folder: Path, ready: str) -> Iterator[None]:
    log = folder / "log"

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(ready, timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
        try:
            wait_until(is_ready, f"{command[0]} is ready")
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Prometheus:
    """One that runs; asked over its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an expression now; AssertionError with Prometheus' own words."""
        asked = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            answer = get_json(asked)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        result = answer["data"]["result"]
        if answer["data"]["resultType"] == "scalar":
            return [{"metric": {}, "value": result}]
        found: list[dict[str, Any]] = result
        return found

    def number(self, expression: str) -> float | None:
        """Return the one value of an expression, None where there is none."""
        result = self.query(expression)
        assert len(result) <= 1, (expression, result)
        return float(result[0]["value"][1]) if result else None

    def firing(self) -> set[tuple[str, str, str]]:
        """Return what fires: name, tier and objective of each alert."""
        return {
            (
                sample["metric"]["alertname"],
                sample["metric"].get("tiergate_tier", ""),
                sample["metric"].get("tiergate_slo_objective", ""),
            )
            for sample in self.query('ALERTS{alertstate="firing",alertname!="TiergateWatchdog"}')
        }

    def problems(self) -> list[str]:
        """Return the errors of rules that could not be evaluated."""
        groups = get_json(f"{self.url}/api/v1/rules")["data"]["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in groups
            for rule in group["rules"]
            if rule.get("lastError")
        ]


@contextmanager
def prometheus(
    folder: Path, target: str, rules: str, alertmanager: str | None = None, interval: str = "500ms"
) -> Iterator[Prometheus]:
    """Run Prometheus with one scrape job, `tiergate`, and these rules."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yml").write_text(rules)
    config: dict[str, Any] = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "tiergate", "static_configs": [{"targets": [target]}]}],
    }
    if alertmanager is not None:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    at = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"),
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={at}",
        # What was sent before Alertmanager was discovered is sent again in a minute by default.
        "--rules.alert.resend-delay=1s",
        "--log.level=warn",
    ]
    with _process(command, folder, f"http://{at}/-/ready"):
        yield Prometheus(f"http://{at}")


@contextmanager
def alertmanager(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """Run Alertmanager; yields HOST:PORT."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alertmanager.yml").write_text(json.dumps(config))
    at = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus-alertmanager"),
        "--config.file=alertmanager.yml",
        "--storage.path=data",
        f"--web.listen-address={at}",
        "--cluster.listen-address=",
        "--log.level=warn",
    ]
    with _process(command, folder, f"http://{at}/-/ready"):
        yield at


class Webhook:
    """What Alertmanager told a receiver: (receiver, status, labels) in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, str]]] = []

    def told(self, receiver: str, status: str) -> set[tuple[str, str]]:
        """Return (alert, tier) of what this receiver was told."""
        return {
            (labels["alertname"], labels.get("tiergate_tier", ""))
            for to, what, labels in list(self.calls)
            if (to, what) == (receiver, status)
        }


@contextmanager
def webhook() -> Iterator[tuple[Webhook, str]]:
    """Run a receiver of webhooks; yields it and its URL."""
    seen = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            for alert in body["alerts"]:
                seen.calls.append((body["receiver"], alert["status"], alert["labels"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_words: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield seen, f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
