"""The seam between deciding and computing: what an executor promises; it says nothing of how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.core.batch import Batch, StepResult


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the executor can hold; told once, before the scheduler is built, and never changed.

    `num_blocks` counts usable blocks; ids run from 1 to num_blocks, because block 0 is the
    executor's padding block and never belongs to a request.
    """

    num_blocks: int
    block_size: int  # tokens
    max_model_len: int  # tokens of prompt plus output that one request may reach
    max_batch_tokens: int
    max_batch_requests: int
    num_host_blocks: int = 0  # room for parked requests; ids run from 1 as well
    host_is_exact: bool = True  # a context comes back from the host byte for byte


class Executor(Protocol):
    """Computes batches, one at a time, in the order given."""

    @property
    def capacity(self) -> Capacity:
        """What this executor can hold."""
        ...

    def execute(self, batch: Batch) -> StepResult:
        """Compute one step.

        Raises `ExecutorFault` when the step failed but the executor survived: then no copy is
        under way any more, and all that were count as lost. Any other exception means that the
        executor is broken.
        """
        ...
