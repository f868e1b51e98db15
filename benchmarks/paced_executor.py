"""An executor that takes a fixed time for every step and computes nothing; for measuring the door.

Named as "paced_executor:make", with the options "step_s" (seconds a step) and "model_path" (whose
tokenizer the gateway loads). Its tokens walk through the vocabulary, so that their text is text.
With the option "mean_tokens" answers end by themselves, each after a length of its own.
"""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass

from engine.core.batch import Batch, Chunk, SampledToken, StepResult
from engine.core.executor import Capacity
from engine.serving.build import ProgressReport
from engine.serving.config import EngineConfig

FIRST_ID, NUM_IDS = 300, 1000  # beyond special tokens and single bytes


@dataclass(frozen=True, slots=True)
class Info:
    model_path: str
    model: str = "paced"
    runner: str = "paced"
    device: str = "none"
    dtype: str = "none"


class PacedExecutor:
    """Answers every step after a fixed sleep, as a device would that leaves the CPU alone."""

    def __init__(self, config: EngineConfig) -> None:
        options = dict(config.executor_options)
        self.capacity = Capacity(65_536, 16, 65_536, 8192, config.max_batch_requests or 64)
        self.info = Info(options["model_path"])
        self._step_s = float(options["step_s"])
        self._mean_tokens = float(options.get("mean_tokens", "0"))

    def execute(self, batch: Batch) -> StepResult:
        time.sleep(self._step_s)
        tokens = tuple(
            SampledToken(chunk.request_id, self._draw(chunk, batch.step * 7 + n))
            for n, chunk in enumerate(batch.chunks)
            if chunk.sampling is not None
        )
        return StepResult(batch.step, tokens, elapsed_ns=int(self._step_s * 1e9))

    def _draw(self, chunk: Chunk, number: int) -> int:
        """Return the next token, the end where the answer has its length (exponential)."""
        assert chunk.sampling is not None
        ends = chunk.sampling.stop_token_ids
        if self._mean_tokens and ends:
            share = (zlib.crc32(chunk.request_id.encode()) + 1) / 2**32
            if chunk.output_index >= max(1.0, -math.log(share) * self._mean_tokens):
                return ends[0]
        return FIRST_ID + number % NUM_IDS


def make(config: EngineConfig, progress: ProgressReport) -> PacedExecutor:
    return PacedExecutor(config)
