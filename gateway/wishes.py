"""What a client may ask for beside its answer: to wait longer than its tier has to; never less.

Objectives come in the headers of llm-d, Dynamo and SGLang's router, which clients and proxies made
for those send already, and in vLLM's body field `priority` (a lower number is sooner). All of them
can only loosen: what is tighter than the tier's own promise is the tier's own. Our own word is
`patience` (0 to 100, as a header or in the body): so many times the tier's time to first token
later, and its weight divided likewise. Nobody can take that for its opposite. Who asks, in which
class and for which tenant's fair share is never read from a request: the key says it.

Sources: llm-d-router (`x-llm-d-slo-*`, formerly `x-slo-*`), Dynamo (`x-dynamo-slo-ttft-ms`),
SGLang pull request 40292 (`x-sgl-*`), vLLM's protocol (`priority`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.request import Slo
from gateway.errors import ApiError, bad_value

MOST_PATIENCE = 100
MOST_NS = 24 * 3600 * NS_PER_S  # as a tier's own

TTFT, TPOT, TPS, PATIENCE = "ttft", "tpot", "tps", "patience"
HEADERS: Mapping[bytes, str] = MappingProxyType(
    {
        b"x-llm-d-slo-ttft-ms": TTFT,
        b"x-slo-ttft-ms": TTFT,
        b"x-dynamo-slo-ttft-ms": TTFT,
        b"x-sgl-ttft-slo-ms": TTFT,
        b"x-llm-d-slo-tpot-ms": TPOT,
        b"x-slo-tpot-ms": TPOT,
        b"x-sgl-tps-slo": TPS,
        b"x-tiergate-patience": PATIENCE,
    }
)
_NUMBER = re.compile(rb"[0-9]{1,15}(\.[0-9]{1,15})?")


@dataclass(frozen=True, slots=True)
class Wishes:
    """Targets the client is content with, in nanoseconds (0: none), and its patience."""

    ttft_ns: int = 0
    tpot_ns: int = 0
    patience: int = 0

    def and_also(self, other: Wishes) -> Wishes:
        """Return both together: the looser of each."""
        return Wishes(
            max(self.ttft_ns, other.ttft_ns),
            max(self.tpot_ns, other.tpot_ns),
            max(self.patience, other.patience),
        )

    def ease(self, slo: Slo, num_prompt_tokens: int) -> Slo:
        """Return the promise with nothing in it tighter, and what was asked for looser.

        A wish counts from the arrival to the first token, whatever the prompt's length; a promise
        grows with that. `num_prompt_tokens` is the longest prompt's.
        """
        grown_ns = slo.ttft_ns_per_1k_prompt_tokens * num_prompt_tokens // 1000
        patient_ns = min(slo.ttft_ns * (1 + self.patience), max(MOST_NS, slo.ttft_ns))
        return dataclasses.replace(
            slo,
            ttft_ns=max(patient_ns, self.ttft_ns - grown_ns),
            tbt_ns=max(slo.tbt_ns, self.tpot_ns),
        )

    def ease_weight(self, weight: float) -> float:
        """Return a tier's weight, or less of it."""
        return weight / (1 + self.patience)


NO_WISHES = Wishes()


def patience_of(priority: int | None, patience: int | None) -> Wishes:
    """Return what the body's fields come to; a `priority` below 0 would be sooner, and is 0."""
    most = max(priority or 0, patience or 0)
    return Wishes(patience=min(most, MOST_PATIENCE)) if most > 0 else NO_WISHES


def read_wishes(headers: Iterable[tuple[bytes, bytes]]) -> Wishes:
    """Return what raw headers (names in lower case) ask for; raises ApiError for what is no number.

    Where one thing is asked for more than once, the tightest counts.
    """
    found: dict[str, list[float]] = {}
    for name, raw in headers:
        kind = HEADERS.get(name)
        if kind is not None:
            found.setdefault(kind, []).append(_number(name, raw))
    if not found:
        return NO_WISHES
    gaps_ms = found.get(TPOT, [])
    gaps_ms += [1000 / tps if tps else MOST_NS / NS_PER_MS for tps in found.get(TPS, ())]
    return Wishes(
        _ns(min(found.get(TTFT, (0,)))),
        _ns(min(gaps_ms, default=0)),
        min(int(min(found.get(PATIENCE, (0,)))), MOST_PATIENCE),
    )


def _ns(ms: float) -> int:
    return min(int(min(ms, MOST_NS) * NS_PER_MS), MOST_NS)


def _number(name: bytes, raw: bytes) -> float:
    if _NUMBER.fullmatch(raw.strip()) is None:
        raise _fault(name)
    return float(raw)


def _fault(name: bytes) -> ApiError:
    header = name.decode()
    return bad_value(header, f"The header '{header}' must be a number, 0 or more.")
