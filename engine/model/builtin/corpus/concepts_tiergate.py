"""Knows the facts of Tiergate, its rooms, tiers and scheduling policies, as text."""

from __future__ import annotations

from engine.model.builtin.corpus.concepts import Concept

GATEWAY: tuple[Concept, ...] = (
    Concept(
        ("Tiergate",),
        "Tiergate is a gateway for language models that serves many tenants and keeps their SLOs.",
        "It matters because paying users get a fast answer even when the machine is busy.",
        "It has its own scheduler and its own engine, and it speaks the usual chat API.",
    ),
    Concept(
        ("the gateway", "a gateway", "an LLM gateway"),
        "The gateway is the door of Tiergate that speaks HTTP and knows who asks.",
        "It matters because keys, limits and bills are handled in one place.",
        "It checks the key, counts the tokens, admits the request and streams the answer.",
    ),
    Concept(
        ("the engine", "the Tiergate engine"),
        "The engine is the part of Tiergate that computes tokens with the model.",
        "It matters because all waiting and all speed come from its steps.",
        "It runs as a child process, so that the gateway stays quick.",
    ),
    Concept(
        ("the core", "the engine core"),
        "The core is the mind of Tiergate that decides which requests run in each step.",
        "It matters because good decisions keep the promises of all tiers.",
        "It is plain Python without torch, threads or a clock of its own.",
    ),
    Concept(
        ("the simulator", "the sim"),
        "The simulator runs the real scheduler with a simulated model and a simulated clock.",
        "It is useful because an hour of traffic can be tested in seconds.",
        "Equal seeds give equal results.",
    ),
    Concept(
        ("a tier", "tier", "tiers"),
        "A tier is a class of service with its own promises, limits and price.",
        "It matters because not every request is equally urgent.",
        "Tiergate starts with two tiers, premium and free, and more can be added.",
    ),
    Concept(
        ("premium", "the premium tier"),
        "Premium is the tier that is served first and has the tightest SLO.",
        "It matters because its users pay for a fast and steady answer.",
        "Its first token is due after about 500 ms and its tokens at most 100 ms apart.",
    ),
    Concept(
        ("free", "the free tier"),
        "Free is the tier with relaxed promises for users who do not pay.",
        "It is useful because it fills the machine when premium users need little.",
        "Its first token is due after about 2 seconds and its tokens at most 500 ms apart.",
    ),
    Concept(
        ("a tenant", "tenant", "tenants"),
        "A tenant is a customer or team that shares the service with others.",
        "It matters because one tenant must never harm or see another.",
        "Every tenant has its own keys, limits and usage records.",
    ),
    Concept(
        ("multi-tenancy", "multi-tenant"),
        "Multi-tenancy means that many customers share one system without disturbing each other.",
        "It matters because sharing makes expensive GPUs affordable.",
        "It needs isolation, fair limits and separate bills.",
    ),
    Concept(
        ("an API key", "API key", "API keys"),
        "An API key is a secret text that tells the gateway which tenant sends a request.",
        "It matters because limits and bills depend on who asks.",
        "Only a hash of the key is stored, so keep your key safe.",
    ),
    Concept(
        ("a rate limit", "rate limits", "rate limiting"),
        "A rate limit is the largest number of requests or tokens allowed per minute.",
        "It matters because one client could otherwise take the whole machine.",
        "A request above the limit gets the status 429 and a hint when to retry.",
    ),
    Concept(
        ("RPM",),
        "RPM is the number of requests per minute.",
        "It is useful as a simple limit for each tenant.",
        "A second limit, TPM, counts the tokens.",
        "requests per minute",
    ),
    Concept(
        ("TPM",),
        "TPM is the number of tokens per minute.",
        "It is useful because long requests cost more than short ones.",
        "A second limit, RPM, counts the requests.",
        "tokens per minute",
    ),
    Concept(
        ("admission control", "admission"),
        "Admission control decides at the door whether a request may enter.",
        "It matters because a request that cannot meet its SLO only delays the others.",
        "A refused request gets an honest reason and a hint when to try again.",
    ),
    Concept(
        ("metering",),
        "Metering records how many tokens each tenant has used.",
        "It matters because bills and quotas must be right.",
        "Usage is written once for every request, even when the client has left.",
    ),
    Concept(
        ("a quota", "quota"),
        "A quota is an amount of tokens that a tenant may use in a period.",
        "It is useful because it bounds the cost of a tenant.",
        "When it is used up, further requests are refused.",
    ),
    Concept(
        ("streaming",),
        "Streaming sends every token to the client as soon as it is ready.",
        "It matters because the user can read the beginning while the rest is computed.",
        "Tiergate streams with server-sent events.",
    ),
    Concept(
        ("SSE", "server-sent events"),
        "SSE is a simple way to send a stream of events over one HTTP response.",
        "It is useful because every browser and every HTTP client can read it.",
        "Each event is a line that starts with the word data.",
        "server-sent events",
    ),
    Concept(
        ("pacing", "the pacer"),
        "Pacing releases tokens to the client at an even speed.",
        "It is useful because early tokens become a bank for later delays.",
        "The user sees a steady stream although the request may be parked.",
    ),
    Concept(
        ("the dashboard", "a dashboard"),
        "The dashboard is a set of pages that show tenants, tiers and live figures.",
        "It is useful because an operator sees problems before the users call.",
        "It shows queue length, latency and attainment.",
    ),
    Concept(
        ("telemetry", "OpenTelemetry"),
        "Telemetry is the collection of metrics and traces from a running system.",
        "It matters because nobody can repair what nobody can see.",
        "Tiergate uses OpenTelemetry.",
    ),
    Concept(
        ("the status 429", "HTTP 429", "error 429"),
        "The status 429 means that too many requests were sent.",
        "It matters because the client must slow down.",
        "Wait for the time in the Retry-After header and try again.",
    ),
    Concept(
        ("the status 503", "HTTP 503", "error 503"),
        "The status 503 means that the service is not able to take the request now.",
        "It is useful because a quick refusal is better than a late answer.",
        "Wait a moment and try again.",
    ),
    Concept(
        ("the status 401", "HTTP 401", "error 401"),
        "The status 401 means that the API key is missing or wrong.",
        "It matters because only known tenants may use the service.",
        "Check the Authorization header of your request.",
    ),
)

POLICIES: tuple[Concept, ...] = (
    Concept(
        ("a scheduler", "the scheduler", "scheduling"),
        "A scheduler decides which requests are computed in the next step.",
        "It matters because the machine is too small to serve everybody at once.",
        "It looks at deadlines, memory and the tiers of the requests.",
    ),
    Concept(
        ("SLAI",),
        "SLAI is a scheduler that delays decodes which are not urgent to serve prompts sooner.",
        "It matters because the first token comes much earlier without breaking the token pace.",
        "Each decode has a last schedulable time, and it becomes critical when that time is "
        "reached.",
    ),
    Concept(
        ("ALISE",),
        "ALISE is a scheduler that predicts the output length and runs short requests first.",
        "It matters because long answers no longer block the short ones.",
        "It swaps the KV cache of waiting requests to the host and compresses it.",
    ),
    Concept(
        ("Sarathi", "Sarathi-Serve"),
        "Sarathi is a scheduler that mixes prompt chunks with decodes under a token budget.",
        "It matters because decodes never stall behind a long prompt.",
        "It introduced chunked prefill and stall-free batching.",
    ),
    Concept(
        ("RAD",),
        "RAD is a scheduler from theory that reaches the best possible throughput.",
        "It is useful as an upper bound, because it ignores latency promises.",
        "It fills the tiles of the matrix product and switches between prefill and decode.",
    ),
    Concept(
        ("Orca",),
        "Orca is a serving system that introduced scheduling after every iteration.",
        "It matters because requests no longer wait for a whole batch to end.",
        "Today this idea is called continuous batching.",
    ),
    Concept(
        ("vLLM",),
        "VLLM is an open source engine that made paged attention popular.",
        "It matters because it serves many requests with little wasted memory.",
        "Tiergate compares its own policies with the ones of vLLM.",
    ),
    Concept(
        ("FastServe", "MLFQ"),
        "FastServe is a scheduler that uses a multi-level feedback queue with preemption.",
        "It is useful because short jobs finish early without any prediction.",
        "A job that runs long sinks to lower levels.",
    ),
    Concept(
        ("the hybrid policy", "the hybrid scheduler", "hybrid"),
        "The hybrid policy of Tiergate combines the deadlines of SLAI with the parking of ALISE.",
        "It matters because premium and free users can both be served well on one machine.",
        "SLAI says how long a request can wait, and ALISE says where it waits.",
    ),
    Concept(
        ("fairness",),
        "Fairness means that every tenant gets its share of the machine.",
        "It matters because one heavy tenant could starve all the others.",
        "Weights and limits keep the shares right.",
    ),
    Concept(
        ("starvation",),
        "Starvation means that a request waits for ever because others always go first.",
        "It matters because even a low tier must be served some day.",
        "Ageing raises the rank of those who have waited long.",
    ),
    Concept(
        ("a length predictor", "length prediction"),
        "A length predictor estimates how many tokens an answer will have.",
        "It is useful because short jobs can go first and memory can be planned.",
        "In Tiergate predictions order the work, but they never guard safety.",
    ),
    Concept(
        ("a latency model", "the latency model"),
        "A latency model estimates how long a batch will take.",
        "It is useful because a time budget can be turned into a number of tokens.",
        "It is measured at the start and corrected while the engine runs.",
    ),
)
