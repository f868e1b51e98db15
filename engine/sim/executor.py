"""An executor that computes nothing: it asks a latency model how long a batch takes.

It knows the true output lengths and answers with the end token when one is reached. Its latency
model is its own: what the scheduler learns about its copy never reaches the simulated device.

Its clock counts the time of its steps. Copies go on beside them and are reported by the first step
that ends no earlier; a batch without chunks lasts until the first copy under way is over. No time
is lost between steps: a core asks for the next one at once while anybody, or any copy, is there.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.core.batch import Batch, SampledToken, StepResult
from engine.core.errors import ExecutorFault
from engine.core.executor import Capacity
from engine.core.latency_model import LatencyModel, StepCost
from engine.sim.faults import CopyFaults, StepFaults
from engine.sim.link import SimulatedLink

EOS = 0
FIRST_OWN_TOKEN = 1  # token ids from here on say whose token it is, never what it means


class SimulatedFault(ExecutorFault):
    """A step that failed after `elapsed_ns`."""

    def __init__(self, elapsed_ns: int) -> None:
        super().__init__("a simulated fault of the executor")
        self.elapsed_ns = elapsed_ns


class SimulatedExecutor:
    """Answers batches in virtual time; `lengths` are the true output lengths by request id."""

    __slots__ = ("_capacity", "_eos", "_faults", "_last", "_link", "_model", "_now_ns", "_words")

    def __init__(
        self,
        capacity: Capacity,
        model: LatencyModel,
        lengths: Mapping[str, int],
        faults: StepFaults | None = None,
        copy_faults: CopyFaults | None = None,
    ) -> None:
        self._capacity = capacity
        self._model = model
        self._faults = faults
        self._link = SimulatedLink(model, capacity.block_size, copy_faults)
        self._now_ns = 0
        # A token object per request, made once: this runs for every row of every step.
        self._last = {name: length - 1 for name, length in lengths.items()}
        self._eos = {name: SampledToken(name, EOS) for name in lengths}
        self._words = {
            name: SampledToken(name, FIRST_OWN_TOKEN + number)
            for number, name in enumerate(lengths)
        }

    @property
    def capacity(self) -> Capacity:
        """What the simulated device can hold."""
        return self._capacity

    def execute(self, batch: Batch) -> StepResult:
        """Return the step's tokens and the time it took; raises SimulatedFault by seed."""
        link = self._link
        for copy in batch.parks:
            link.begin(copy, self._now_ns, is_return=False)
        for copy in batch.returns:
            link.begin(copy, self._now_ns, is_return=True)
        elapsed_ns = self._elapsed_ns(batch)
        last, eos, words, faults = self._last, self._eos, self._words, self._faults
        tokens = [
            (eos if c.output_index == last[c.request_id] else words)[c.request_id]
            for c in batch.chunks
            if c.sampling is not None
        ]
        failed: tuple[str, ...] = ()
        if faults is not None:
            slowdown, fails = faults.slowdown(), faults.fails()
            if batch.chunks:  # the link is not slower than it is
                elapsed_ns = max(1, int(elapsed_ns * slowdown))
            if fails:
                self._now_ns += elapsed_ns
                link.stop()
                raise SimulatedFault(elapsed_ns)
            failed = faults.failed_rows([token.request_id for token in tokens])
            if failed:
                tokens = [token for token in tokens if token.request_id not in failed]
        self._now_ns += elapsed_ns
        copied: tuple[int, ...] = ()
        lost: tuple[int, ...] = ()
        if not link.is_idle:
            copied, lost = link.take(self._now_ns)
        return StepResult(batch.step, tuple(tokens), elapsed_ns, failed, copied, lost)

    def _elapsed_ns(self, batch: Batch) -> int:
        """The same sum as `LatencyModel.step_ns`, with the decodes added up at once."""
        chunks = batch.chunks
        if not chunks:
            return max(1, self._link.next_end_ns() - self._now_ns)
        starts = [c.start for c in chunks if c.output_index and len(c.token_ids) == 1]
        cost = StepCost(self._model)
        cost.add_decodes(len(starts), sum(starts))
        if len(starts) < len(chunks):
            for chunk in chunks:
                if not chunk.output_index or len(chunk.token_ids) != 1:
                    cost.add_prefill(chunk.start, len(chunk.token_ids))
        return max(1, int(cost.total_ns))
