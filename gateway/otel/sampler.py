"""Which requests are traced: as their caller decided, else a fixed share; it draws no span.

The share is taken of the trace id, as the SDKs of OpenTelemetry do (`parentbased_traceidratio`), so
that several services with one ratio choose the same traces. Anybody may send the sampled flag:
beyond the share, callers get only so many traces a second, and then the share decides.
"""

from __future__ import annotations

from engine.core.clock import NS_PER_S, Clock
from gateway.otel.trace_context import Parent

_HALF = 16  # digits of a trace id that the share is taken of: the last 64 bits


class Sampler:
    """One per gateway. `forced_per_s` bounds what callers may ask for beyond `ratio`."""

    def __init__(self, ratio: float, forced_per_s: float, clock: Clock) -> None:
        self._bound = round(ratio * 2**64)
        self._per_s = forced_per_s
        self._clock = clock
        # A bucket of one second's traces, at least one where there are any at all.
        self._most = max(forced_per_s, 1.0) if forced_per_s > 0 else 0.0
        self._left = self._most
        self._at_ns = clock.now_ns()

    def samples(self, trace_id: str, parent: Parent | None) -> bool:
        """True where this request is to be traced."""
        if parent is not None and not parent.is_sampled:
            return False
        if int(trace_id[_HALF:], 16) < self._bound:
            return True
        return parent is not None and self._may_force()

    def _may_force(self) -> bool:
        now_ns = self._clock.now_ns()
        gained = (now_ns - self._at_ns) / NS_PER_S * self._per_s
        self._left, self._at_ns = min(self._left + gained, self._most), now_ns
        if self._left < 1:
            return False
        self._left -= 1
        return True
