"""The plain records that every metric, bill and report is made of; nothing here is aggregated.

Times are nanoseconds of the monotonic clock, or durations in nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.core.batch import TopLogprob
from engine.core.load import EngineLoad
from engine.core.request import FinishReason


@dataclass(frozen=True, slots=True)
class RequestStats:
    """The whole story of one finished request, made once at its end.

    `num_output_tokens` counts the tokens that belong to the answer: for a stop string found by the
    gateway, those up to the stop. `late_tokens` counts tokens after the first that came later than
    the tier's TBT allowed, as seen at the engine.
    """

    request_id: str
    tenant: str
    tier: str
    finish_reason: FinishReason
    arrival_ns: int
    finished_ns: int
    first_scheduled_ns: int | None
    first_token_ns: int | None
    last_token_ns: int | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    preemptions: int
    late_tokens: int = 0
    parks: int = 0
    parked_ns: int = 0  # time spent on the host
    predicted_tokens: float = 0.0  # the guess of its output made on arrival, 0 without one
    detail: str = ""  # for rejected and failed: one clear sentence


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one request, or its end, or both; the last event carries the stats.

    `token_id` is None on an event that only ends the request (abort, rejection, failure), and on
    one that brings an embedding: float32, little-endian.
    """

    request_id: str
    token_id: int | None
    at_ns: int
    logprob: float | None = None
    top: tuple[TopLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stats: RequestStats | None = None
    vector: bytes = b""


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step as it happened."""

    step: int
    started_ns: int
    elapsed_ns: int
    num_decodes: int
    num_prefill_tokens: int
    num_preempted: int
    num_running: int
    num_waiting: int
    free_blocks: int
    num_recomputed_tokens: int = 0  # computed before and lost to a preemption or a fault
    num_parked: int = 0
    num_copied_tokens: int = 0  # that reached the host or the device, by this step's result
    predicted_ns: int = 0  # what the latency model expected, 0 without one


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine's state between two steps, an immutable value for admission and dashboards.

    `prompt_tokens_total` and `cached_tokens_total` count each request once, when it first runs.
    `parked` are on the host or on their way there or back; `leaving` and `returning` of them are on
    the way. `bank_ms` is by how much the tokens of running and parked streams are early, summed up,
    `least_bank_ms` the least of them (negative: late), None without any; at most 250 ms old.
    `latency_factor` is by what the latency model has learnt to correct its profile, and
    `latency_error_p50` and `latency_error_p99` how far it was off in its last steps, as a share.
    """

    step: int
    at_ns: int
    waiting: int
    running: int
    parked: int
    waiting_prompt_tokens: int
    free_blocks: int
    num_blocks: int
    waiting_by_tier: tuple[tuple[str, int], ...] = ()
    running_by_tier: tuple[tuple[str, int], ...] = ()
    submitted_total: int = 0
    finished_total: int = 0
    preemptions_total: int = 0
    prompt_tokens_total: int = 0
    output_tokens_total: int = 0
    cached_tokens_total: int = 0
    computed_tokens_total: int = 0
    recomputed_tokens_total: int = 0  # the recompute tax is this share of all computed tokens
    parks_total: int = 0
    free_host_blocks: int = 0
    num_host_blocks: int = 0
    leaving: int = 0
    returning: int = 0
    parked_tokens: int = 0
    coming_blocks: int = 0  # freed when the copies under way are over
    copied_out_tokens_total: int = 0
    copied_in_tokens_total: int = 0
    lost_copies_total: int = 0
    bank_ms: float = 0.0
    least_bank_ms: float | None = None
    parked_by_tier: tuple[tuple[str, int], ...] = ()
    latency_factor: float | None = None
    latency_error_p50: float | None = None
    latency_error_p99: float | None = None
    load: EngineLoad | None = None  # at most a fraction of a second old

    @property
    def copied_tokens_total(self) -> int:
        """Tokens carried, to the host and back."""
        return self.copied_out_tokens_total + self.copied_in_tokens_total


class Observer(Protocol):
    """Reads records as they are made; must neither block nor raise."""

    def on_step(self, stats: StepStats) -> None:
        """Called after every step."""
        ...

    def on_finish(self, stats: RequestStats) -> None:
        """Called once per request, whatever way it ended."""
        ...
