"""Rules of tiers by themselves: factors, names, text, and what promtool says of them."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_kit import OPTIONS, ROOT, a_tier, run

from gateway.slo_rules import (
    LEAST_BAD,
    WINDOWS,
    Alert,
    RuleOptions,
    decimal,
    factors,
    slo_groups,
    slos_of,
)
from gateway.slo_rules_health import health_groups
from gateway.slo_rules_text import as_yaml, rules_text
from tenants.slo import Objective, target_of
from tenants.slo_windows import BURN_WINDOWS

SEEDED = [
    a_tier("premium", "0.99", ttft_ms_per_1k_prompt_tokens="250"),
    a_tier("free", "0.95", 1, ttft_ms="2000", ttft_ms_per_1k_prompt_tokens="1000",
           tbt_ms="500", tbt_mode="stream"),
]  # fmt: skip
ODD = [*SEEDED, a_tier("All.or_nothing", "1", 2), a_tier("0-cheap", "0.5", 3)]


def test_factors_of_a_p99_promise_are_the_workbooks() -> None:
    for objective in ("0.99", "0.995", "0.999", "0.9999"):
        assert factors(Fraction(objective)) == tuple(
            Fraction(str(window.classic)) for window in WINDOWS
        )


def test_a_p95_promise_pages_at_a_quarter_of_bad_requests_not_at_three_quarters() -> None:
    made = factors(Fraction("0.95"))
    assert made == (Fraction(5), Fraction("2.9"), Fraction("1.9"), Fraction(1))
    assert made[0] * Fraction("0.05") == Fraction(1, 4)


@given(st.integers(1, 9999))
def test_factors_can_be_reached_fall_with_the_window_and_end_at_one(ten_thousandths: int) -> None:
    """For any objective: an alert that cannot fire, or that a healthy tier raises, is a lie."""
    target = Fraction(ten_thousandths, 10_000)
    made = factors(target)
    assert list(made) == sorted(made, reverse=True)
    assert made[-1] == 1
    assert all(factor * (1 - target) < 1 for factor in made)
    assert made[0] * (1 - target) <= max(Fraction(1, 4), Fraction(math.sqrt(1 - target))) + (
        Fraction(1, 20)  # factors are rounded to tenths
    )


def test_a_promise_of_everything_has_no_factor_and_divides_by_nothing() -> None:
    assert factors(Fraction(1)) == (0, 0, 0, 0)
    text = rules_text([a_tier("perfect", "1")], OPTIONS)
    assert "burn_rate" not in text
    assert "vector(0)" in text
    assert not re.search(r"/ 0$", text, re.MULTILINE)


def test_names_and_labels_are_sloths() -> None:
    """For each tier and objective, or boards made for Sloth stay empty."""
    names = {f"slo:sli_error:ratio_rate{window}" for window in BURN_WINDOWS}
    names |= {
        "slo:objective:ratio",
        "slo:error_budget:ratio",
        "slo:time_period:days",
        "slo:current_burn_rate:ratio",
        "slo:period_burn_rate:ratio",
        "slo:period_error_budget_remaining:ratio",
        "sloth_slo_info",
    }
    found: dict[str, set[str]] = {}
    for group in yaml.safe_load(rules_text(SEEDED, OPTIONS))["groups"]:
        for rule in group["rules"]:
            if rule.get("record", "").startswith(("slo:", "sloth_")):
                labels = rule["labels"]
                assert labels["sloth_service"] == "tiergate"
                assert labels["sloth_id"] == f"tiergate-{labels['sloth_slo']}"
                found.setdefault(labels["sloth_slo"], set()).add(rule["record"])
                window = re.search(r"ratio_rate(\w+)$", rule["record"])
                assert labels.get("sloth_window") == (window[1] if window else None)
    assert found == {
        f"{tier}-{objective.value}": names
        for tier in ("premium", "free")
        for objective in Objective
    }


def test_every_alert_asks_for_enough_bad_requests() -> None:
    for group in slo_groups(SEEDED, OPTIONS):
        for rule in group.rules:
            if isinstance(rule, Alert):
                assert rule.expr.count(f">= {LEAST_BAD}") == rule.expr.count("\nor\n") + 1


def test_slow_groups_are_evaluated_before_prometheus_forgets_their_series() -> None:
    intervals = {group.interval for group in slo_groups(SEEDED, OPTIONS)}
    assert intervals == {"", "2m"}


def test_the_text_is_a_function_of_the_tiers_and_not_of_their_order() -> None:
    assert rules_text(SEEDED, OPTIONS) == rules_text(SEEDED[::-1], OPTIONS)


@pytest.mark.parametrize("tiers", [SEEDED, ODD], ids=["seeded", "odd"])
def test_promtool_finds_nothing_wrong(tmp_path: Path, tiers: Any) -> None:
    file = tmp_path / "tiergate.rules.yml"
    options = RuleOptions(job='a "job"\\', docs_url="https://docs.example.com/alerts")
    for chosen in (OPTIONS, options):
        file.write_text(rules_text(tiers, chosen))
        done = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", file)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{_count(file)} rules found" in done.stdout


def _count(file: Path) -> int:
    return sum(len(group["rules"]) for group in yaml.safe_load(file.read_text())["groups"])


def test_the_files_that_ship_are_those_of_the_seeded_tiers() -> None:
    shipped = ROOT / "dashboards" / "prometheus" / "tiergate.rules.yml"
    assert shipped.read_text() == rules_text(SEEDED, OPTIONS), (
        "run `tiergate slo rules --out dashboards/prometheus --force` on an empty ledger"
    )


def test_the_shipped_scrape_configuration_is_one(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    config = (ROOT / "dashboards" / "prometheus" / "prometheus.yml").read_text()
    file = tmp_path / "prometheus.yml"
    file.write_text(config.replace("/etc/prometheus/rules", str(tmp_path / "rules")))
    (tmp_path / "rules" / "tiergate.rules.yml").write_text(rules_text(SEEDED, OPTIONS))
    done = run("promtool", "check", "config", "--lint=all", "--lint-fatal", file)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = [job["job_name"] for job in yaml.safe_load(config)["scrape_configs"]]
    assert OPTIONS.job in jobs


def test_the_shipped_alertmanager_configuration_routes_by_severity() -> None:
    file = ROOT / "dashboards" / "alertmanager" / "alertmanager.yml"
    done = run("amtool", "check-config", file)
    assert done.returncode == 0, done.stdout + done.stderr
    for labels, receiver in (
        (("alertname=TiergateBurnFast", "severity=page"), "pager"),
        (("alertname=TiergateBurnSlow", "severity=ticket"), "tickets"),
        (("alertname=TiergateWatchdog", "severity=none"), "watchdog"),
    ):
        routed = run("amtool", "config", "routes", "test", f"--config.file={file}", *labels)
        assert routed.stdout.strip() == receiver
    named = set(re.findall(r"Tiergate\w+", file.read_text()))
    groups = [*slo_groups(SEEDED, OPTIONS), *health_groups(OPTIONS)]
    assert named <= {rule.alert for g in groups for rule in g.rules if isinstance(rule, Alert)}


def test_slos_come_in_the_order_of_ranks() -> None:
    assert [slo.name for slo in slos_of(SEEDED[::-1])][:2] == ["premium-all", "premium-ttft"]


@given(st.integers(1, 10**9 - 1))
def test_targets_are_written_as_they_were_typed(billionths: int) -> None:
    typed = f"0.{billionths:09d}".rstrip("0")
    assert decimal(target_of(float(typed))) == typed
    assert Fraction(decimal(1 - target_of(float(typed)))) == 1 - Fraction(typed)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
VALUES = st.recursive(
    TEXT | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT.filter(bool), VALUES, min_size=1, max_size=5))
def test_what_is_written_as_yaml_is_read_as_it_was(value: Any) -> None:
    """By a reader of other people's, whatever stands in it."""
    assert yaml.safe_load(as_yaml(value)) == value


@pytest.mark.parametrize("value", [1e-05, 1e16, 1.5e-07, -2e-09, 0.5, 7, 10**20])
def test_a_number_is_read_as_a_number(value: float) -> None:
    """Also by readers of YAML 1.1, for whom 1e-05 is a word."""
    read = yaml.safe_load(as_yaml({"at": value}))["at"]
    assert (read, type(read)) == (value, type(value))
