"""One step's batch as tensors, built once for all layers; it knows no model and no KV pool.

Sequences are packed without padding: T tokens of S chunks lie side by side, and `cu_q` says where
each chunk begins. The arrays are made with numpy, because a Python list per token would cost more
than the forward pass of a small model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from engine.core.batch import Batch


@dataclass(frozen=True, slots=True, eq=False)
class StepInput:
    """S chunks with T tokens in all; the first `num_decodes` chunks hold exactly one token each.

    Tensors lie on the model's device. `cu_q_host` and `context_lens_host` are the same numbers in
    host memory, so that a loop over chunks never waits for a device.
    """

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64: position of each token in its own sequence
    slot_mapping: torch.Tensor  # [T] int64: block * block_size + offset, where K and V go
    cu_q: torch.Tensor  # [S+1] int32: chunk s owns rows [cu_q[s], cu_q[s+1])
    context_lens: torch.Tensor  # [S] int32: keys each chunk's last token sees, itself included
    block_tables: torch.Tensor  # [S, max_blocks] int32, filled up with the padding block 0
    sample_rows: torch.Tensor  # [R] int64: last row of every chunk that samples, in order
    num_decodes: int
    block_size: int
    cu_q_host: NDArray[np.int32]
    context_lens_host: NDArray[np.int32]

    @property
    def num_tokens(self) -> int:
        """T, the rows of the forward pass."""
        return int(self.token_ids.shape[0])

    @property
    def num_chunks(self) -> int:
        """S, the sequences in this step."""
        return len(self.context_lens_host)


class StepInputBuilder:
    """Turns a Batch into a StepInput; remembers the block row of each request between steps.

    The scheduler hands out the very same tuple while a block table does not change, so a row is
    converted again only when the tuple is another object. At most `max_rows` rows are kept; rows of
    requests that are not in the current batch go first, the oldest of them before the younger.
    """

    def __init__(self, block_size: int, device: torch.device, max_rows: int = 1024) -> None:
        self._block_size = block_size
        self._device = device
        self._max_rows = max_rows
        self._rows: dict[str, tuple[tuple[int, ...], NDArray[np.int32]]] = {}

    @property
    def num_cached_rows(self) -> int:
        """Rows remembered now."""
        return len(self._rows)

    def build(self, batch: Batch) -> StepInput:
        """Return the tensors of `batch`, which holds at least one chunk of at least one token."""
        chunks = batch.chunks
        num_chunks = len(chunks)
        assert num_chunks, "an empty batch has nothing to compute"
        lens = np.fromiter((len(c.token_ids) for c in chunks), np.int64, num_chunks)
        starts = np.fromiter((c.start for c in chunks), np.int64, num_chunks)
        assert lens.all(), "an empty chunk has nothing to compute"
        cu_q = np.zeros(num_chunks + 1, np.int64)
        np.cumsum(lens, out=cu_q[1:])
        num_tokens = int(cu_q[-1])
        token_ids = np.fromiter(
            chain.from_iterable(c.token_ids for c in chunks), np.int64, num_tokens
        )
        positions = np.arange(num_tokens) + np.repeat(starts - cu_q[:-1], lens)
        tables = self._block_tables(batch)
        owner = np.repeat(np.arange(num_chunks), lens)
        block, offset = np.divmod(positions, self._block_size)
        slots = tables[owner, block].astype(np.int64) * self._block_size + offset
        sampling = np.fromiter((c.sampling is not None for c in chunks), np.bool_, num_chunks)
        is_longer = np.flatnonzero(lens != 1)
        cu_q_host = cu_q.astype(np.int32)
        context_lens_host = (starts + lens).astype(np.int32)
        return StepInput(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            slot_mapping=self._tensor(slots),
            cu_q=self._tensor(cu_q_host),
            context_lens=self._tensor(context_lens_host),
            block_tables=self._tensor(tables),
            sample_rows=self._tensor((cu_q[1:] - 1)[sampling]),
            num_decodes=int(is_longer[0]) if is_longer.size else num_chunks,
            block_size=self._block_size,
            cu_q_host=cu_q_host,
            context_lens_host=context_lens_host,
        )

    def _block_tables(self, batch: Batch) -> NDArray[np.int32]:
        rows = self._rows
        tables = np.zeros(
            (len(batch.chunks), max(len(c.block_ids) for c in batch.chunks)), np.int32
        )
        for i, chunk in enumerate(batch.chunks):
            known = rows.get(chunk.request_id)
            if known is None or known[0] is not chunk.block_ids:
                row = np.array(chunk.block_ids, np.int32)
                rows[chunk.request_id] = (chunk.block_ids, row)
            else:
                row = known[1]
            assert len(row) * self._block_size >= chunk.end, f"{chunk.request_id}: no block"
            tables[i, : len(row)] = row
        if len(rows) > self._max_rows:
            present = {chunk.request_id for chunk in batch.chunks}
            gone = [request_id for request_id in rows if request_id not in present]
            for request_id in gone[: len(rows) - self._max_rows]:
                del rows[request_id]
        return tables

    def _tensor(self, array: NDArray[np.int32] | NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device)
