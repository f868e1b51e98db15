"""A recorded run of a core: every command and step with its time, and how to run it again.

Law L37: the same commands and the same answers of the executor, at the same times, make a fresh
core of the same making plan the very same batches. A batch stands on the tape as a digest of all
its fields (it would be mostly block tables); a difference is therefore told by its step. It knows
no file (tape_file.py does) and no loop: whoever drives a core drives a `RecordingCore` instead.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from engine.core.batch import Batch, Chunk, StepResult
from engine.core.decision import RequestRecord
from engine.core.engine_core import EngineCore
from engine.core.errors import RequestRefused
from engine.core.executor import Capacity
from engine.core.policy import SchedulingPolicy
from engine.core.request import FinishReason, RequestOrder
from engine.core.stats import Snapshot, TokenEvent


@dataclass(frozen=True, slots=True)
class Submitted:
    """An order came; `refusal` is the reason where it was refused."""

    now_ns: int
    order: RequestOrder
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Aborted:
    """A request was ended from outside."""

    now_ns: int
    request_id: str
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Stopped:
    """The gateway found a stop string."""

    now_ns: int
    request_id: str
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Drained:
    """No new requests from here on."""


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step was planned: its number and the digest of its batch, 0 and "" where none was."""

    now_ns: int
    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class StepFinished:
    """The step that was out was answered."""

    now_ns: int
    result: StepResult


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The step that was out met a fault."""

    now_ns: int
    detail: str


@dataclass(frozen=True, slots=True)
class AllFailed:
    """The executor is gone."""

    now_ns: int
    detail: str


TapeEvent: TypeAlias = (
    Submitted | Aborted | Stopped | Drained | StepStarted | StepFinished | StepFailed | AllFailed
)


class ReplayError(AssertionError):
    """The fresh core did something else than the recorded one; one sentence says where."""


def batch_digest(batch: Batch) -> str:
    """Return 32 hex digits that stand for every field of a batch."""
    sha = hashlib.sha256(f"{batch.step}/{len(batch.chunks)}/{len(batch.parks)}".encode())
    for chunk in batch.chunks:
        _add_chunk(sha.update, chunk)
    for copy in (*batch.parks, *batch.returns):
        text = f"{copy.request_id}/{copy.number}/{copy.num_tokens}"
        _add(sha.update, text, copy.block_ids, copy.host_block_ids)
    return sha.hexdigest()[:32]


def _add_chunk(update: Callable[[bytes], None], chunk: Chunk) -> None:
    text = f"{chunk.request_id}/{chunk.start}/{chunk.output_index}/{chunk.sampling!r}"
    if chunk.sampling is not None and chunk.sampling.grammar:  # not in its repr
        text += f"/{chunk.sampling.grammar}"
    _add(update, text, chunk.token_ids, chunk.block_ids, chunk.prompt_ids, chunk.output_ids)


def _add(update: Callable[[bytes], None], text: str, *numbers: tuple[int, ...]) -> None:
    lengths = [len(row) for row in numbers]
    update(f"|{text!r}{lengths}".encode())  # with lengths, no two batches run together alike
    for row in numbers:
        update(array("q", row).tobytes())


class RecordingCore:
    """An EngineCore that tells `write` of everything it is told, in order; else the same."""

    def __init__(self, core: EngineCore, write: Callable[[TapeEvent], None]) -> None:
        self._core = core
        self._write = write

    @property
    def capacity(self) -> Capacity:
        """What the executor said it can hold."""
        return self._core.capacity

    @property
    def policy(self) -> SchedulingPolicy:
        """The policy in use."""
        return self._core.policy

    @property
    def has_work(self) -> bool:
        """True while any request waits or runs, or a step is out."""
        return self._core.has_work

    def submit(self, order: RequestOrder, now_ns: int) -> None:
        """Take a request; raises RequestRefused, and the tape has that too."""
        try:
            self._core.submit(order, now_ns)
        except RequestRefused as refusal:
            self._write(Submitted(now_ns, order, refusal.reason.value))
            raise
        self._write(Submitted(now_ns, order))

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._core.drain()
        self._write(Drained())

    def abort(
        self, request_id: str, now_ns: int, reason: FinishReason = FinishReason.CANCELLED
    ) -> list[TokenEvent]:
        """End a request at once."""
        events = self._core.abort(request_id, now_ns, reason)
        self._write(Aborted(now_ns, request_id, reason))
        return events

    def stop(self, request_id: str, num_output_tokens: int, now_ns: int) -> list[TokenEvent]:
        """End a request as STOP."""
        events = self._core.stop(request_id, num_output_tokens, now_ns)
        self._write(Stopped(now_ns, request_id, num_output_tokens))
        return events

    def start_step(self, now_ns: int) -> Batch | None:
        """Return the next batch to execute."""
        batch = self._core.start_step(now_ns)
        self._write(_started(batch, now_ns))
        return batch

    def finish_step(self, batch: Batch, result: StepResult, now_ns: int) -> list[TokenEvent]:
        """Take the result of the batch that is out."""
        events = self._core.finish_step(batch, result, now_ns)
        self._write(StepFinished(now_ns, result))
        return events

    def fail_step(self, batch: Batch, now_ns: int, detail: str) -> list[TokenEvent]:
        """The batch that is out met an ExecutorFault."""
        events = self._core.fail_step(batch, now_ns, detail)
        self._write(StepFailed(now_ns, detail))
        return events

    def fail_all(self, now_ns: int, detail: str) -> list[TokenEvent]:
        """End every request as FAILED."""
        events = self._core.fail_all(now_ns, detail)
        self._write(AllFailed(now_ns, detail))
        return events

    def snapshot(self, now_ns: int) -> Snapshot:
        """Return the present as a value."""
        return self._core.snapshot(now_ns)

    def explain(self, request_id: str, now_ns: int) -> RequestRecord | None:
        """Return what was decided about a request; nothing of it goes to the tape."""
        return self._core.explain(request_id, now_ns)

    def check_integrity(self) -> None:
        """Assert the core's laws."""
        self._core.check_integrity()


def _started(batch: Batch | None, now_ns: int) -> StepStarted:
    if batch is None:
        return StepStarted(now_ns, 0, "")
    return StepStarted(now_ns, batch.step, batch_digest(batch))


def replay(events: Iterable[TapeEvent], core: EngineCore) -> list[TokenEvent]:
    """Run a tape through a fresh core made like the recorded one; returns all token events.

    Raises ReplayError at the first batch or refusal that differs.
    """
    out: Batch | None = None
    told: list[TokenEvent] = []
    for event in events:
        match event:
            case StepStarted(now_ns=now_ns):
                out = core.start_step(now_ns)
                if _started(out, now_ns) != event:
                    planned = "nothing" if out is None else f"{out.num_tokens} tokens"
                    raise ReplayError(f"step {event.step}: another batch ({planned}) was planned")
            case StepFinished(now_ns=now_ns, result=result):
                told += core.finish_step(_dispatched(out), result, now_ns)
            case StepFailed(now_ns=now_ns, detail=detail):
                told += core.fail_step(_dispatched(out), now_ns, detail)
            case Submitted():
                _submit(core, event)
            case Aborted(now_ns=now_ns, request_id=request_id, reason=reason):
                told += core.abort(request_id, now_ns, reason)
            case Stopped(now_ns=now_ns, request_id=request_id, num_output_tokens=count):
                told += core.stop(request_id, count, now_ns)
            case Drained():
                core.drain()
            case AllFailed(now_ns=now_ns, detail=detail):
                told += core.fail_all(now_ns, detail)
    return told


def _dispatched(batch: Batch | None) -> Batch:
    if batch is None:
        raise ReplayError("the tape ends a step that it never began")
    return batch


def _submit(core: EngineCore, event: Submitted) -> None:
    refusal = ""
    try:
        core.submit(event.order, event.now_ns)
    except RequestRefused as refused:
        refusal = refused.reason.value
    if refusal != event.refusal:
        raise ReplayError(
            f"request {event.order.id}: {refusal or 'taken'}, on the tape "
            f"{event.refusal or 'taken'}"
        )
