"""Every metric that leaves this process, its unit and its borders; it emits nothing.

The `gen_ai.*` names are those of the OpenTelemetry GenAI conventions v1.41.0 (status: Development);
should they move, this file and that of the spans (span_names.py) are all there is to change.
`tiergate.*` is what they have no word for. Durations are seconds. The tenant is always its internal
id, never its name, and stands on no histogram.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# attributes
TIER = "tiergate.tier"
TENANT = "tiergate.tenant.id"
OBJECTIVE = "tiergate.slo.objective"
OUTCOME = "tiergate.outcome"
TOKEN_TYPE = "gen_ai.token.type"
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
ERROR_TYPE = "error.type"
STATE = "tiergate.state"
QUANTILE = "tiergate.quantile"
LIMIT = "tiergate.limit"
SIGNAL = "tiergate.signal"  # metrics, traces, logs
SIDE = "tiergate.side"  # of a forecast: early (the token came sooner than foretold) or late
METRIC = "tiergate.metric"  # the name of a metric
OVERFLOW = "otel.metric.overflow"  # on the one series of all that came after a metric was full

# values
PROVIDER_VALUE = "tiergate"
OPERATION_CHAT = "chat"
OPERATION_COMPLETION = "text_completion"
OPERATION_EMBEDDINGS = "embeddings"
OBJECTIVE_TTFT, OBJECTIVE_TBT, OBJECTIVE_AVAILABILITY = "ttft", "tbt", "availability"
TOKENS_INPUT, TOKENS_CACHED, TOKENS_OUTPUT = "input", "cached_input", "output"
OUTCOME_OK = "ok"
OUTCOME_ADMITTED, OUTCOME_DOWNGRADED = "admitted", "downgraded"
OUTCOME_DISCONNECTED = "client_disconnected"
SIDE_EARLY, SIDE_LATE = "early", "late"
NO_TIER = "none"  # of a request whose sender is not known

# the conventions' histograms (seconds)
SERVER_DURATION = "gen_ai.server.request.duration"
SERVER_TTFT = "gen_ai.server.time_to_first_token"
SERVER_TPOT = "gen_ai.server.time_per_output_token"  # a mean per request; not the gaps

# Of the client's metrics the one that has no counterpart at a server (docs/decisions.md).
TOKEN_USAGE = "gen_ai.client.token.usage"

# our own
REQUESTS = "tiergate.requests"
TOKENS = "tiergate.tokens"
GAP = "tiergate.token.gap"  # the time between two tokens at the door
QUEUE_DURATION = "tiergate.queue.duration"
QUEUE_DEPTH = "tiergate.queue.depth"
QUEUE_PROMPT_TOKENS = "tiergate.queue.prompt_tokens"
ADMISSION_DECISIONS = "tiergate.admission.decisions"
CANCEL_DURATION = "tiergate.cancel.duration"  # from the client's leaving to the seat's being free
OPEN_ANSWERS = "tiergate.answers.open"
SLO_REQUESTS = "tiergate.slo.requests"  # per tenant
SLO_VIOLATIONS = "tiergate.slo.violations"
TIER_SLO_REQUESTS = "tiergate.tier.slo.requests"  # bounded by construction: for alerts
TIER_SLO_VIOLATIONS = "tiergate.tier.slo.violations"
SLO_GAPS = "tiergate.slo.gaps"
SLO_GAP_VIOLATIONS = "tiergate.slo.gap.violations"
SLO_THRESHOLD = "tiergate.slo.threshold"
ENGINE_UP = "tiergate.engine.up"
ENGINE_RESTARTS = "tiergate.engine.restarts"
ENGINE_REQUESTS = "tiergate.engine.requests"  # by tiergate.state: waiting, running, parked
ENGINE_PREEMPTIONS = "tiergate.engine.preemptions"
STEP_FACTOR = "tiergate.engine.step_factor"
STEP_ERROR = "tiergate.engine.step_error"  # by tiergate.quantile: 0.5, 0.99
KV_BLOCKS = "tiergate.kv.blocks"  # by tiergate.state: used, free
HOST_KV_BLOCKS = "tiergate.kv.host_blocks"  # by tiergate.state: used, free
PARKS = "tiergate.kv.parks"
COPIED_TOKENS = "tiergate.kv.copied_tokens"  # by tiergate.state: out, in
LOST_COPIES = "tiergate.kv.lost_copies"
RECOMPUTED_TOKENS = "tiergate.engine.recomputed_tokens"
COMPUTED_TOKENS = "tiergate.engine.computed_tokens"
FORECAST_ERROR = "tiergate.forecast.error"  # by tier and quantile
FORECAST_COVERAGE = "tiergate.forecast.coverage"  # by tier
REFUSALS = "tiergate.refusals"  # by tiergate.state: justified, false, unjudged
REFUSALS_FALSE_SHARE = "tiergate.refusals.false_share"
REFUSALS_WOULD = "tiergate.refusals.would"  # by tiergate.state: said, on_time, missed
LEDGER_CHECKS = "tiergate.refusals.checks"  # by tiergate.state: agreed, disagreed
RETRY_RETURNS = "tiergate.retry.returns"  # by tiergate.state: tried, admitted, on_time
RETRY_HINTS = "tiergate.retry.hints"  # by tiergate.state: given, followed, admitted, on_time
LENGTH_ORDER = "tiergate.lengths.order_accuracy"
LENGTH_COVERAGE = "tiergate.lengths.high_coverage"
LENGTH_ERROR = "tiergate.lengths.log_error"
LENGTH_ROWS = "tiergate.lengths.rows"
LENGTH_MODELS = "tiergate.lengths.models"
LENGTH_LEARNED = "tiergate.lengths.learned"
LENGTH_FITS = "tiergate.lengths.fits"
LENGTH_DRIFTS = "tiergate.lengths.drifts"
LENGTH_LEARNING = "tiergate.lengths.learning"
LENGTH_FAILURES = "tiergate.lengths.failures"
LIMITS_STORE_UP = "tiergate.limits.store_up"
LIMITS_OUTAGES = "tiergate.limits.outages"
LIMITS_RESERVATIONS = "tiergate.limits.reservations"  # granted, granted_locally, refused_away
LIMITS_REFUSALS = "tiergate.limits.refusals"  # by tiergate.limit: what was used up
LIMITS_OPEN = "tiergate.limits.open"
LIMITS_OWED = "tiergate.limits.owed"
LIMITS_ADOPTED = "tiergate.limits.adopted"
LIMITS_CHARGED = "tiergate.limits.charged"
LIMITS_LOST = "tiergate.limits.lost"
SLO_LEFT_OUT = "tiergate.slo.left_out"
LIMITS_ALERTS = "tiergate.limits.alerts"
USAGE_RECORDS = "tiergate.usage.records"  # by tiergate.state: written, spooled, refused, lost
USAGE_BACKLOG = "tiergate.usage.backlog"  # by tiergate.state: buffered rows, spooled bytes
PREDICTOR_ERROR = "tiergate.predictor.error"  # by model, objective and side
TELEMETRY_ITEMS = "tiergate.telemetry.items"  # by signal and tiergate.state: sent, failed, dropped
TELEMETRY_OVERFLOWS = "tiergate.telemetry.overflows"  # by the metric that was full

# Under these names dashboards, autoscalers and endpoint pickers made for vLLM work unchanged.
VLLM_WAITING = "vllm:num_requests_waiting"
VLLM_RUNNING = "vllm:num_requests_running"
VLLM_KV_USE = "vllm:kv_cache_usage_perc"
VLLM_CACHE = "vllm:cache_config_info"
VLLM_BLOCK_SIZE, VLLM_NUM_BLOCKS = "block_size", "num_gpu_blocks"  # its labels

# Borders in seconds. Every tier's objective is added, so that a share can be read off exactly.
DURATION_BORDERS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
TTFT_BORDERS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.75,
    1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
# Finer at the low end than the conventions': a small model's tokens are milliseconds apart.
GAP_BORDERS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
TOKEN_BORDERS = (
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
)  # fmt: skip
ERROR_BORDERS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
CANCEL_BORDERS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

# What Prometheus shows as HELP, and OTLP as the description.
DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        SERVER_DURATION: "From the first byte of a request to the last of its answer.",
        SERVER_TTFT: "From the first byte of a request to its first token at the socket.",
        SERVER_TPOT: "Mean time per token after the first, per request; choices by their own.",
        REQUESTS: "Requests of the inference routes by how they ended.",
        TOKENS: "Tokens by kind, counted at the engine.",
        GAP: "Time between two tokens of an answer, at the door.",
        QUEUE_DURATION: "From arrival to the engine's first step for a request.",
        QUEUE_DEPTH: "Requests let in that have no token yet.",
        QUEUE_PROMPT_TOKENS: "Prompt tokens of requests that have no token yet.",
        ADMISSION_DECISIONS: "Requests let in, downgraded, and refused by reason.",
        CANCEL_DURATION: "From a client's leaving to its seat in the engine being free.",
        OPEN_ANSWERS: "Answers in the making.",
        SLO_REQUESTS: "Requests that count for an objective, by tenant.",
        SLO_VIOLATIONS: "Requests that broke an objective, by tenant.",
        TIER_SLO_REQUESTS: "Requests that count for an objective, by tier.",
        TIER_SLO_VIOLATIONS: "Requests that broke an objective, by tier.",
        SLO_GAPS: "Tokens after the first, by tenant.",
        SLO_GAP_VIOLATIONS: "Tokens after the first that came late, by tenant.",
        SLO_THRESHOLD: "What a tier promises.",
        ENGINE_UP: "1 while requests can be answered.",
        ENGINE_RESTARTS: "Times another engine took over.",
        ENGINE_REQUESTS: "Requests in the engine by state.",
        ENGINE_PREEMPTIONS: "Requests that had to give up their KV blocks.",
        STEP_FACTOR: "Time of steps as learnt, over what the latency profile says of them.",
        STEP_ERROR: "How far predictions of the last 500 steps were off, as a share of their time.",
        KV_BLOCKS: "Blocks of the KV cache by state.",
        HOST_KV_BLOCKS: "Blocks for parked contexts in the host's memory, by state.",
        PARKS: "Contexts carried to the host to make room.",
        COPIED_TOKENS: "Tokens whose keys and values were carried to the host and back.",
        LOST_COPIES: "Copies that failed; their contexts were computed again.",
        COMPUTED_TOKENS: "Tokens computed, those computed again included.",
        RECOMPUTED_TOKENS: "Tokens computed a second time after a preemption or a fault.",
        FORECAST_ERROR: "Error of predicted times to first token, as a share of the true time.",
        FORECAST_COVERAGE: "Share of first tokens within their predicted interval; 0.9 is meant.",
        REFUSALS: "Refusals by forecast, by what would have become of the request.",
        REFUSALS_FALSE_SHARE: "Share of the judged refusals whose request would have been on time.",
        REFUSALS_WOULD: "Requests the rules would refuse, and what became of those let in.",
        LEDGER_CHECKS: "Admitted requests judged as if refused: does the judgement hold?",
        RETRY_RETURNS: "Refused requests, come back in thought at the hinted time.",
        RETRY_HINTS: "Retry hints, and what became of keys that came back when told.",
        LENGTH_ORDER: "Share of pairs of recent answers whose predicted lengths are in order.",
        LENGTH_COVERAGE: "Share of recent answers below their high prediction; 0.9 is meant.",
        LENGTH_ERROR: "Mean absolute error of the logarithm of recent predicted lengths.",
        LENGTH_ROWS: "Finished answers that predictions of length rest on.",
        LENGTH_MODELS: "Fitted models of answer lengths in use.",
        LENGTH_LEARNED: "Answers learned from.",
        LENGTH_FITS: "Fits of models of answer lengths that succeeded.",
        LENGTH_DRIFTS: "Changes of traffic that made predictions of length begin anew.",
        LENGTH_LEARNING: "1 while answer lengths are learned from.",
        LENGTH_FAILURES: "Times that learning from answers failed and went on.",
        LIMITS_STORE_UP: "1 while the store of limits answers.",
        LIMITS_OUTAGES: "Times the store of limits was given up.",
        LIMITS_RESERVATIONS: "Requests with limits: granted, granted while the store was away out"
        " of this worker's share, refused because it was away.",
        LIMITS_REFUSALS: "Requests refused by a limit, by the kind of limit.",
        LIMITS_OPEN: "Reservations of requests that are not over.",
        LIMITS_OWED: "Settlements that the store of limits has not confirmed.",
        LIMITS_ADOPTED: "Requests that the store heard of after it had been away.",
        LIMITS_CHARGED: "Settlements of requests that the store had lost.",
        SLO_LEFT_OUT: "Requests that count nowhere, too many of one tenant to be written down.",
        LIMITS_LOST: "Settlements that the store was never told of: it takes them in full.",
        LIMITS_ALERTS: "Budgets that reached the share to warn of.",
        USAGE_RECORDS: "Usage records by what became of them.",
        USAGE_BACKLOG: "Usage records that wait for the ledger: rows in memory, and the bytes that"
        " all workers have on disk.",
        TOKEN_USAGE: "Tokens of a request by kind, as billed.",
        PREDICTOR_ERROR: "How far the forecast of a first token was off, either way.",
        TELEMETRY_ITEMS: "Metric points, spans and log lines by what became of them.",
        TELEMETRY_OVERFLOWS: "Measurements that went to the one series of a full metric.",
        VLLM_WAITING: "Requests that wait.",
        VLLM_RUNNING: "Requests that run.",
        VLLM_KV_USE: "KV cache in use, 0 to 1.",
        VLLM_CACHE: "Geometry of the KV cache, in its labels; always 1.",
    }
)

REQUEST_UNIT, TOKEN_UNIT, BLOCK_UNIT = "{request}", "{token}", "{block}"
# What is not here has none: a unit of "1" would make `_ratio` of every gauge. Words in braces are
# annotations: Prometheus drops them.
UNITS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys((SERVER_DURATION, SERVER_TTFT, SERVER_TPOT, GAP), "s"),
        **dict.fromkeys((QUEUE_DURATION, CANCEL_DURATION, SLO_THRESHOLD, PREDICTOR_ERROR), "s"),
        **dict.fromkeys((REQUESTS, QUEUE_DEPTH, ADMISSION_DECISIONS, OPEN_ANSWERS), REQUEST_UNIT),
        **dict.fromkeys((SLO_REQUESTS, SLO_VIOLATIONS, SLO_LEFT_OUT), REQUEST_UNIT),
        **dict.fromkeys((TIER_SLO_REQUESTS, TIER_SLO_VIOLATIONS), REQUEST_UNIT),
        **dict.fromkeys((ENGINE_REQUESTS, ENGINE_PREEMPTIONS, PARKS, LOST_COPIES), REQUEST_UNIT),
        **dict.fromkeys((REFUSALS, REFUSALS_WOULD, LEDGER_CHECKS, RETRY_RETURNS), REQUEST_UNIT),
        **dict.fromkeys((LIMITS_RESERVATIONS, LIMITS_REFUSALS, LIMITS_OPEN), REQUEST_UNIT),
        **dict.fromkeys((TOKENS, TOKEN_USAGE, SLO_GAPS, SLO_GAP_VIOLATIONS), TOKEN_UNIT),
        **dict.fromkeys((QUEUE_PROMPT_TOKENS, COPIED_TOKENS), TOKEN_UNIT),
        **dict.fromkeys((RECOMPUTED_TOKENS, COMPUTED_TOKENS), TOKEN_UNIT),
        **dict.fromkeys((KV_BLOCKS, HOST_KV_BLOCKS), BLOCK_UNIT),
    }
)
