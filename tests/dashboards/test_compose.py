"""The compose file and what it mounts: read by docker-compose, and names fit together."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_kit import ROOT, program

from gateway.settings import Settings

COMPOSE = ROOT / "docker-compose.yml"
SECRETS = ("TIERGATE_ADMIN_TOKEN", "POSTGRES_PASSWORD", "GRAFANA_ADMIN_PASSWORD")


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def read_by_compose(**secrets: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in SECRETS}
    return subprocess.run(
        [program("docker-compose"), "-f", str(COMPOSE), "config", "-q"],
        cwd=ROOT, env=kept | secrets, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


def test_docker_compose_takes_it_with_every_secret_and_not_without_one() -> None:
    secrets = {name: f"secret-{number}" for number, name in enumerate(SECRETS)}
    done = read_by_compose(**secrets)
    assert done.returncode == 0, done.stderr
    for name in SECRETS:
        refused = read_by_compose(**{k: v for k, v in secrets.items() if k != name})
        assert refused.returncode != 0
        assert f"set {name}" in refused.stderr


def test_no_secret_stands_in_a_file_and_every_port_is_this_machines_own() -> None:
    for name, service in services().items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET", key):
                assert re.match(r"\$\{\w+:\?", str(value)), (name, key)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert not str(service.get("image", "x:y")).endswith(":latest")


def test_what_is_mounted_is_there() -> None:
    for service in services().values():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).exists(), volume
    boards = yaml.safe_load(
        (ROOT / "dashboards/grafana/provisioning/dashboards/tiergate.yml").read_text()
    )
    mounted = {v.split(":")[1] for v in services()["grafana"]["volumes"]}
    assert boards["providers"][0]["options"]["path"] in mounted


def test_the_gateways_variables_are_settings() -> None:
    given = {k.removeprefix("TIERGATE_").lower() for k in services()["gateway"]["environment"]}
    assert given <= set(Settings.model_fields)


def test_addresses_name_services_and_ports_they_listen_on() -> None:
    """A scrape of nobody is the quietest of faults."""
    known = set(services())
    prometheus = yaml.safe_load((ROOT / "dashboards/prometheus/prometheus.yml").read_text())
    targets = [
        *(t for job in prometheus["scrape_configs"] for s in job["static_configs"]
          for t in s["targets"]),
        *(t for manager in prometheus["alerting"]["alertmanagers"]
          for s in manager["static_configs"] for t in s["targets"]),
    ]  # fmt: skip
    assert {t.split(":")[0] for t in targets} <= known | {"127.0.0.1"}
    source = yaml.safe_load(
        (ROOT / "dashboards/grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    pushed = services()["gateway"]["environment"]["TIERGATE_OTLP_ENDPOINT"]
    collector = yaml.safe_load((ROOT / "dashboards/otel/collector.yml").read_text())
    listens = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert pushed == f"http://collector:{listens.rpartition(':')[2]}"


@pytest.mark.parametrize("part", ["receivers", "processors", "exporters"])
def test_the_collectors_pipelines_use_what_is_configured(part: str) -> None:
    collector = yaml.safe_load((ROOT / "dashboards/otel/collector.yml").read_text())
    pipelines = collector["service"]["pipelines"]
    assert set(pipelines) == {"traces", "logs", "metrics"}
    used = {name for pipeline in pipelines.values() for name in pipeline[part]}
    assert used == set(collector[part])
    assert set(collector["service"]["extensions"]) == set(collector["extensions"])


@pytest.mark.parametrize("file", sorted((ROOT / "dashboards").rglob("*.yml")), ids=lambda f: f.name)
def test_what_no_test_runs_says_so(file: Path) -> None:
    """Grafana and the collector cannot be installed where the tests run."""
    is_run = file.parent.name in ("prometheus", "alertmanager", "openslo")
    assert ("Not executed by the tests" in file.read_text()) != is_run
