"""An executor whose answers can be predicted: it says the alphabet; looked up by name as any other.

At temperature 0 a letter is followed by the next one, z by a full stop, and that by the end token;
anything else is followed by a. At other temperatures the letter depends on the seed and the
position alone, and the end never comes. With options "stall_at" and "stall_s" the first step that
computes an answer's token of that index takes so many seconds more.

A folder given as option "gate" holds a step while it contains a file "closed"; the file "held" then
says which one, and whoever makes a file "step" lets just that one go. With "host_blocks" contexts
can be parked; their copies end with their step, or stay under way while there is a file "copying".
"""

from __future__ import annotations

import os
import signal
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from engine.core.batch import Batch, Chunk, SampledToken, StepResult, TopLogprob
from engine.core.executor import Capacity
from engine.core.request import SamplingParams
from engine.serving.build import ProgressReport
from engine.serving.config import EngineConfig

ALPHABET = "abcdefghijklmnopqrstuvwxyz."
END_ID = 256
KILL_BYTE = 7  # a prompt that begins with this byte kills an engine made with option "mortal"
VOCABULARY = 260


def next_greedy(last: int) -> int:
    """Return the token after `last` at temperature 0."""
    if last == ord("."):
        return END_ID
    if ord("a") <= last < ord("z"):
        return last + 1
    return ord(".") if last == ord("z") else ord("a")


def next_seeded(seed: int, index: int) -> int:
    """Return the token at `index` of an answer at another temperature."""
    return ord("a") + zlib.crc32(f"{seed} {index}".encode()) % 26


@dataclass(frozen=True, slots=True)
class Info:
    model_path: str
    model: str = "talker"
    runner: str = "scripted"
    device: str = "none"
    dtype: str = "none"


class TalkingExecutor:
    """Computes nothing, at a pace."""

    def __init__(
        self,
        capacity: Capacity,
        info: Info,
        gate: Path | None,
        step_s: float,
        mortal: bool,
        stall: tuple[int, float] | None,
        elapsed_ns: int,
    ) -> None:
        self._stall = stall
        self._mortal = mortal
        self.capacity = capacity
        self.info = info
        self._gate = gate
        self._step_s = step_s
        self._elapsed_ns = elapsed_ns
        self._under_way: list[int] = []

    def execute(self, batch: Batch) -> StepResult:
        self._pass_gate(batch.step)
        if self._step_s:
            time.sleep(self._step_s)
        if self._stall and any(chunk.output_index == self._stall[0] for chunk in batch.chunks):
            time.sleep(self._stall[1])
            self._stall = None
        for chunk in batch.chunks:
            if self._mortal and chunk.start == 0 and chunk.token_ids[0] == KILL_BYTE:
                os.kill(os.getpid(), signal.SIGKILL)
        tokens = tuple(draw(c, c.sampling) for c in batch.chunks if c.sampling is not None)
        copied = self._copy(batch)
        return StepResult(batch.step, tokens, self._elapsed_ns, copied=copied)

    def _pass_gate(self, step: int) -> None:
        if self._gate is None or not (self._gate / "closed").exists():
            return
        held, one = self._gate / "held", self._gate / "step"
        draft = self._gate / "draft"
        draft.write_text(str(step))
        draft.rename(held)
        while (self._gate / "closed").exists() and not one.exists():
            time.sleep(0.002)
        held.unlink()
        one.unlink(missing_ok=True)

    def _copy(self, batch: Batch) -> tuple[int, ...]:
        """Begin copies, and say which are over; a step without chunks waits for one."""
        self._under_way += [copy.number for copy in (*batch.parks, *batch.returns)]
        while self._gate is not None and (self._gate / "copying").exists():
            if batch.chunks:
                return ()
            time.sleep(0.002)
        copied, self._under_way = tuple(self._under_way), []
        return copied


def draw(chunk: Chunk, sampling: SamplingParams) -> SampledToken:
    """Return the chunk's token, with log probabilities where they are asked for."""
    if sampling.temperature == 0.0:
        token = next_greedy(chunk.token_ids[-1])
    else:
        token = next_seeded(sampling.seed, chunk.output_index)
    bias = dict(sampling.logit_bias)
    if bias:
        token = max(bias, key=lambda t: bias[t])
    if sampling.logprobs is None:
        return SampledToken(chunk.request_id, token)
    top = tuple(TopLogprob((token + n) % 256, -0.5 - n) for n in range(sampling.logprobs))
    return SampledToken(chunk.request_id, token, -0.5, top)


def make(config: EngineConfig, progress: ProgressReport) -> TalkingExecutor:
    """Make the executor; the config's model is the folder of the tokenizer."""
    options = dict(config.executor_options)
    progress("learning the alphabet", 1.0)
    capacity = Capacity(
        num_blocks=int(options.get("num_blocks", "8192")),
        block_size=config.block_size,
        max_model_len=config.max_model_len or 1024,
        max_batch_tokens=config.max_batch_tokens or 512,
        max_batch_requests=config.max_batch_requests or 64,
        num_host_blocks=int(options.get("host_blocks", "0")),
    )
    gate = options.get("gate")
    step_s = float(options.get("step_s", "0.001"))
    held_by = Path(gate) if gate else None
    stall = None
    if "stall_at" in options:
        stall = (int(options["stall_at"]), float(options["stall_s"]))
    info = Info(config.model)
    elapsed_ns = int(options.get("elapsed_ns", "1000"))
    mortal = "mortal" in options
    return TalkingExecutor(capacity, info, held_by, step_s, mortal, stall, elapsed_ns)
