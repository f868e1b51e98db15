"""What steps really take: an executor that notes every batch, standing where the runner stands.

The engine around it is the one in service (`EngineConfig.executor` names `make`), so the time from
one batch to the next holds all that a step costs: scheduling, computing, sampling, sending. It
knows no workload and fits nothing; engine/serving/profiling.py does.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

from engine.core.batch import Batch, StepResult
from engine.core.clock import Clock, MonotonicClock
from engine.core.executor import Capacity, Executor
from engine.model.kernels.native import load_native
from engine.model.link_prices import measure_link
from engine.model.loader import load_runner
from engine.model.model_runner import ModelRunner

RECORD_OPTION = "record"


class DescribedExecutor(Executor, Protocol):
    """An executor that can say what it is, as the engine asks of every one."""

    @property
    def info(self) -> Any:
        """See engine/serving/build.py."""
        ...


class RecordingExecutor:
    """Passes batches on to another executor and writes a line of JSON for each into `lines`.

    The first line is an object, `facts`: what the device holds and how fast its link is. Every
    other one is a list: when the batch came and when it was done (ns); how long writing the
    previous line took (ns); 1 if a request of the previous batch is in this one too, so that the
    engine cannot have been idle between them; then decodes, prompt chunks, tokens, cached tokens
    read by decodes, query-key pairs of prompts, cached tokens before prompts.
    """

    def __init__(
        self,
        inner: DescribedExecutor,
        lines: TextIO,
        facts: dict[str, float],
        clock: Clock | None = None,
    ) -> None:
        self._inner = inner
        self._lines = lines
        self._clock = clock or MonotonicClock()
        self._seen: frozenset[str] = frozenset()
        self._writing_ns = 0
        self._write(facts)

    @property
    def capacity(self) -> Capacity:
        """See Executor."""
        return self._inner.capacity

    @property
    def info(self) -> Any:
        """What the other executor says of itself."""
        return self._inner.info

    def execute(self, batch: Batch) -> StepResult:
        """See Executor."""
        began_ns = self._clock.now_ns()
        result = self._inner.execute(batch)
        ended_ns = self._clock.now_ns()
        ids = frozenset([chunk.request_id for chunk in batch.chunks])
        continues = not self._seen.isdisjoint(ids)
        self._seen = ids
        self._write([began_ns, ended_ns, self._writing_ns, int(continues), *held(batch)])
        self._writing_ns = self._clock.now_ns() - ended_ns
        return result

    def close(self) -> None:
        """Close the file; nothing may be executed afterwards."""
        self._lines.close()

    def _write(self, line: Any) -> None:
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()  # the process ends by a signal, not by closing its files


def held(batch: Batch) -> tuple[int, int, int, int, float, int]:
    """Return what a batch holds, as `engine.core.latency_fit.Observation` counts it."""
    decodes = prefills = tokens = kv_tokens = prompt_kv = 0
    pairs = 0.0
    for chunk in batch.chunks:
        size = len(chunk.token_ids)
        tokens += size
        if chunk.is_decode:
            decodes += 1
            kv_tokens += chunk.start
        else:
            prefills += 1
            pairs += size * (chunk.start + size / 2)
            prompt_kv += chunk.start
    return decodes, prefills, tokens, kv_tokens, pairs, prompt_kv


def device_facts(runner: ModelRunner, clock: Clock) -> dict[str, float]:
    """Return what a token costs in memory (bytes) and on the way to the host and back (ns)."""
    cache, native = runner.attention.kv_cache, None
    if cache.device.type == "cpu":
        native = load_native()
    link = measure_link(cache, native, clock)
    return {"kv_bytes_per_token": cache.shape.bytes_per_token, **link.as_facts()}


def make(config: Any, progress: Callable[[str, float], None]) -> RecordingExecutor:
    """Load the model of an EngineConfig as the engine would, and record what it computes.

    `config.executor_options` names the file under "record". The config is that of a higher floor,
    hence untyped here: whatever of it the loader has a parameter for is handed on.
    """
    parameters = inspect.signature(load_runner).parameters
    wanted: dict[str, Any] = {n: getattr(config, n) for n in parameters if hasattr(config, n)}
    wanted["progress"] = progress
    runner = load_runner(**wanted)
    path = Path(dict(config.executor_options)[RECORD_OPTION])
    lines = path.open("w", encoding="utf-8")  # until this process ends
    return RecordingExecutor(runner, lines, device_facts(runner, MonotonicClock()))
