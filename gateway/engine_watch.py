"""What the engine has been doing in the last seconds, from its own snapshots and step records.

It keeps a handful of numbers a second for some minutes, and no request. Totals of the engine
become rates; an engine that was restarted begins anew.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from engine.core.clock import NS_PER_MS, NS_PER_S
from engine.core.stats import Snapshot, StepStats

EVERY_NS = NS_PER_S
NUM_SAMPLES = 11  # ten seconds between the oldest and the newest
NUM_KEPT = 301  # for charts

# Totals of a snapshot -> their name as a rate.
RATES = {
    "submitted_total": "requests_in_per_s",
    "finished_total": "requests_out_per_s",
    "output_tokens_total": "output_tokens_per_s",
    "computed_tokens_total": "computed_tokens_per_s",
    "recomputed_tokens_total": "recomputed_tokens_per_s",
    "preemptions_total": "preemptions_per_s",
    "parks_total": "parks_per_s",
    "copied_out_tokens_total": "tokens_out_per_s",
    "copied_in_tokens_total": "tokens_in_per_s",
}


@dataclass(frozen=True, slots=True)
class _Steps:
    """Steps added up since the gateway began: time in ns, and that of steps with a prediction."""

    count: int = 0
    busy_ns: int = 0
    predicted_ns: int = 0
    judged_ns: int = 0  # what the predicted ones really took
    longest_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Sample:
    at_ns: int
    snapshot: Snapshot
    steps: _Steps


class EngineWatch:
    """Bounded memory of one engine; used from the event loop."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=NUM_SAMPLES)
        self._history: deque[tuple[int, Snapshot]] = deque(maxlen=NUM_KEPT)
        self._count = self._busy_ns = self._predicted_ns = self._judged_ns = 0
        self._longest: deque[int] = deque([0], maxlen=NUM_SAMPLES)  # by second
        self._owing_ns: int | None = None  # since when the engine has owed somebody something

    def on_step(self, stats: StepStats) -> None:
        """A step is over."""
        elapsed_ns = stats.elapsed_ns
        self._count += 1
        self._busy_ns += elapsed_ns
        if stats.predicted_ns:
            self._predicted_ns += stats.predicted_ns
            self._judged_ns += elapsed_ns
        if elapsed_ns > self._longest[-1]:
            self._longest[-1] = elapsed_ns

    def look(self, snapshot: Snapshot | None, now_ns: int, *, owes: bool = False) -> None:
        """Keep a sample, once a second; called a few times a second.

        `owes`: somebody waits at this door for a first token, whether the engine knows or not.
        """
        if snapshot is None:
            return
        if not owes and not snapshot.waiting + snapshot.running + snapshot.parked:
            self._owing_ns = None
        elif self._owing_ns is None:
            self._owing_ns = now_ns
        if self._samples:
            last = self._samples[-1]
            if snapshot.submitted_total < last.snapshot.submitted_total:
                self._samples.clear()  # another engine
            elif now_ns - last.at_ns < EVERY_NS:
                return
        self._samples.append(_Sample(now_ns, snapshot, self._steps()))
        self._history.append((now_ns, replace(snapshot, load=None)))
        self._longest.append(0)

    def silent_ns(self, snapshot: Snapshot | None, now_ns: int) -> int:
        """Return for how long the engine has owed something and has said nothing.

        It says something after every step, and makes steps as long as it has work.
        """
        if snapshot is None or self._owing_ns is None:
            return 0
        return max(0, now_ns - max(self._owing_ns, snapshot.at_ns))

    def history(self) -> list[tuple[int, Snapshot]]:
        """Return a snapshot a second of the last minutes, without loads, the oldest first."""
        return list(self._history)

    def _steps(self) -> _Steps:
        longest_ns = max(self._longest)
        return _Steps(self._count, self._busy_ns, self._predicted_ns, self._judged_ns, longest_ns)

    def recent(self, snapshot: Snapshot, now_ns: int) -> dict[str, Any] | None:
        """Return what the last seconds brought, None before there are two moments to compare."""
        if not self._samples or now_ns <= (first := self._samples[0]).at_ns:
            return None
        before, seconds = first.snapshot, (now_ns - first.at_ns) / NS_PER_S
        if snapshot.submitted_total < before.submitted_total:
            return None
        rates = {
            name: round((getattr(snapshot, total) - getattr(before, total)) / seconds, 2)
            for total, name in RATES.items()
        }
        computed = snapshot.computed_tokens_total - before.computed_tokens_total
        recomputed = snapshot.recomputed_tokens_total - before.recomputed_tokens_total
        return {
            "seconds": round(seconds, 2),
            **rates,
            "recompute_share": _share(recomputed, computed),
            "prefix_hit_share": _share(
                snapshot.cached_tokens_total - before.cached_tokens_total,
                snapshot.prompt_tokens_total - before.prompt_tokens_total,
            ),
            "steps": _step_fields(first.steps, self._steps(), seconds),
        }


def _step_fields(first: _Steps, last: _Steps, seconds: float) -> dict[str, Any]:
    count, busy_ns = last.count - first.count, last.busy_ns - first.busy_ns
    return {
        "per_s": round(count / seconds, 2),
        "mean_ms": round(busy_ns / count / NS_PER_MS, 3) if count else None,
        "longest_ms": round(last.longest_ns / NS_PER_MS, 3),
        "busy_share": round(min(1.0, busy_ns / NS_PER_S / seconds), 4),
        # 1 where the latency model, with its learnt correction, is right.
        "measured_over_predicted": _share(
            last.judged_ns - first.judged_ns, last.predicted_ns - first.predicted_ns
        ),
    }


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
