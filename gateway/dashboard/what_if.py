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

from engine.core.request import Slo
from gateway.principal import slo_of
from tenants.slo import Objective, SloRecord, Verdict, is_steady, judge
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
    present, other = Targets.of(now), Targets.of(then)
    # How many count and how many are good: by objective, and by tenant for the overall one.
    sums: dict[Objective | str, list[int]] = {objective: [0, 0, 0, 0] for objective in SHOWN}
    for record in records:
        looked_at += 1
        unknown += not other.is_exact(record)
        before, after = present.verdict(record), other.verdict(record)
        for name, was, would_be in (
            (Objective.TTFT, before.ttft_met, after.ttft_met),
            (Objective.TBT, before.tbt_met, after.tbt_met),
            (Objective.ALL, before.met, after.met),
            (record.tenant_id, before.met, after.met),
        ):
            row = sums.setdefault(name, [0, 0, 0, 0])
            row[0] += was is not None
            row[1] += was is True
            row[2] += would_be is not None
            row[3] += would_be is True
    shares = {name: (Share(row[0], row[1]), Share(row[2], row[3])) for name, row in sums.items()}
    changes = [(name, _change(*pair, share)) for name, pair in shares.items() if name not in SHOWN]
    hit = sorted((c for c in changes if c[1].lost), key=lambda c: (-abs(c[1].lost), c[0]))
    overall = shares[Objective.ALL][1].value
    return WhatIf(
        looked_at=looked_at,
        share=share,
        unknown=unknown,
        objectives={name: _change(*shares[name], share) for name in SHOWN},
        tenants=hit[:HIT_MOST],
        is_met=None if overall is None else overall >= then.objective,
    )


@dataclass(frozen=True, slots=True)
class Targets:
    """What a tier promises, in the engine's units; made once for all requests."""

    slo: Slo
    plain_mode: str  # of an answer that is not streamed

    @classmethod
    def of(cls, tier: TierRecord) -> Targets:
        """Return the targets of a tier."""
        return cls(slo_of(tier), slo_of(tier, stream=False).tbt_mode.value)

    def is_exact(self, record: SloRecord) -> bool:
        """True where the gaps of a request can be judged by these targets."""
        if record.gaps == 0:
            return True
        mode = self.slo.tbt_mode.value if record.stream else self.plain_mode
        return mode == record.tbt_mode and record.needed_tbt_ns is not None

    def verdict(self, record: SloRecord) -> Verdict:
        """Return the verdict on a request by these targets, its times being as they were."""
        steady = is_steady(record.gaps, record.late_gaps)
        if record.needed_tbt_ns is not None and self.is_exact(record):
            steady = record.needed_tbt_ns <= self.slo.tbt_ns
        return judge(
            record.outcome,
            ttft_ns=record.ttft_ns,
            ttft_due_ns=self.slo.first_token_due_ns(0, record.prompt_tokens),
            total_ns=record.total_ns,
            is_steady=steady,
        )


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
