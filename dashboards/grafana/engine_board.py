"""The board of the engine and its scheduler."""

from __future__ import annotations

from dashboards.grafana.board_shapes import Board, Panel, Query, Row
from dashboards.grafana.queries import JOB, JOBS, UP, ZERO_IS_GOOD, by_state, quantile, rate

ENGINE_BOARD = Board(
    "tiergate-engine",
    "Tiergate: engine and scheduler",
    "What the engine has in hand, what its memory holds, and what its steps cost.",
    (
        Panel(
            "Engine",
            (Query(f"max by (instance) (tiergate_engine_up{{{JOB}}})", "{{instance}}", True),),
            kind="stat",
            steps=UP,
            width=6,
            height=5,
        ),
        Panel(
            "Engines started again, 1 day",
            (
                Query(
                    "max by (instance) (increase(tiergate_engine_restarts_total"
                    f"{{{JOB}}}[1d]))",
                    "{{instance}}",
                    True,
                ),
            ),
            kind="stat",
            steps=ZERO_IS_GOOD,
            width=6,
            height=5,
        ),
        Panel(
            "KV cache in use",
            (Query(f'{{__name__="vllm:kv_cache_usage_perc",{JOB}}}', "{{instance}}", True),),
            "percentunit",
            kind="gauge",
            most=1,
            width=6,
            height=5,
        ),
        Panel(
            "Answers in the making",
            (Query(f"sum by (instance) (tiergate_answers_open{{{JOB}}})", "{{instance}}", True),),
            kind="stat",
            width=6,
            height=5,
        ),
        Row("Work"),
        Panel("Requests in the engine", (by_state("tiergate_engine_requests"),), stacked=True),
        Panel(
            "Requests without a token yet",
            (
                Query(
                    f"sum by (tiergate_tier) (tiergate_queue_depth{{{JOB}}})", "{{tiergate_tier}}"
                ),
            ),
        ),
        Panel(
            "Prompt tokens that wait",
            (Query(f"sum(tiergate_queue_prompt_tokens{{{JOB}}})", "tokens"),),
        ),
        Panel(
            "Waiting for the first step, p95",
            (
                Query(
                    quantile(0.95, "tiergate_queue_duration_seconds", "tiergate_tier"),
                    "{{tiergate_tier}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Tokens computed",
            (
                Query(f"sum({rate('tiergate_engine_computed_tokens_total')})", "computed"),
                Query(f"sum({rate('tiergate_engine_recomputed_tokens_total')})", "a second time"),
            ),
            text="Each second.",
        ),
        Panel(
            "A seat free after its client left, p95",
            (
                Query(
                    "histogram_quantile(0.95, sum by (le) ("
                    + rate("tiergate_cancel_duration_seconds_bucket")
                    + "))",
                    "p95",
                ),
            ),
            "s",
        ),
        Row("Memory"),
        Panel("KV blocks", (by_state("tiergate_kv_blocks"),), stacked=True),
        Panel("KV blocks in the host's memory", (by_state("tiergate_kv_host_blocks"),),
              stacked=True),
        Panel(
            "Moved and given up",
            (
                Query(f"sum({rate('tiergate_kv_parks_total')})", "contexts parked"),
                Query(f"sum({rate('tiergate_engine_preemptions_total')})", "preemptions"),
                Query(f"sum({rate('tiergate_kv_lost_copies_total')})", "copies lost"),
            ),
        ),
        Panel(
            "Tokens copied",
            (
                Query(
                    f"sum by (tiergate_state) ({rate('tiergate_kv_copied_tokens_total')})",
                    "{{tiergate_state}}",
                ),
            ),
            width=12,
        ),
        Panel(
            "Is the latency model right?",
            (
                Query(
                    f"max by (tiergate_quantile) (tiergate_engine_step_error{{{JOB}}})",
                    "error, quantile {{tiergate_quantile}}",
                ),
                Query(f"max(tiergate_engine_step_factor{{{JOB}}})", "learnt over profile"),
            ),
            text="Errors are shares of a step's time; the factor is 1 where the profile is right.",
            width=12,
        ),
    ),
    (JOBS,),
)  # fmt: skip
