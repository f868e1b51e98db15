"""The seam between the door and an engine: submit, token events, abort, snapshot.

`EngineClient` is what the gateway knows; the child-process client (engine/serving/process.py) and
the in-process one for tests both make it. Values only; nothing here knows a socket or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.core.decision import RequestRecord
from engine.core.request import RequestOrder
from engine.core.stats import RequestStats, Snapshot, StepStats, TokenEvent


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a ready engine says of itself, once per (re)start."""

    model: str  # the name under which /v1/models lists it
    model_path: str  # where its tokenizer is, readable by the gateway
    runner: str  # "generic", "lean" or "simulated"
    device: str
    dtype: str
    policy: str
    max_model_len: int
    block_size: int
    num_blocks: int
    max_batch_tokens: int
    max_batch_requests: int
    pid: int
    load_s: float
    num_host_blocks: int = 0  # room for parked contexts
    host_kv_format: str = ""  # "raw" or "int8"; empty where none can be parked
    policy_options: tuple[tuple[str, float], ...] = ()  # those that were given
    latency_profile: str = ""  # a name or a file
    has_grammars: bool = False  # it can hold an answer to a grammar (SamplingParams.grammar)
    embedding_size: int = 0  # numbers of an embedding (SamplingParams.embeds); 0: it makes none


FinishListener = Callable[[RequestStats], None]
StepListener = Callable[[StepStats], None]


class TokenStream(Protocol):
    """The events of one request; ends after the event that carries `finish_reason`.

    Bounded by the request's own max_tokens. Leaving it early does not abort: call `abort`.
    """

    async def next_events(self) -> list[TokenEvent]:
        """Wait for the next events, at least one; [] once the stream has ended."""
        ...


class EngineClient(Protocol):
    """One engine, wherever it runs."""

    @property
    def info(self) -> EngineInfo | None:
        """What the engine said at its last start; None before the first."""
        ...

    @property
    def ready(self) -> bool:
        """True while the engine answers (false while it loads or restarts)."""
        ...

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest snapshot, at most one step old while the engine works."""
        ...

    async def start(self) -> None:
        """Start the engine and return when it is ready; raises ModelLoadError with one line."""
        ...

    async def close(self) -> None:
        """End the engine; open streams get a FAILED event."""
        ...

    def submit(self, order: RequestOrder) -> TokenStream:
        """Hand over a request; raises EngineUnavailable when no engine answers.

        A refusal by the engine arrives as a last event with FinishReason.REJECTED.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request as CANCELLED; unknown or finished ids are ignored."""
        ...

    def stop(self, request_id: str, num_output_tokens: int) -> None:
        """End a request as STOP after its first `num_output_tokens` (a stop string was found).

        The stats of its last event then count that many tokens.
        """
        ...

    async def explain(self, request_id: str) -> RequestRecord | None:
        """Return what was decided about a request; None where this engine knows nothing of it.

        Answered between two steps. Raises EngineUnavailable when no engine answers in time.
        """
        ...

    def add_finish_listener(self, listener: FinishListener) -> None:
        """Call `listener` with the stats of every request that ends, whatever way it ended."""
        ...

    def add_step_listener(self, listener: StepListener) -> None:
        """Call `listener` with the stats of every step."""
        ...
