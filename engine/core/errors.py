"""The engine's operating errors, drawn as one tree; programming errors are assertions instead.

EngineError
├── RequestRefused       this request cannot be taken: `reason` is from a closed list
├── EngineUnavailable    the engine process is starting, restarting or gone
├── ExecutorFault        one step failed and the device is still usable; its requests recompute
└── ModelLoadError       the model cannot be loaded: one clear line for the operator
"""

from __future__ import annotations

from enum import StrEnum


class RefusalReason(StrEnum):
    """Why the engine refuses a request; closed list."""

    NEVER_FITS = "never_fits"  # prompt + max_tokens exceeds the context window or the whole KV pool
    QUEUE_FULL = "queue_full"  # the bounded waiting queue (requests or prompt tokens) is full
    EMPTY_PROMPT = "empty_prompt"
    DUPLICATE_ID = "duplicate_id"
    DRAINING = "draining"


class EngineError(Exception):
    """Base of every operating error of the engine."""


class RequestRefused(EngineError):
    """The request was not taken; nothing of it is held."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class EngineUnavailable(EngineError):
    """No engine answers at the moment; the supervisor is bringing one back."""


class ExecutorFault(EngineError):
    """A step failed in a way the executor survived (for example device memory ran out)."""


class ModelLoadError(EngineError):
    """The model cannot be loaded; the message is one clear line that says what to do."""
