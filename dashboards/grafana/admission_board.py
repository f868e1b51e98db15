"""The board of admission, of what is learnt, and of limits and bills."""

from __future__ import annotations

from dashboards.grafana.board_shapes import Board, Panel, Query, Row
from dashboards.grafana.queries import JOB, JOBS, quantile, rate

ADMISSION_BOARD = Board(
    "tiergate-admission",
    "Tiergate: admission and learning",
    "Who is let in, whether refusals were right, and how well answers' lengths are guessed.",
    (
        Panel(
            "Decisions at the door",
            (
                Query(
                    f"sum by (tiergate_outcome) ({rate('tiergate_admission_decisions_total')})",
                    "{{tiergate_outcome}}",
                ),
            ),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Refusals by forecast",
            (Query(
                f"sum by (tiergate_state) ({rate('tiergate_refusals_total')})",
                "{{tiergate_state}}",
            ),),
            "reqps",
            "Each is judged afterwards: would it have been in time?",
        ),
        Panel(
            "Refused without need",
            (Query(f"max(tiergate_refusals_false_share{{{JOB}}})", "share"),),
            "percentunit",
            most=1,
        ),
        Panel(
            "What the rules would refuse",
            (
                Query(
                    f"sum by (tiergate_state) ({rate('tiergate_refusals_would_total')})",
                    "{{tiergate_state}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Judgements checked against the truth",
            (
                Query(
                    f"sum by (tiergate_state) ({rate('tiergate_refusals_checks_total')})",
                    "{{tiergate_state}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Retry hints",
            (
                Query(
                    f"sum by (tiergate_state) ({rate('tiergate_retry_hints_total')})",
                    "{{tiergate_state}}",
                ),
                Query(
                    f"sum by (tiergate_state) ({rate('tiergate_retry_returns_total')})",
                    "in thought: {{tiergate_state}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Forecast of the first token: error",
            (
                Query(
                    "max by (tiergate_tier, tiergate_quantile)"
                    f" (tiergate_forecast_error{{{JOB}}})",
                    "{{tiergate_tier}}, quantile {{tiergate_quantile}}",
                ),
            ),
            "percentunit",
            width=12,
        ),
        Panel(
            "Forecast of the first token: within its interval",
            (
                Query(
                    f"min by (tiergate_tier) (tiergate_forecast_coverage{{{JOB}}})",
                    "{{tiergate_tier}}",
                ),
            ),
            "percentunit",
            "0.9 is meant.",
            width=12,
            most=1,
        ),
        Panel(
            "Forecast of the first token: seconds off, p90",
            (
                Query(
                    quantile(0.9, "tiergate_predictor_error_seconds", "tiergate_side"),
                    "{{tiergate_side}}",
                ),
            ),
            "s",
            "Apart for tokens that came early and late: only late ones break promises.",
            width=12,
        ),
        Panel(
            "Reservations of limits",
            (
                Query(
                    f"sum by (tiergate_state) ({rate('tiergate_limits_reservations_total')})",
                    "{{tiergate_state}}",
                ),
            ),
            "reqps",
            "Granted locally: the store of limits was away.",
            width=12,
        ),
        Row("Lengths of answers"),
        Panel(
            "Order and interval",
            (
                Query(f"max(tiergate_lengths_order_accuracy{{{JOB}}})", "pairs in order"),
                Query(f"max(tiergate_lengths_high_coverage{{{JOB}}})", "below the high guess"),
            ),
            "percentunit",
            "Of recent answers; 0.9 is meant for the high guess.",
            most=1,
        ),
        Panel(
            "Learned",
            (
                Query(f"sum({rate('tiergate_lengths_learned_total')})", "answers"),
                Query(f"sum({rate('tiergate_lengths_fits_total')})", "fits"),
                Query(f"sum({rate('tiergate_lengths_drifts_total')})", "drifts"),
                Query(f"sum({rate('tiergate_lengths_failures_total')})", "failures"),
            ),
        ),
        Panel(
            "What guesses rest on",
            (
                Query(f"max(tiergate_lengths_rows{{{JOB}}})", "answers"),
                Query(f"max(tiergate_lengths_models{{{JOB}}})", "models"),
            ),
        ),
        Row("Limits and bills"),
        Panel(
            "Refused by a limit",
            (
                Query(
                    f"sum by (tiergate_limit) ({rate('tiergate_limits_refusals_total')})",
                    "{{tiergate_limit}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Store of limits",
            (
                Query(f"min(tiergate_limits_store_up{{{JOB}}})", "up"),
                Query(f"sum(tiergate_limits_open{{{JOB}}})", "reservations"),
                Query(f"sum(tiergate_limits_owed{{{JOB}}})", "settlements owed"),
            ),
        ),
        Panel(
            "Usage records",
            (
                Query(
                    f"sum by (tiergate_state) ({rate('tiergate_usage_records_total')})",
                    "{{tiergate_state}}",
                ),
                Query(
                    f'sum(tiergate_usage_backlog{{{JOB},tiergate_state="buffered_rows"}})',
                    "waiting: buffered_rows",
                ),
                # Each worker shows what all of them have on disk.
                Query(
                    "sum(max by (job, instance) (tiergate_usage_backlog"
                    f'{{{JOB},tiergate_state="spooled_bytes"}}))',
                    "waiting: spooled_bytes",
                ),
            ),
        ),
    ),
    (JOBS,),
)  # fmt: skip
