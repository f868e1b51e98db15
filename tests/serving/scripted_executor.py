"""A deterministic executor for tests: tokens are arithmetic, misbehaviour is asked for by a token.

It is looked up by name ("scripted_executor:make") inside the engine's process, as an operator's
own executor would be. A prompt whose first token is one of the marks below does what the mark says
when it is computed; everything else is answered with `next_token`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from engine.core.batch import Batch, SampledToken, StepResult
from engine.core.errors import ExecutorFault, ModelLoadError
from engine.core.executor import Capacity
from engine.core.request import RequestOrder, SamplingParams
from engine.serving.build import ProgressReport
from engine.serving.config import EngineConfig

VOCABULARY = 1000
RAISE, KILL, HANG, FAULT = 9001, 9002, 9003, 9004


def next_token(last_token: int, position: int) -> int:
    """Return the token at `position`, given the one before it."""
    return (last_token * 31 + position * 7 + 1) % VOCABULARY


def expected_tokens(order: RequestOrder) -> list[int]:
    """Return the whole answer to an order that runs to its max_tokens."""
    tokens: list[int] = []
    last = order.prompt[-1]
    for index in range(order.sampling.max_tokens):
        last = next_token(last, len(order.prompt) + index)
        tokens.append(last)
    return tokens


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Info:
    model: str
    model_path: str = "/nowhere"
    runner: str = "scripted"
    device: str = "none"
    dtype: str = "none"


class ScriptedExecutor:
    """Computes nothing; waits at a gate before each step if it was given one.

    The gate is a folder: while a file "closed" is in it the step waits, and says so with a file
    "waiting", so that a test can hold the engine in the middle of a step.
    """

    def __init__(self, capacity: Capacity, gate: Path | None, step_s: float) -> None:
        self._capacity = capacity
        self._gate = gate
        self._step_s = step_s
        self.info = Info("scripted")

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def execute(self, batch: Batch) -> StepResult:
        if self._gate is not None:
            self._wait_at(self._gate)
        if self._step_s:
            time.sleep(self._step_s)
        tokens = []
        for chunk in batch.chunks:
            if chunk.start == 0:
                self._misbehave(chunk.token_ids[0])
            if chunk.sampling is not None:
                token = next_token(chunk.token_ids[-1], chunk.end)
                tokens.append(SampledToken(chunk.request_id, token))
        return StepResult(batch.step, tuple(tokens), elapsed_ns=1000)

    def _wait_at(self, gate: Path) -> None:
        if (gate / "closed").exists():
            (gate / "waiting").touch()
            while (gate / "closed").exists():
                time.sleep(0.001)
            (gate / "waiting").unlink()

    def _misbehave(self, mark: int) -> None:
        match mark:
            case 9001:
                raise ValueError("the device is gone")
            case 9002:
                os.kill(os.getpid(), signal.SIGKILL)
            case 9003:
                while True:
                    time.sleep(1)
            case 9004:
                raise ExecutorFault("memory ran out")


def make(config: EngineConfig, progress: ProgressReport) -> ScriptedExecutor:
    """Make an executor, or fail to in the way that the option "load" asks for."""
    options = dict(config.executor_options)
    progress("pretending to load", 0.5)
    match options.get("load"):
        case "refuse":
            raise ModelLoadError("the weights are made of cheese: name another model")
        case "raise":
            raise RuntimeError("nobody expected this")
        case "kill":
            print("about to be killed", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                time.sleep(1)
        case "die-after-first":
            first = Path(options["marker"])
            if first.exists():
                raise ModelLoadError("the disk has gone")
            first.touch()
    if pid_file := options.get("pid_file"):
        Path(pid_file).write_text(str(os.getpid()))
    gate = options.get("gate")
    capacity = Capacity(
        num_blocks=int(options.get("num_blocks", "4096")),
        block_size=config.block_size,
        max_model_len=config.max_model_len or 4096,
        max_batch_tokens=config.max_batch_tokens or 512,
        max_batch_requests=config.max_batch_requests or 64,
    )
    step_s = float(options.get("step_s", "0"))
    return ScriptedExecutor(capacity, Path(gate) if gate else None, step_s)
