"""An executor that takes a fixed time for every step and computes nothing; for measuring the door.

Named as "paced_executor:make", with the options "step_s" (seconds a step) and "model_path" (whose
tokenizer the gateway loads). Its tokens walk through the vocabulary, so that their text is text.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from engine.core.batch import Batch, SampledToken, StepResult
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

    def execute(self, batch: Batch) -> StepResult:
        time.sleep(self._step_s)
        tokens = tuple(
            SampledToken(chunk.request_id, FIRST_ID + (batch.step * 7 + n) % NUM_IDS)
            for n, chunk in enumerate(batch.chunks)
            if chunk.sampling is not None
        )
        return StepResult(batch.step, tokens, elapsed_ns=int(self._step_s * 1e9))


def make(config: EngineConfig, progress: ProgressReport) -> PacedExecutor:
    return PacedExecutor(config)
