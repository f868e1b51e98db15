"""The first board: what was promised to each tier, and what was kept."""

from __future__ import annotations

from dashboards.grafana.board_shapes import Board, Panel, Query, Row
from dashboards.grafana.queries import (
    BUDGET,
    BURN,
    GOOD_SHARE,
    JOB,
    JOBS,
    TIER,
    TIERS,
    quantile,
    rate,
)

OVERVIEW = Board(
    "tiergate-slo",
    "Tiergate: promises",
    "What was promised to each tier, and what was kept. The numbers come from the recording rules.",
    (
        Panel(
            "Kept, last 30 days",
            (
                Query(
                    f'1 - slo:sli_error:ratio_rate30d{{{TIER},tiergate_slo_objective="all"}}',
                    "{{tiergate_tier}}",
                    instant=True,
                ),
            ),
            "percentunit",
            "Share of the requests that kept all promises.",
            "stat",
            steps=GOOD_SHARE,
            height=5,
            most=1,
        ),
        Panel(
            "Budget left, 30 days",
            (
                Query(
                    f"slo:period_error_budget_remaining:ratio{{{TIER}}}",
                    "{{sloth_slo}}",
                    instant=True,
                ),
            ),
            "percentunit",
            "Below zero more went wrong than the objective allows.",
            "bargauge",
            width=8,
            height=5,
            least=None,
            most=1,
            steps=BUDGET,
        ),
        Panel(
            "Alerts",
            (
                Query(
                    "sort_desc(count by (alertname, severity, tiergate_tier)"
                    ' (ALERTS{alertname=~"Tiergate.*",alertstate="firing"}))',
                    instant=True,
                ),
            ),
            text="TiergateWatchdog is always on.",
            kind="table",
            height=5,
        ),
        Panel(
            "Burn, 5 minutes",
            (Query(f"slo:current_burn_rate:ratio{{{TIER}}}", "{{sloth_slo}}"),),
            text="1 spends the budget in exactly 30 days. It cannot be above 1 / (1 - objective).",
            width=12,
            steps=BURN,
        ),
        Panel(
            "Bad share, 1 hour",
            (Query(f"slo:sli_error:ratio_rate1h{{{TIER}}}", "{{sloth_slo}}"),),
            "percentunit",
            width=12,
        ),
        Row("Time to the first token"),
        *(
            Panel(
                f"First token, p{round(q * 100)}",
                (
                    Query(
                        quantile(
                            q, "gen_ai_server_time_to_first_token_seconds", "tiergate_tier", TIER
                        ),
                        "{{tiergate_tier}}",
                    ),
                    Query(
                        f"max by (tiergate_tier) (tiergate_slo_threshold_seconds{{{JOB},{TIER},"
                        'tiergate_slo_objective="ttft"})',
                        "{{tiergate_tier}} promise",
                    ),
                ),
                "s",
                "Read off a histogram; the promise without its part for long prompts.",
            )
            for q in (0.5, 0.95, 0.99)
        ),
        Row("Time between tokens"),
        Panel(
            "Gap between tokens, p99",
            (
                Query(
                    quantile(0.99, "tiergate_token_gap_seconds", "tiergate_tier", TIER),
                    "{{tiergate_tier}}",
                ),
                Query(
                    f"max by (tiergate_tier) (tiergate_slo_threshold_seconds{{{JOB},{TIER},"
                    'tiergate_slo_objective="tbt"})',
                    "{{tiergate_tier}} promise",
                ),
            ),
            "s",
        ),
        Panel(
            "Late tokens",
            (
                Query(
                    f"sum by (tiergate_tier) ({rate('tiergate_slo_gap_violations_total', TIER)})"
                    f" / sum by (tiergate_tier) ({rate('tiergate_slo_gaps_total', TIER)})",
                    "{{tiergate_tier}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Whole answers, p95",
            (
                Query(
                    quantile(0.95, "gen_ai_server_request_duration_seconds", "tiergate_tier", TIER),
                    "{{tiergate_tier}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Mean time per token, p95",
            (
                Query(
                    quantile(
                        0.95, "gen_ai_server_time_per_output_token_seconds", "tiergate_tier", TIER
                    ),
                    "{{tiergate_tier}}",
                ),
            ),
            "s",
            "A mean for each request: it hides pauses. The promise is about gaps.",
            width=12,
        ),
        Panel(
            "Length of answers, p95",
            (
                Query(
                    quantile(
                        0.95,
                        "gen_ai_client_token_usage",
                        "tiergate_tier",
                        TIER + ',gen_ai_token_type="output"',
                    ),
                    "{{tiergate_tier}}",
                ),
            ),
            "short",
            "In tokens.",
            width=12,
        ),
        Row("Traffic"),
        Panel(
            "Requests by tier",
            (
                Query(
                    f"sum by (tiergate_tier) ({rate('tiergate_requests_total', TIER)})",
                    "{{tiergate_tier}}",
                ),
            ),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Requests by outcome",
            (
                Query(
                    f"sum by (tiergate_outcome) ({rate('tiergate_requests_total', TIER)})",
                    "{{tiergate_outcome}}",
                ),
            ),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Tokens",
            (
                Query(
                    f"sum by (gen_ai_token_type) ({rate('tiergate_tokens_total', TIER)})",
                    "{{gen_ai_token_type}}",
                ),
            ),
            "short",
            "Prompt tokens, those found in the cache, and tokens of answers, each second.",
        ),
    ),
    (JOBS, TIERS),
)
