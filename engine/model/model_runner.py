"""The executor in service: batch to tensors, forward, sample; it knows no queue and no policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from engine.core.batch import Batch, Chunk, SampledToken, StepResult
from engine.core.clock import Clock, MonotonicClock
from engine.core.errors import ExecutorFault
from engine.core.executor import Capacity
from engine.core.request import SamplingParams
from engine.model.attention import PagedAttention
from engine.model.hf_model import PagedModel
from engine.model.step_input import StepInput, StepInputBuilder
from engine.model.swap import NOTHING, SwapEngine

_WARM_UP_CHUNK = 512  # tokens of one chunk of the warm-up; real prompts come in chunks as well


class TokenSampler(Protocol):
    """Draws one token per row; a row that cannot be drawn from is left out of the answer."""

    def sample(self, logits: torch.Tensor, rows: Sequence[Chunk]) -> list[SampledToken]:
        """Return the tokens of `rows`, whose logits are [len(rows), vocab_size], in order."""
        ...


class StepFunction(Protocol):
    """A forward pass: the model's own `step`, or the same behind recorded CUDA graphs."""

    def __call__(self, inp: StepInput, /) -> torch.Tensor:
        """Return the logits [R, vocab_size] of `inp.sample_rows`."""
        ...


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What a loaded runner says of itself, for logs, /v1/models and the dashboards."""

    model: str
    model_path: str
    runner: str  # "generic" or "lean"
    attention: str
    device: str
    dtype: str
    kv_cache_bytes: int
    self_check_error: float  # relative rms difference from transformers' logits
    host_kv_bytes: int = 0  # for parked contexts; 0: none can be parked
    host_kv_format: str = "raw"
    has_grammars: bool = False  # it can hold an answer to a grammar
    embedding_size: int = 0  # numbers of an embedding; 0: it makes none


class ModelRunner:
    """Computes one batch at a time with one model and one pool (see engine.core.executor)."""

    def __init__(
        self,
        model: PagedModel,
        attention: PagedAttention,
        sampler: TokenSampler,
        capacity: Capacity,
        info: RunnerInfo,
        *,
        step: StepFunction | None = None,
        swap: SwapEngine | None = None,
        clock: Clock | None = None,
    ) -> None:
        assert attention.kv_cache.num_blocks == capacity.num_blocks
        assert attention.kv_cache.block_size == capacity.block_size
        assert (swap is not None) == (capacity.num_host_blocks > 0)
        model.bind(attention)
        self._model = model
        self._attention = attention
        self._sampler = sampler
        self._capacity = capacity
        self._info = info
        self._step: StepFunction = step or model.step
        self._swap = swap
        self._clock = clock or MonotonicClock()
        self._inputs = StepInputBuilder(
            capacity.block_size, model.device, max_rows=4 * capacity.max_batch_requests
        )

    @property
    def capacity(self) -> Capacity:
        """What this executor can hold."""
        return self._capacity

    @property
    def info(self) -> RunnerInfo:
        """What was loaded, and how it runs."""
        return self._info

    @property
    def model(self) -> PagedModel:
        """The model that computes."""
        return self._model

    @property
    def attention(self) -> PagedAttention:
        """Its attention, with the pools."""
        return self._attention

    @torch.inference_mode()
    def execute(self, batch: Batch) -> StepResult:
        """Compute one step: one token for every chunk that samples; its copies begin before it.

        Requests whose logits are not finite come back in `failed`. A batch without chunks waits for
        a copy. Raises ExecutorFault when memory ran out: the pools are whole, no copy is under way
        any more, the step's tokens have to be computed again.
        """
        began = self._clock.now_ns()
        rows = [chunk for chunk in batch.chunks if chunk.sampling is not None]
        tokens: list[SampledToken] = []
        finished, swap = NOTHING, self._swap
        try:
            if batch.parks or batch.returns:
                assert swap is not None, "a copy for an executor without host blocks"
                swap.begin(batch.parks, batch.returns)
            if batch.chunks:
                tokens = self._compute(batch, rows)
            if swap is not None:
                step_ns = self._clock.now_ns() - began
                finished = swap.poll(step_ns) if batch.chunks else swap.wait_any()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if swap is not None:
                swap.drain()
            raise ExecutorFault(
                f"step {batch.step}: out of memory on {self._info.device}"
            ) from error
        drawn = {token.request_id for token in tokens}
        return StepResult(
            step=batch.step,
            tokens=tuple(tokens),
            elapsed_ns=self._clock.now_ns() - began,
            failed=tuple(row.request_id for row in rows if row.request_id not in drawn),
            copied=finished.copied,
            lost_copies=finished.lost,
        )

    def _compute(self, batch: Batch, rows: Sequence[Chunk]) -> list[SampledToken]:
        """Return the tokens of `rows`, with the vectors of those that want to be embedded."""
        wanted = {c.request_id: at for at, c in enumerate(rows) if c.sampling and c.sampling.embeds}
        # What a recorded graph leaves behind are its logits alone.
        step = self._model.step if wanted else self._step
        logits = step(self._inputs.build(batch))
        tokens = self._sampler.sample(logits, rows) if rows else []
        if not wanted:
            return tokens
        vectors = normed(self._model.hidden)
        return [
            dataclasses.replace(token, vector=vectors[wanted[token.request_id]].numpy().tobytes())
            if token.request_id in wanted
            else token
            for token in tokens
        ]

    def close(self) -> None:
        """Stop what runs beside the engine's thread; nothing may be executed afterwards."""
        if self._swap is not None:
            self._swap.close()

    def warm_up(self) -> None:
        """Run the largest prompt step and the largest decode step on blocks nobody owns yet.

        Kernels get compiled and libraries make their buffers before the first request waits for
        them, and a machine that is too small fails now. Call it before serving, never during.
        """
        for batch in warm_up_batches(self._capacity):
            self.execute(batch)


def warm_up_batches(capacity: Capacity) -> tuple[Batch, ...]:
    """Return a step full of prompt chunks and a step full of decodes, all on the same blocks."""
    longest = min(capacity.max_model_len, capacity.num_blocks * capacity.block_size)
    size = min(_WARM_UP_CHUNK, longest, capacity.max_batch_tokens)
    count = max(1, min(capacity.max_batch_tokens // size, capacity.max_batch_requests))
    blocks = tuple(range(1, -(-size // capacity.block_size) + 1))
    greedy = SamplingParams(max_tokens=1, temperature=0.0)
    prompts = tuple(
        Chunk(f"warm-up-{i}", 0, tuple([0] * size), blocks, greedy) for i in range(count)
    )
    decodes = tuple(
        Chunk(f"warm-up-{i}", size - 1, (0,), blocks, greedy)
        for i in range(min(capacity.max_batch_requests, capacity.max_batch_tokens))
    )
    return Batch(0, prompts), Batch(0, decodes)


def normed(hidden: torch.Tensor) -> torch.Tensor:
    """Return vectors [R, H] of length 1, float32 and on the CPU."""
    return torch.nn.functional.normalize(hidden.float(), dim=-1).cpu()


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for the device's own error class and for the CPU allocator's plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
