"""Time for rules as `promtool test rules` makes it: counters by the minute, and what fires when."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_kit import OPTIONS, run

from gateway.slo_rules import RuleOptions
from gateway.slo_rules_text import rules_text
from tenants.values import TierRecord

# Name of the alert, tier, objective; empty where it has none.
Fires = tuple[str, str, str]
LABELS = ("alertname", "tiergate_tier", "tiergate_slo_objective")
ALIVE = 'tiergate_engine_up{job="tiergate",instance="g:8000"}'


@dataclass(frozen=True, slots=True)
class Scene:
    """Series with a value for each minute (None: no sample), and what fires at some minutes."""

    series: dict[str, Sequence[float | None]]
    fires: dict[int, set[Fires]]
    # Expression, minute, the one value that it has (None: no value).
    values: tuple[tuple[str, int, float | None], ...] = ()
    only: str = ".*"  # the alerts that are looked at


def counter(*parts: tuple[int, float], start: float = 0) -> list[float | None]:
    """Return a counter: for so many minutes it grows by so much a minute."""
    now = start
    made: list[float | None] = [now]
    for minutes, step in parts:
        for _ in range(minutes):
            now += step
            made.append(now)
    return made


def steady(value: float | None, minutes: int) -> list[float | None]:
    return [value] * minutes


def tier_events(
    tier: str, objective: str, asked: Sequence[float | None], bad: Sequence[float | None]
) -> dict[str, Sequence[float | None]]:
    """Return both counters of a tier."""
    labels = (
        f'job="tiergate",instance="g:8000",tiergate_tier="{tier}",'
        f'tiergate_slo_objective="{objective}"'
    )
    return {
        f"tiergate_tier_slo_requests_total{{{labels}}}": asked,
        f"tiergate_tier_slo_violations_total{{{labels}}}": bad,
    }


def tenant_events(
    tenant: str,
    asked: Sequence[float | None],
    bad: Sequence[float | None],
    tier: str = "free",
    objectives: Sequence[str] = ("all",),
) -> dict[str, Sequence[float | None]]:
    """Return both counters of a tenant."""
    made: dict[str, Sequence[float | None]] = {}
    for objective in objectives:
        labels = (
            f'job="tiergate",instance="g:8000",tiergate_tier="{tier}",'
            f'tiergate_tenant_id="{tenant}",tiergate_slo_objective="{objective}"'
        )
        made[f"tiergate_slo_requests_total{{{labels}}}"] = asked
        made[f"tiergate_slo_violations_total{{{labels}}}"] = bad
    return made


def check(
    folder: Path,
    tiers: Sequence[TierRecord],
    scenes: Iterable[Scene],
    options: RuleOptions = OPTIONS,
) -> None:
    """Let promtool play the scenes; fails with its report.

    Rules of objectives that no scene is about would only be computed in vain, and are left out.
    """
    scenes = list(scenes)
    words = " ".join(name for scene in scenes for name in scene.series)
    about = re.findall(r'tiergate_tier_slo_\w+{.*?tiergate_slo_objective="(\w+)"', words)
    groups = [
        group
        for group in yaml.safe_load(rules_text(tiers, options))["groups"]
        if not group["name"].startswith("tiergate-slo-")
        or set(group["name"].removesuffix("-period").split("-")) & set(about)
    ]
    (folder / "rules.yml").write_text(json.dumps({"groups": groups}))
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [_test(scene) for scene in scenes],
    }
    (folder / "tests.yml").write_text(json.dumps(tests))
    done = run("promtool", "test", "rules", folder / "tests.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def _test(scene: Scene) -> dict[str, Any]:
    series = dict(scene.series)
    longest = max(len(values) for values in series.values())
    series.setdefault(ALIVE, steady(1, longest))
    by = ", ".join(LABELS)
    chosen = f'alertstate="firing",alertname!="TiergateWatchdog",alertname=~"{scene.only}"'
    expression = f"group by ({by}) (ALERTS{{{chosen}}})"
    return {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": " ".join(map(_digits, values))}
            for name, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": _labels(fires), "value": 1} for fires in sorted(alerts)],
            }
            for minute, alerts in scene.fires.items()
        ]
        + [
            {
                "expr": f"round({expr} * 1e9) / 1e9",
                "eval_time": f"{minute}m",
                "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
            }
            for expr, minute, value in scene.values
        ],
    }


def _labels(fires: Fires) -> str:
    pairs = zip(LABELS, fires, strict=True)
    return "{" + ", ".join(f'{name}="{value}"' for name, value in pairs if value) + "}"


def _digits(value: float | None) -> str:
    return "_" if value is None else f"{value:.15g}"
