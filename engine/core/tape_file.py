"""Tapes as files of JSON lines, plain or gzipped by name; it knows the events and runs none."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

from engine.core.batch import SampledToken, StepResult, TopLogprob
from engine.core.request import (
    FinishReason,
    LengthEstimate,
    RequestOrder,
    SamplingParams,
    Slo,
    TbtMode,
)
from engine.core.tape import (
    Aborted,
    AllFailed,
    Drained,
    StepFailed,
    StepFinished,
    StepStarted,
    Stopped,
    Submitted,
    TapeEvent,
)

_Fields = dict[str, Any]


class TapeError(ValueError):
    """The file is no tape; one sentence names the line."""


def save_tape(path: str | Path, events: Iterable[TapeEvent]) -> None:
    """Write one line per event."""
    with _open(path, "wt") as file:
        for event in events:
            file.write(encode(event) + "\n")


class TapeWriter:
    """Writes events as they come, a line each; for a `RecordingCore` of a long run."""

    def __init__(self, path: str | Path) -> None:
        self._file = _open(path, "wt")

    def __call__(self, event: TapeEvent) -> None:
        """Write one event; what was written survives the process."""
        self._file.write(encode(event) + "\n")
        self._file.flush()

    def close(self) -> None:
        """End the tape."""
        self._file.close()


def load_tape(path: str | Path) -> Iterator[TapeEvent]:
    """Yield the events of a file; raises TapeError, or OSError where there is none."""
    with _open(path, "rt") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decode(line)
            except (ValueError, KeyError, TypeError) as error:
                raise TapeError(f"tape {path}: line {number} is no event: {error!r}") from error


def _open(path: str | Path, mode: str) -> IO[str]:
    if str(path).endswith(".gz"):
        return cast(IO[str], gzip.open(path, mode, encoding="utf-8"))
    return cast(IO[str], open(path, mode, encoding="utf-8"))


def encode(event: TapeEvent) -> str:
    """Return the event as one line of JSON."""
    fields = {"event": type(event).__name__, **dataclasses.asdict(event)}
    return json.dumps(fields, separators=(",", ":"), default=bytes.hex)


def decode(line: str) -> TapeEvent:
    """Return the event of a line; raises ValueError, KeyError or TypeError where it is none."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return _DECODERS[fields.pop("event")](fields)


def _submitted(fields: _Fields) -> TapeEvent:
    order = fields.pop("order")
    sampling, slo = order.pop("sampling"), order.pop("slo")
    sampling["logit_bias"] = tuple([(token, bias) for token, bias in sampling["logit_bias"]])
    sampling["stop_token_ids"] = tuple(sampling["stop_token_ids"])
    slo["tbt_mode"] = TbtMode(slo["tbt_mode"])
    order["prompt"] = tuple(order["prompt"])
    order["previous_outputs"] = tuple(order.get("previous_outputs", ()))  # older tapes have none
    if order.get("estimate") is not None:
        order["estimate"] = LengthEstimate(**order["estimate"])
    made = RequestOrder(**order, sampling=SamplingParams(**sampling), slo=Slo(**slo))
    return Submitted(order=made, **fields)


def _aborted(fields: _Fields) -> TapeEvent:
    return Aborted(reason=FinishReason(fields.pop("reason")), **fields)


def _step_finished(fields: _Fields) -> TapeEvent:
    result = fields["result"]
    tokens = [
        SampledToken(
            token["request_id"],
            token["token_id"],
            token["logprob"],
            tuple([TopLogprob(**top) for top in token["top"]]),
            bytes.fromhex(token.get("vector", "")),
        )
        for token in result["tokens"]
    ]
    made = StepResult(
        result["step"],
        tuple(tokens),
        result["elapsed_ns"],
        tuple(result["failed"]),
        tuple(result.get("copied", ())),  # older tapes have none
        tuple(result.get("lost_copies", ())),
    )
    return StepFinished(fields["now_ns"], made)


_DECODERS: MappingProxyType[str, Callable[[_Fields], TapeEvent]] = MappingProxyType(
    {
        "Submitted": _submitted,
        "Aborted": _aborted,
        "Stopped": lambda fields: Stopped(**fields),
        "Drained": lambda fields: Drained(**fields),
        "StepStarted": lambda fields: StepStarted(**fields),
        "StepFinished": _step_finished,
        "StepFailed": lambda fields: StepFailed(**fields),
        "AllFailed": lambda fields: AllFailed(**fields),
    }
)
