"""An executor that says what it is told to: what stands behind the prompt's last `say:`.

That goes to the end of the turn, which is the next special token; then comes the end token. A
prompt must be computed in one piece and without prefix hits: blocks larger than prompts see to it.
"""

from __future__ import annotations

from talking_executor import END_ID, Info

from engine.core.batch import Batch, Chunk, SampledToken, StepResult
from engine.core.executor import Capacity
from engine.serving.build import ProgressReport
from engine.serving.config import EngineConfig

MARK = tuple(b"say:")
ROLES = range(END_ID, END_ID + 4)
BLOCK = 2048


class EchoingExecutor:
    """Computes nothing."""

    def __init__(self, capacity: Capacity, info: Info) -> None:
        self.capacity = capacity
        self.info = info
        self._answers: dict[str, tuple[int, ...]] = {}

    def execute(self, batch: Batch) -> StepResult:
        drawn = [self._draw(chunk) for chunk in batch.chunks if chunk.sampling is not None]
        return StepResult(batch.step, tuple(drawn), 1000)

    def _draw(self, chunk: Chunk) -> SampledToken:
        if chunk.start == 0:
            self._answers[chunk.request_id] = told(chunk.token_ids)
        answer = self._answers[chunk.request_id]
        index = chunk.output_index
        return SampledToken(chunk.request_id, answer[index] if index < len(answer) else END_ID)


def told(prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Return what the last turn with a mark tells to say; tokens of a model's own are said too."""
    told, turn = tuple(b"nothing"), []
    for token in (*prompt, END_ID):
        if token not in ROLES:
            turn.append(token)
            continue
        for start in range(len(turn)):
            if tuple(turn[start : start + len(MARK)]) == MARK:
                told = tuple(turn[start + len(MARK) :])
                break
        turn = []
    return told


def make(config: EngineConfig, progress: ProgressReport) -> EchoingExecutor:
    """Make the executor; the config's model is the folder of the tokenizer."""
    progress("learning to repeat", 1.0)
    capacity = Capacity(
        num_blocks=64,
        block_size=config.block_size,
        max_model_len=BLOCK,
        max_batch_tokens=BLOCK,
        max_batch_requests=16,
    )
    return EchoingExecutor(capacity, Info(config.model))
