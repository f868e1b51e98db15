"""The board of tenants, by their internal ids."""

from __future__ import annotations

from dashboards.grafana.board_shapes import Board, Panel, Query
from dashboards.grafana.queries import JOB, JOBS, TENANTS, TIER, TIERS, ZERO_IS_GOOD, rate

TENANT = f'{TIER},tiergate_tenant_id=~"$tenant"'
BY_TENANT = "tiergate_tenant_id, tiergate_tier"


def of_tenants(kind: str, objective: str = "all") -> str:
    """Return what tenants' requests were in the range that is shown."""
    labels = f'{JOB},{TENANT},tiergate_slo_objective="{objective}"'
    return f"sum by ({BY_TENANT}) (increase(tiergate_slo_{kind}_total{{{labels}}}[$__range]))"


TENANT_BOARD = Board(
    "tiergate-tenants",
    "Tiergate: tenants",
    "Tenants stand here by their internal ids; `tiergate tenant list` has the names. What a tenant"
    " is told and billed comes from the ledger, not from here.",
    (
        Panel(
            "Most requests",
            (Query(f"topk(10, {of_tenants('requests')})", instant=True),),
            kind="table",
            text="In the range shown.",
        ),
        Panel(
            "Worst served",
            (
                Query(
                    f"topk(10, {of_tenants('violations')} / ({of_tenants('requests')} > 0))",
                    instant=True,
                ),
            ),
            "percentunit",
            "Share of requests that broke a promise, in the range shown.",
            "table",
        ),
        Panel(
            "Tenants that fail",
            (Query("count(tiergate:tenant_failing:requests) or vector(0)", instant=True),),
            text="With nearly all requests bad; each has an alert.",
            kind="stat",
            steps=ZERO_IS_GOOD,
        ),
        *(
            Panel(
                f"Bad share, {objective}",
                (
                    Query(
                        f"sum by ({BY_TENANT}) ("
                        + rate("tiergate_slo_violations_total", f"{TENANT},{chosen}")
                        + f") / sum by ({BY_TENANT}) ("
                        + rate("tiergate_slo_requests_total", f"{TENANT},{chosen}")
                        + ")",
                        "{{tiergate_tenant_id}} {{tiergate_tier}}",
                    ),
                ),
                "percentunit",
                most=1,
            )
            for objective, chosen in (
                (name, f'tiergate_slo_objective="{name}"')
                for name in ("ttft", "tbt", "availability")
            )
        ),
        Panel(
            "Requests",
            (
                Query(
                    f"sum by ({BY_TENANT}) ("
                    + rate("tiergate_slo_requests_total", TENANT + ',tiergate_slo_objective="all"')
                    + ")",
                    "{{tiergate_tenant_id}} {{tiergate_tier}}",
                ),
            ),
            "reqps",
            width=12,
        ),
        Panel(
            "Late tokens",
            (
                Query(
                    f"sum by ({BY_TENANT}) ({rate('tiergate_slo_gap_violations_total', TENANT)})"
                    f" / sum by ({BY_TENANT}) ({rate('tiergate_slo_gaps_total', TENANT)})",
                    "{{tiergate_tenant_id}} {{tiergate_tier}}",
                ),
            ),
            "percentunit",
            width=12,
        ),
    ),
    (JOBS, TIERS, TENANTS),
)
