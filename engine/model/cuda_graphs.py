"""CUDA graphs for steps that only decode; it knows a step function, not the model behind it.

A decode of one token a sequence launches hundreds of small kernels, and launching them from Python
costs more than running them. Such a step is recorded once for each of a few batch sizes and then
replayed (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/). A batch between two
sizes is filled up with rows of the padding block, whose results nobody reads. Steps with prompt
chunks run as they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import torch

from engine.model.step_input import StepInput

StepFunction = Callable[[StepInput], torch.Tensor]
WARM_UP_RUNS = 2  # lets Triton compile and libraries allocate before anything is recorded


def graph_sizes(max_batch: int) -> list[int]:
    """Return the batch sizes to record: powers of two up to 8, then every eighth."""
    sizes = [size for size in (1, 2, 4, 8, *range(16, max_batch + 1, 8)) if size < max_batch]
    return [*sizes, max_batch]


class DecodeBuffers:
    """One decode-only step of fixed size whose tensors stay where they are."""

    def __init__(
        self, batch_size: int, max_blocks: int, block_size: int, device: torch.device
    ) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.step = StepInput(
            token_ids=zeros(batch_size, dtype=torch.int64),
            positions=zeros(batch_size, dtype=torch.int64),
            slot_mapping=zeros(batch_size, dtype=torch.int64),
            cu_q=torch.arange(batch_size + 1, dtype=torch.int32, device=device),
            context_lens=torch.ones(batch_size, dtype=torch.int32, device=device),
            block_tables=zeros(batch_size, max_blocks, dtype=torch.int32),
            sample_rows=torch.arange(batch_size, dtype=torch.int64, device=device),
            num_decodes=batch_size,
            block_size=block_size,
            cu_q_host=np.arange(batch_size + 1, dtype=np.int32),
            context_lens_host=np.ones(batch_size, dtype=np.int32),
        )

    def load(self, inp: StepInput) -> None:
        """Copy a decode-only step in; the rows after it become one-token contexts of block 0."""
        n, own = inp.num_chunks, self.step
        width = inp.block_tables.shape[1]
        assert n <= own.num_chunks
        assert width <= own.block_tables.shape[1]
        for name, idle in (("token_ids", 0), ("positions", 0), ("slot_mapping", 0)):
            target = getattr(own, name)
            target[:n].copy_(getattr(inp, name))
            target[n:].fill_(idle)
        own.context_lens[:n].copy_(inp.context_lens)
        own.context_lens[n:].fill_(1)
        own.block_tables[:n, :width].copy_(inp.block_tables)
        own.block_tables[n:].fill_(0)
        own.context_lens_host[:n] = inp.context_lens_host
        own.context_lens_host[n:] = 1


class DecodeGraphs:
    """A step function that replays recorded graphs where it can, and otherwise calls through."""

    def __init__(
        self,
        step: StepFunction,
        max_batch: int,
        max_blocks: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self._step = step
        self._max_blocks = max_blocks
        self._sizes = graph_sizes(max_batch)
        self._block_size = block_size
        self._device = device
        self._recorded: dict[int, tuple[DecodeBuffers, torch.cuda.CUDAGraph, torch.Tensor]] = {}

    @property
    def num_graphs(self) -> int:
        """Graphs recorded so far."""
        return len(self._recorded)

    @torch.inference_mode()
    def record(self, on_progress: Callable[[float], None] | None = None) -> None:
        """Record every size, the largest first so that the smaller ones reuse its memory pool.

        Runs the model on padding rows only. Raises RuntimeError where a model cannot be recorded
        (it waits for the device in the middle of a step, say); the graphs are then given up.
        """
        pool = None
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        for done, size in enumerate(reversed(self._sizes), 1):
            buffers = DecodeBuffers(size, self._max_blocks, self._block_size, self._device)
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_RUNS):
                    self._step(buffers.step)
            torch.cuda.current_stream(self._device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=pool):
                    logits = self._step(buffers.step)
            except RuntimeError:
                self._recorded.clear()
                raise
            pool = graph.pool()
            self._recorded[size] = (buffers, graph, logits)
            if on_progress is not None:
                on_progress(done / len(self._sizes))

    def step(self, inp: StepInput) -> torch.Tensor:
        """Return the logits of `inp.sample_rows`; valid until the next step of the same size."""
        size = self.size_for(inp)
        recorded = None if size is None else self._recorded.get(size)
        if recorded is None:
            return self._step(inp)
        buffers, graph, logits = recorded
        buffers.load(inp)
        graph.replay()
        return logits[: inp.num_chunks]

    def size_for(self, inp: StepInput) -> int | None:
        """Return the recorded size that this step would be padded to; None if it has to run."""
        n = inp.num_chunks
        decodes_only = inp.num_decodes == n == len(inp.sample_rows)
        if not decodes_only or inp.block_tables.shape[1] > self._max_blocks:
            return None
        index = bisect_left(self._sizes, n)
        return self._sizes[index] if index < len(self._sizes) else None
