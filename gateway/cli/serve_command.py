"""`tiergate serve`: turns flags into Settings; starting the gateway is for `gateway.cli.serve`."""

from __future__ import annotations

from typing import Annotated

from gateway.cli.options import DatabaseUrl, DataDir, flag, load_settings

Text = str | None
Host = Annotated[Text, flag("host", "Address to listen on; default 127.0.0.1.", "ADDR")]
Port = Annotated[Text, flag("port", "Port, 0 for a free one; default 8000.", "PORT")]
Model = Annotated[
    Text, flag("model", "builtin, a folder, or a Hugging Face id; default builtin.", "MODEL")
]
Device = Annotated[Text, flag("device", "auto, cpu, cuda or cuda:N; default auto.", "DEVICE")]
Dtype = Annotated[Text, flag("dtype", "auto, float32, bfloat16 or float16; default auto.", "DTYPE")]
Policy = Annotated[
    Text, flag("policy", "Scheduling policy, NAME or NAME[key=value;...]; default auto.", "NAME")
]
LatencyProfile = Annotated[
    Text,
    flag("latency-profile", "Name, or file of `tiergate profile`; default auto.", "P"),
]
Threads = Annotated[Text, flag("threads", "CPU threads; default: one per core.", "N")]
MaxRunning = Annotated[Text, flag("max-running", "Most requests in a step; default 64.", "N")]
MaxBatchTokens = Annotated[
    Text, flag("max-batch-tokens", "Most tokens in a step; default: by device.", "N")
]
MaxModelLen = Annotated[
    Text, flag("max-model-len", "Longest prompt plus answer; default: the model's.", "N")
]
KvCacheGib = Annotated[
    Text, flag("kv-cache-gib", "Memory of the KV cache; default: measured.", "GIB")
]
HostKvGib = Annotated[
    Text, flag("host-kv-gib", "Host memory of parked requests; 0: none; default: a share.", "GIB")
]
HostKvFormat = Annotated[
    Text, flag("host-kv-format", "raw or int8 (half as large); default raw.", "FORMAT")
]
HostKvGroup = Annotated[
    Text, flag("host-kv-group", "int8: tokens per key scale; divides 16; default 16.", "N")
]
Workers = Annotated[
    Text, flag("workers", "Gateway processes at one engine; more need Redis; default 1.", "N")
]
MaxQueue = Annotated[Text, flag("max-queue", "Most requests that may wait; default 512.", "N")]
Admission = Annotated[
    Text,
    flag("admission", "off, shadow, soft or hard: may forecasts refuse; default soft.", "MODE"),
]
Learn = Annotated[Text, flag("learn", "on or off: learn lengths of answers; default on.", "ON")]
DrainTimeout = Annotated[
    Text, flag("drain-timeout-s", "How long answers may go on after SIGTERM; default 30.", "S")
]
LogLevel = Annotated[
    Text, flag("log-level", "debug, info, warning or error; default info.", "LEVEL")
]
ReadyFile = Annotated[
    Text, flag("ready-file", "JSON file with URL, keys and token; exists while serving.", "FILE")
]
Demo = Annotated[bool, flag("demo", "Make two demo tenants, premium and free; print their keys.")]


def serve(
    host: Host = None,
    port: Port = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    policy: Policy = None,
    latency_profile: LatencyProfile = None,
    threads: Threads = None,
    max_running: MaxRunning = None,
    max_batch_tokens: MaxBatchTokens = None,
    max_model_len: MaxModelLen = None,
    kv_cache_gib: KvCacheGib = None,
    host_kv_gib: HostKvGib = None,
    host_kv_format: HostKvFormat = None,
    host_kv_group: HostKvGroup = None,
    max_queue: MaxQueue = None,
    admission: Admission = None,
    learn: Learn = None,
    workers: Workers = None,
    drain_timeout_s: DrainTimeout = None,
    log_level: LogLevel = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    ready_file: ReadyFile = None,
    demo: Demo = False,
) -> int:
    """Start the gateway and its engine, and serve until SIGTERM or Ctrl-C.

    \b
    Examples:
      tiergate serve --demo
      tiergate serve --model Qwen/Qwen2.5-0.5B-Instruct --device cpu
      TIERGATE_PORT=9000 tiergate serve --policy sarathi

    Settings that have no flag here are variables too: `tiergate settings` lists them all.
    """
    settings = load_settings(
        host=host,
        port=port,
        model=model,
        device=device,
        dtype=dtype,
        policy=policy,
        latency_profile=latency_profile,
        threads=threads,
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        max_model_len=max_model_len,
        kv_cache_gib=kv_cache_gib,
        host_kv_gib=host_kv_gib,
        host_kv_format=host_kv_format,
        host_kv_group=host_kv_group,
        max_queue=max_queue,
        admission=admission,
        learn=learn,
        workers=workers,
        drain_timeout_s=drain_timeout_s,
        log_level=log_level,
        database_url=database_url,
        data_dir=data_dir,
        ready_file=ready_file,
        demo=demo or None,
    )
    # The gateway and all that it needs is imported when the settings are known to be right.
    from gateway.cli.serve import serve as run_gateway

    return run_gateway(settings)
