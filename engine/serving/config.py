"""What an engine is started with: one frozen value; it knows no environment and starts nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything the engine's process is told, once, before it imports torch.

    None means "measure or choose yourself". Sizes are tokens, blocks or bytes as named; times are
    seconds, because an operator writes them. `executor` is "model" or "module:function" (see
    engine/serving/build.py).
    """

    model: str
    executor: str = "model"
    served_name: str = ""  # the name in /v1/models; empty: the loader's own
    device: str = "auto"
    dtype: str = "auto"
    runner: str = "auto"  # "auto", "generic" or "lean"
    policy: str = "auto"  # hybrid where the latency profile is the model's own, else sarathi
    policy_options: tuple[tuple[str, float], ...] = ()
    # A name or a file, corrected by what steps really take; "auto" is the built-in model's.
    latency_profile: str = "auto"

    # A file that takes every command and step, to be replayed (engine/core/tape.py). It holds
    # prompts, it grows without bound: for hunting a fault, never for everyday service.
    tape: str = ""

    max_model_len: int | None = None
    max_batch_tokens: int | None = None
    max_batch_requests: int | None = None
    block_size: int = 16
    kv_cache_bytes: int | None = None
    host_kv_bytes: int | None = None  # for parked contexts; 0: parked requests are recomputed
    host_kv_format: str = "raw"  # or "int8": half the bytes, near the original
    host_kv_group: int | None = None  # int8: tokens that share their keys' scales; None: a block's
    host_kv_checksums: bool = False  # every copy is verified; for hunting a fault: it costs time
    prefix_caching: bool = True
    max_waiting_requests: int = 1024
    max_waiting_prompt_tokens: int = 4_000_000
    follow_one_in: int = 1  # requests whose every step is recorded; 0: nobody's, all else is kept

    threads: int | None = None  # None: every physical core this process may use
    spin: int = 2000  # GOMP_SPINCOUNT: low where a gateway shares the cores (docs/performance.md)
    nice: int = 5
    import_paths: tuple[str, ...] = ()  # where a "module:function" executor is looked for
    executor_options: tuple[tuple[str, str], ...] = ()  # for "module:function" executors

    max_open_requests: int = 8192
    max_inbox_bytes: int = 64 * 1024 * 1024
    load_timeout_s: float = 1800.0  # without any sign of progress
    hang_timeout_s: float = 60.0  # without any message while work is outstanding
    close_grace_s: float = 5.0
    backoff_first_s: float = 0.2
    backoff_max_s: float = 10.0
    healthy_after_s: float = 60.0
    stderr_tail_bytes: int = 16 * 1024
