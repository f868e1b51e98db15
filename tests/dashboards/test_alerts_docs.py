"""docs/alerts.md: every alert has its heading, and the numbers there are the code's."""

from __future__ import annotations

import re
from fractions import Fraction

from prometheus_kit import OPTIONS, ROOT, a_tier

from gateway.slo_rules import LEAST_BAD, WINDOWS, Alert, factors, slo_groups
from gateway.slo_rules_health import health_groups

TEXT = (ROOT / "docs" / "alerts.md").read_text()
TIERS = [a_tier("premium", "0.99"), a_tier("free", "0.95", 1), a_tier("perfect", "1", 2)]


def alerts() -> list[Alert]:
    groups = [*slo_groups(TIERS, OPTIONS), *health_groups(OPTIONS)]
    return [rule for group in groups for rule in group.rules if isinstance(rule, Alert)]


def test_every_alert_has_a_heading_that_says_whom_it_wakes() -> None:
    headings = re.findall(r"^### (\w+)\n\n(?:\*(\w+)\.\*)?", TEXT, re.MULTILINE)
    said = {name: severity or "none" for name, severity in headings}
    assert said == {alert.alert: alert.severity for alert in alerts()}


def test_links_within_the_page_lead_somewhere() -> None:
    headings = {h.lower() for h in re.findall(r"^### (\w+)$", TEXT, re.MULTILINE)}
    assert set(re.findall(r"\(#(\w+)\)", TEXT)) <= headings


def test_the_table_of_factors_is_what_the_code_computes() -> None:
    head, *rows = re.findall(r"^\| ((?:windows|\d+[hd] and).*) \|$", TEXT, re.MULTILINE)
    objectives = [cell.strip() for cell in head.split("|")][3:]
    assert objectives == ["0.999", "0.99", "0.95", "0.9", "0.5"]
    assert len(rows) == len(WINDOWS)
    for number, (row, window) in enumerate(zip(rows, WINDOWS, strict=True)):
        windows, severity, usual, *bent = [cell.strip() for cell in row.split("|")]
        assert (windows, severity) == (f"{window.long} and {window.short}", window.severity)
        assert float(usual) == window.classic
        assert [Fraction(cell) for cell in bent] == [
            factors(Fraction(objective))[number] for objective in objectives
        ]
    shares = re.search(r"^\| bad share of the first page .*$", TEXT, re.MULTILINE)
    assert shares is not None
    told = [float(cell) for cell in re.findall(r"([\d.]+) %", shares[0])]
    due = [100 * factors(Fraction(o))[0] * (1 - Fraction(o)) for o in objectives]
    assert all(abs(a - b) < 0.5 for a, b in zip(told, due, strict=True))


def test_the_least_number_is_the_one_that_is_told() -> None:
    assert LEAST_BAD == 10
    assert "also needs ten bad\nrequests" in TEXT
