"""Knows the facts of LLM serving, latency and memory as text; knows nothing of Tiergate itself."""

from __future__ import annotations

from engine.model.builtin.corpus.concepts import Concept

LATENCY: tuple[Concept, ...] = (
    Concept(
        ("TTFT", "time to first token"),
        "TTFT is the time from the arrival of a request until its first token is sent.",
        "It matters because the user stares at an empty screen until the first token appears.",
        "TTFT is made of the waiting time in the queue and the time of the prefill, so a long "
        "prompt has a larger TTFT.",
        "time to first token",
    ),
    Concept(
        ("TBT", "time between tokens"),
        "TBT is the time between two tokens that follow each other in one answer.",
        "It matters because a text that stops and jumps is unpleasant to read.",
        "TBT grows when a step holds too many tokens, for example when a long prefill shares the "
        "batch with the decodes.",
        "time between tokens",
    ),
    Concept(
        ("latency",),
        "Latency is the time a user waits for a result.",
        "It matters because people leave a service that feels slow.",
        "For LLMs it is split into the time to first token and the time between tokens.",
    ),
    Concept(
        ("throughput",),
        "Throughput is the number of tokens or requests that a server completes per second.",
        "It matters because it decides how many users one machine can serve.",
        "Larger batches raise the throughput, but they also make every step longer.",
    ),
    Concept(
        ("goodput",),
        "Goodput is the number of requests per second that are completed within their SLO.",
        "It matters because a late answer uses the machine and still disappoints the user.",
        "Throughput counts all the work, while goodput counts only the work that was on time.",
    ),
    Concept(
        ("SLO", "an SLO", "service level objective"),
        "An SLO is a measurable promise about a service, such as a limit on latency.",
        "It matters because a promise that is not measured cannot be kept.",
        "In Tiergate an SLO holds a limit for the first token and a limit for the time between "
        "tokens.",
        "service level objective",
    ),
    Concept(
        ("SLA", "an SLA", "service level agreement"),
        "An SLA is a contract that says what happens when a service misses its objectives.",
        "It matters because it turns a technical target into a promise with consequences.",
        "The objective inside an SLA is called an SLO.",
        "service level agreement",
    ),
    Concept(
        ("attainment", "SLO attainment"),
        "Attainment is the share of requests that met their SLO.",
        "It matters because an average hides the users who waited too long.",
        "Tiergate counts it over all offered requests, so a refused or failed request is a miss.",
    ),
    Concept(
        ("P99", "the P99", "tail latency"),
        "P99 is the value that 99 percent of the requests stay below.",
        "It matters because the slowest requests shape what users think of a service.",
        "A scheduler can improve the median and still make the P99 worse.",
    ),
    Concept(
        ("EDF", "earliest deadline first"),
        "EDF is a scheduling rule that serves the request with the nearest deadline first.",
        "It is good because it meets every deadline whenever that is possible on one machine.",
        "Under overload EDF works on hopeless requests, so Tiergate puts those behind the others.",
        "earliest deadline first",
    ),
    Concept(
        ("FCFS", "first come first served"),
        "FCFS is a scheduling rule that serves requests in the order of their arrival.",
        "It is simple and fair, but one long request makes all the others wait.",
        "This effect is called head-of-line blocking.",
        "first come first served",
    ),
    Concept(
        ("head-of-line blocking",),
        "Head-of-line blocking means that a long request at the front makes short ones wait.",
        "It matters because a few long requests can ruin the latency of everybody.",
        "Preemption and better ordering are the usual cures.",
    ),
    Concept(
        ("a deadline", "deadline"),
        "A deadline is the latest time at which a token or an answer is still on time.",
        "It matters because a scheduler with deadlines knows what is urgent and what can wait.",
        "A token that can wait leaves room for the prompt of somebody else.",
    ),
    Concept(
        ("a queue", "queue"),
        "A queue is a line of requests that wait for their turn.",
        "It matters because it absorbs short bursts of traffic.",
        "A queue must be bounded, because an endless queue only turns errors into long waits.",
    ),
    Concept(
        ("backpressure",),
        "Backpressure is a signal that tells a sender to slow down because the receiver is full.",
        "It matters because without it a busy server collects work until it breaks.",
        "In an HTTP service it is shown by the status 429 or 503 with a hint when to retry.",
    ),
)

MEMORY: tuple[Concept, ...] = (
    Concept(
        ("the KV cache", "KV cache", "a KV cache"),
        "The KV cache stores the keys and values of all earlier tokens of a request.",
        "It matters because without it every new token would need the whole text again.",
        "It grows with every token and is often the largest user of GPU memory after the weights.",
        "key value cache",
    ),
    Concept(
        ("paged attention", "PagedAttention"),
        "Paged attention stores the KV cache in small blocks that need not be next to each other.",
        "It matters because almost no memory is wasted, so more requests fit on the GPU.",
        "A block table maps the positions of a request to its blocks, like the pages of an "
        "operating system.",
    ),
    Concept(
        ("a block", "a KV block", "KV block"),
        "A block is a small piece of the KV cache that holds a fixed number of tokens.",
        "It is useful because memory can be given and taken back in equal pieces.",
        "A typical block holds 16 tokens.",
    ),
    Concept(
        ("a block table", "block table", "the block table"),
        "A block table lists which memory blocks hold the KV cache of a request.",
        "It is useful because the blocks of one request may lie anywhere in memory.",
        "The attention kernel reads the table to find the keys and values.",
    ),
    Concept(
        ("prefix caching", "a prefix cache"),
        "Prefix caching reuses the KV cache of a beginning that several prompts share.",
        "It matters because a shared system prompt is then computed only once.",
        "Blocks are found by a hash of their tokens, and Tiergate salts the hash for each tenant.",
    ),
    Concept(
        ("preemption",),
        "Preemption means that the scheduler stops a running request to make room for another.",
        "It matters because urgent requests can be served although the memory is full.",
        "The stopped request is continued later, either from a swapped copy or by recomputation.",
    ),
    Concept(
        ("swapping", "a swap"),
        "Swapping moves the KV cache of a request from the GPU to the host memory or back.",
        "It is useful because a paused request keeps its work without filling the GPU.",
        "It costs time on the link between both memories.",
    ),
    Concept(
        ("recomputation", "recompute"),
        "Recomputation throws the KV cache of a request away and computes it again later.",
        "It is useful when computing again is cheaper than moving the data.",
        "It needs no host memory at all.",
    ),
    Concept(
        ("parking", "parking a request"),
        "Parking moves a started request to the host memory until it is needed again.",
        "It is useful when a request is so far ahead of its deadlines that it can wait.",
        "The user notices nothing, because the request returns before its next token is due.",
    ),
    Concept(
        ("quantization",),
        "Quantization stores numbers with fewer bits, for example 8 instead of 16.",
        "It matters because the data takes less memory and moves faster.",
        "A small loss of accuracy is the price.",
    ),
    Concept(
        ("INT8",),
        "INT8 is a whole number format with 8 bits.",
        "It is useful because it needs half the memory of a 16 bit format.",
        "Tiergate can store parked KV blocks in INT8.",
    ),
    Concept(
        ("bf16", "bfloat16"),
        "Bfloat16 is a number format with 16 bits and the same range as float32.",
        "It is useful because models need half the memory and lose little accuracy.",
        "It has 8 exponent bits and 7 fraction bits.",
    ),
    Concept(
        ("a GPU", "GPU"),
        "A GPU is a processor that does many simple calculations at the same time.",
        "It matters because the matrix products of a language model run much faster on it.",
        "Its memory is fast but small, so it must be shared with care.",
        "graphics processing unit",
    ),
    Concept(
        ("a CPU", "CPU"),
        "A CPU is the general processor of a computer.",
        "It is useful because every computer has one and it can run any program.",
        "Tiergate can run small models on a CPU.",
        "central processing unit",
    ),
    Concept(
        ("host memory",),
        "Host memory is the ordinary memory of the computer next to the GPU.",
        "It is useful because it is much larger and cheaper than the memory of the GPU.",
        "Parked requests keep their blocks there.",
    ),
)
