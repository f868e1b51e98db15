"""Names of spans, of what stands on them and of what log lines carry; it draws nothing.

`gen_ai.*`, `openai.*`, `http.*`, `url.*`, `network.*` and `error.type` are those of the
OpenTelemetry conventions v1.41.0; `tiergate.*` is our own. No name here can carry a prompt, an
answer, a key or an address of a client.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway import metric_names as names

ADMIT = "tiergate.admit"
QUEUE = "tiergate.queue"
PREFILL = "tiergate.prefill"
DECODE = "tiergate.decode"
PARKED = "tiergate.parked"
SERVER = "METHOD ROUTE"
INFERENCE = "OPERATION MODEL"

SPANS: Mapping[str, str] = MappingProxyType(
    {
        SERVER: "The HTTP request, from its first byte to the last of its answer (SERVER).",
        ADMIT: "From arrival until it was let in or refused: key, body, tokens, limits, forecast.",
        QUEUE: "From there to the engine's first step for it; one for each choice.",
        INFERENCE: "The engine's work on a choice, up to its last token (CLIENT).",
        PREFILL: "From the first step to the first token at the engine.",
        DECODE: "From there to the last token at the engine.",
        PARKED: "Its context was on the host, or on its way there or back.",
    }
)

FIRST_TOKEN = "tiergate.first_token"
LAST_TOKEN = "tiergate.last_token"
FIRST_TOKEN_DUE = "tiergate.first_token_due"
PREEMPTED = "tiergate.preempted"
FAULT = "tiergate.fault"
HELD = "tiergate.held"

EVENTS: Mapping[str, str] = MappingProxyType(
    {
        FIRST_TOKEN: "The first token was handed to the socket.",
        LAST_TOKEN: "The last one was.",
        FIRST_TOKEN_DUE: "When the first was promised.",
        PREEMPTED: "Its context was dropped, to be computed again.",
        FAULT: "A step or a copy of its context failed: likewise.",
        HELD: "It ran in no step although its next token was due.",
    }
)

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_PATH, URL_SCHEME = "url.path", "url.scheme"
PROTOCOL_VERSION = "network.protocol.version"

MAX_TOKENS = "gen_ai.request.max_tokens"
CHOICE_COUNT = "gen_ai.request.choice.count"
STREAM = "gen_ai.request.stream"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
SERVICE_TIER = "openai.response.service_tier"
REQUEST_ID = "tiergate.request.id"
TIER_ASKED = "tiergate.tier.asked"
VERDICT = "tiergate.admission.verdict"
REASON = "tiergate.reason"
RETRY_AFTER_MS = "tiergate.retry_after_ms"
FORECAST_TTFT = "tiergate.forecast.ttft"
FORECAST_HIGH = "tiergate.forecast.ttft_high"
FORECAST_ON_TIME = "tiergate.forecast.on_time"
MET = "tiergate.slo.met"
LATE_TOKENS = "tiergate.late_tokens"
WORST_GAP = "tiergate.worst_gap"
PREDICTED_TOKENS = "tiergate.predicted_tokens"
PREEMPTIONS = "tiergate.preemptions"
PARKS = "tiergate.parks"
PARKED_TIME = "tiergate.parked_time"
PACED = "tiergate.paced"
STEP = "tiergate.step"
KEY = "tiergate.key.id"


ATTRIBUTES: Mapping[str, str] = MappingProxyType(
    {
        HTTP_METHOD: "The request's method.",
        HTTP_ROUTE: "The matched route.",
        HTTP_STATUS: "The answer's status; missing where nothing was answered.",
        URL_PATH: "The same as the route: routes of models have no part that a client chooses.",
        URL_SCHEME: "http or https, as the gateway was reached.",
        PROTOCOL_VERSION: "1.0 or 1.1.",
        names.ERROR_TYPE: "The error's type as the client was told, or how the engine ended it.",
        names.OPERATION: "chat, text_completion or embeddings.",
        names.PROVIDER: "tiergate.",
        names.MODEL: "The model served.",
        RESPONSE_MODEL: "The same.",
        MAX_TOKENS: "The most tokens that the answer may have.",
        CHOICE_COUNT: "Choices of the answer, where they are not one.",
        STREAM: "true for a stream, else missing.",
        RESPONSE_ID: "The answer's id, or the choice's where there are several.",
        FINISH_REASONS: "As the client was told.",
        FIRST_CHUNK: "Seconds from the request's arrival to the first token; streams only.",
        INPUT_TOKENS: "Tokens of the prompt, cached ones included.",
        OUTPUT_TOKENS: "Tokens of the answer.",
        CACHED_TOKENS: "Tokens of the prompt that were in the prefix cache.",
        SERVICE_TIER: "The served tier by its OpenAI name.",
        names.TIER: "The tier it was served in.",
        TIER_ASKED: "The tier it was entitled to.",
        names.TENANT: "The tenant's id.",
        REQUEST_ID: "x-request-id.",
        names.OUTCOME: "ok, client_disconnected or the error's type.",
        VERDICT: "What the rules of admission said: admit, refuse or downgrade.",
        REASON: "Why it was refused, or why its context was taken.",
        RETRY_AFTER_MS: "The hint given with a refusal.",
        FORECAST_TTFT: "Foretold seconds to the first token.",
        FORECAST_HIGH: "The end of that forecast's 90 % interval, seconds.",
        FORECAST_ON_TIME: "Foretold chance to be on time.",
        MET: "Whether both promises were kept; missing where that cannot be judged.",
        LATE_TOKENS: "Tokens after the first that came late at the door.",
        WORST_GAP: "The longest time between two tokens at the door, seconds.",
        PREDICTED_TOKENS: "The guess of the answer's length.",
        PREEMPTIONS: "Times that its context was dropped.",
        PARKS: "Times that it was parked.",
        PARKED_TIME: "Seconds that its context was on the host.",
        PACED: "true where early tokens are held back at the door.",
        STEP: "The engine's step.",
    }
)

# What log lines carry beside the message: their fields' names in JSON, and as OTLP attributes.
LOG_FIELDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "method": (HTTP_METHOD, "The request's method."),
        "route": (HTTP_ROUTE, "The matched route; null where none did."),
        "status": (HTTP_STATUS, "The answer's status; 0 where nothing was answered."),
        "ms": ("tiergate.duration_ms", "From the first byte to the last."),
        "request_id": (REQUEST_ID, "x-request-id."),
        "trace_id": ("trace_id", "The trace; in OTLP the record's own field."),
        "tenant": (names.TENANT, "The tenant's id."),
        "key": (KEY, "The key's id, which is not the key."),
        "id": (RESPONSE_ID, "The answer's id."),
        "operation": (names.OPERATION, "chat, text_completion or embeddings."),
        "tier": (names.TIER, "The tier it was served in."),
        "stream": (STREAM, "Whether it was a stream."),
        "prompt_tokens": (INPUT_TOKENS, "Tokens of all prompts."),
        "output_tokens": (OUTPUT_TOKENS, "Tokens of all choices."),
        "outcome": (names.OUTCOME, "ok, client_disconnected or the error's type."),
        "ttft_ms": ("tiergate.ttft_ms", "From the first byte to the first token."),
        "worst_gap_ms": ("tiergate.worst_gap_ms", "The longest time between two tokens."),
    }
)
OTHER_FIELD = "tiergate.log."  # in front of a field that is not among these
EXCEPTION_TYPE, EXCEPTION_PLACES = "exception.type", "exception.stacktrace"
LOGGER = "logger.name"
