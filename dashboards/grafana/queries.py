"""Words that the boards' queries have in common."""

from __future__ import annotations

from dashboards.grafana.board_shapes import Query

JOB = 'job=~"$job"'
TIER = 'tiergate_tier=~"$tier"'
JOBS = ("job", "job", "label_values(tiergate_engine_up, job)")
TIERS = ("tier", "tier", "label_values(tiergate_slo_threshold_seconds, tiergate_tier)")
TENANTS = ("tenant", "tenant", "label_values(tiergate_slo_requests_total, tiergate_tenant_id)")
GOOD_SHARE = ((None, "red"), (0.9, "orange"), (0.95, "yellow"), (0.99, "green"))
BUDGET = ((None, "red"), (0.0, "orange"), (0.25, "yellow"), (0.5, "green"))
BURN = ((None, "green"), (1.0, "yellow"), (3.0, "orange"), (6.0, "red"))
UP = ((None, "red"), (1, "green"))
ZERO_IS_GOOD = ((None, "green"), (1, "red"))


def rate(metric: str, labels: str = "") -> str:
    """Return how fast a counter grows."""
    chosen = f"{JOB},{labels}" if labels else JOB
    return f"rate({metric}{{{chosen}}}[$__rate_interval])"


def quantile(q: float, metric: str, by: str, labels: str = "") -> str:
    """Return a quantile of a histogram, by a label."""
    return f"histogram_quantile({q:g}, sum by (le, {by}) ({rate(metric + '_bucket', labels)}))"


def by_state(metric: str, labels: str = "") -> Query:
    """Return a gauge by its state."""
    chosen = f"{JOB},{labels}" if labels else JOB
    return Query(f"sum by (tiergate_state) ({metric}{{{chosen}}})", "{{tiergate_state}}")
