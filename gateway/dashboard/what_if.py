"""Says how requests of the past would have fared by other targets of a tier; pure, it asks nobody.

Times of the past are taken as they were: other targets would also have changed what the scheduler
did first, and that is not played through (`tiergate replay` and the simulator do). The answer for
each request is exact where its way of counting gaps (`tbt_mode`) stays the same; where it changes,
its later tokens are taken as they were judged, and `unknown` says for how many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from gateway.principal import slo_of
from tenants.slo import LATE_SHARE, Objective, SloRecord, Verdict, judge
from tenants.values import TierRecord

HIT_MOST = 5
# Two standard errors are 95 of 100 samples.
DEVIATIONS = 1.959964
SHOWN = (Objective.ALL, Objective.TTFT, Objective.TBT)


@dataclass(frozen=True, slots=True)
class Share:
    """Good ones of those that count."""

    counted: int = 0
    good: int = 0

    @property
    def value(self) -> float | None:
        """The good share; None where nothing counts."""
        return self.good / self.counted if self.counted else None

    def with_verdict(self, verdict: bool | None) -> Share:
        """Return the share with one more request."""
        return self if verdict is None else Share(self.counted + 1, self.good + verdict)


@dataclass(frozen=True, slots=True)
class Change:
    """A share by the targets as they are, and by the others; `error` of the latter (95 %)."""

    now: Share
    then: Share
    error: float

    @property
    def lost(self) -> int:
        """How many more requests would have missed; below 0: how many more would have met."""
        return (self.then.counted - self.then.good) - (self.now.counted - self.now.good)


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The answer: by objective, and for the tenants for whom most changes."""

    looked_at: int
    share: float  # of all requests of the time that were looked at
    unknown: int
    objectives: Mapping[Objective, Change]
    tenants: Sequence[tuple[str, Change]]
    is_met: bool | None  # whether enough requests would have met what the tier wants of them

    @property
    def is_sample(self) -> bool:
        """True where not every request was looked at."""
        return self.share < 1


def what_if(
    records: Iterable[SloRecord], share: float, now: TierRecord, then: TierRecord
) -> WhatIf:
    """Return how these requests, a `share` of all of one tier, would have fared by `then`."""
    looked_at = unknown = 0
    sums = {objective: (Share(), Share()) for objective in SHOWN}
    tenants: dict[str, tuple[Share, Share]] = {}
    for record in records:
        looked_at += 1
        unknown += not is_exact(record, then)
        before, after = judged_by(record, now), judged_by(record, then)
        for objective, (was, would_be) in sums.items():
            sums[objective] = (
                was.with_verdict(before.of(objective)),
                would_be.with_verdict(after.of(objective)),
            )
        was, would_be = tenants.get(record.tenant_id, (Share(), Share()))
        tenants[record.tenant_id] = (
            was.with_verdict(before.met),
            would_be.with_verdict(after.met),
        )
    changes = [(name, _change(*pair, share)) for name, pair in tenants.items()]
    hit = sorted((c for c in changes if c[1].lost), key=lambda c: (-abs(c[1].lost), c[0]))
    overall = sums[Objective.ALL][1].value
    return WhatIf(
        looked_at=looked_at,
        share=share,
        unknown=unknown,
        objectives={name: _change(*pair, share) for name, pair in sums.items()},
        tenants=hit[:HIT_MOST],
        is_met=None if overall is None else overall >= then.objective,
    )


def judged_by(record: SloRecord, tier: TierRecord) -> Verdict:
    """Return the verdict on a request by the targets of `tier`, its times being as they were."""
    gaps, late_gaps = record.gaps, record.late_gaps
    if is_exact(record, tier) and record.needed_tbt_ns is not None:
        is_met = record.needed_tbt_ns <= slo_of(tier).tbt_ns
        gaps, late_gaps = (LATE_SHARE, 0) if is_met else (1, 1)
    return judge(
        record.outcome,
        ttft_ns=record.ttft_ns,
        ttft_due_ns=slo_of(tier).first_token_due_ns(0, record.prompt_tokens),
        total_ns=record.total_ns,
        gaps=gaps,
        late_gaps=late_gaps,
    )


def is_exact(record: SloRecord, tier: TierRecord) -> bool:
    """True where the gaps of a request can be judged by another promise of this tier."""
    if record.gaps == 0:
        return True
    same_mode = slo_of(tier, stream=record.stream).tbt_mode.value == record.tbt_mode
    return same_mode and record.needed_tbt_ns is not None


def _change(now: Share, then: Share, share: float) -> Change:
    return Change(now, then, sampling_error(then, share))


def sampling_error(found: Share, share: float) -> float:
    """Return by how much a share may be off (95 %, Wilson's interval, half of its width).

    0 where all were looked at; less the larger the part that was (finite population correction).
    """
    n = found.counted
    if share >= 1 or n == 0:
        return 0.0
    p, z2 = found.good / n, DEVIATIONS**2
    half = DEVIATIONS * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return half * sqrt(1 - share)
