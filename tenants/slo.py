"""Judges requests against their promises and adds the judgements up; it knows no table, no clock.

One verdict a request, in four words: `all` (both targets met), `ttft`, `tbt` and `availability`.
Each is True, False, or None where the request does not count for it. The rule (`RULE`) is told in
docs/slo.md; whoever changes `judge` changes the rule's number. A percentile promise is a share:
"95 % of requests see their first token in time"; shares add up over time and tenants, percentiles
do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from fractions import Fraction

RULE = 1
# At most one of a hundred later tokens may be late (scheduling notes, section 1).
LATE_SHARE = 100
DRAWS = 1024


class Outcome(StrEnum):
    """How a request ended; closed list."""

    COMPLETED = "completed"
    DISCONNECTED = "disconnected"  # the client left
    REFUSED = "refused"  # by us: no place, no hope of being in time, shutting down, no engine
    LIMITED = "limited"  # its own limit or budget was used up
    INVALID = "invalid"  # it could not be taken, or its key was closed meanwhile
    FAILED = "failed"  # it was let in, and we could not finish it
    EXPIRED = "expired"  # it took longer than any request may


class Objective(StrEnum):
    """What is judged; closed list."""

    ALL = "all"  # both targets met by an answer that came to its end
    TTFT = "ttft"
    TBT = "tbt"
    AVAILABILITY = "availability"


# The request's own doing: it is in no denominator.
EXCLUDED = frozenset({Outcome.INVALID, Outcome.LIMITED})
OUR_FAULT = frozenset({Outcome.REFUSED, Outcome.FAILED, Outcome.EXPIRED})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of each promise; None: it does not count."""

    met: bool | None = None
    ttft_met: bool | None = None
    tbt_met: bool | None = None
    available: bool | None = None

    def of(self, objective: Objective) -> bool | None:
        """Return the verdict on one objective."""
        return {
            Objective.ALL: self.met,
            Objective.TTFT: self.ttft_met,
            Objective.TBT: self.tbt_met,
            Objective.AVAILABILITY: self.available,
        }[objective]


def judge(
    outcome: Outcome,
    *,
    ttft_ns: int | None,
    ttft_due_ns: int,
    total_ns: int,
    is_steady: bool | None,
) -> Verdict:
    """Return the verdict. Times count from the arrival; `is_steady` is the function's answer.

    A client that left before its first token was due gave us no fair chance. One that left later
    is judged by what it got. An answer of no tokens (`max_tokens: 0`) was promised no time, and
    one of a single token no gap.
    """
    if outcome in EXCLUDED:
        return Verdict()
    if ttft_ns is None:
        if outcome is Outcome.COMPLETED:
            return Verdict(available=True)
        if outcome is Outcome.DISCONNECTED and total_ns <= ttft_due_ns:
            return Verdict()
        return Verdict(
            met=False, ttft_met=False, available=None if outcome is Outcome.DISCONNECTED else False
        )
    ttft_met = ttft_ns <= ttft_due_ns
    met = ttft_met and is_steady is not False
    if outcome is Outcome.DISCONNECTED:
        return Verdict(met, ttft_met, is_steady)
    available = outcome is Outcome.COMPLETED
    return Verdict(met and available, ttft_met, is_steady, available)


def is_steady(gaps: int, late_gaps: int) -> bool | None:
    """True where few enough of the tokens after the first were late; None where there are none."""
    return late_gaps * LATE_SHARE <= gaps if gaps else None


@dataclass(frozen=True, slots=True)
class SloRecord:
    """One offered request of a known tenant, and what became of it. Times in ns from `arrival`.

    `id` is the answer's, or the HTTP request's (`request_id`) where it never was understood. `tier`
    is the one served, by whose promise it is judged: the first token within `ttft_due_ns`, the
    others `tbt_ns` apart as `tbt_mode` says. `needed_tbt_ns` is the least `tbt_ns` with which it
    would have met: at most one gap in a hundred above it; None without gaps. `prompt_tokens` are
    those of the longest prompt, by which the first token is due; `eased` where the client was
    content with less than the tier's promise. `draw` is even over 0 to 1023 and says
    nothing about the request: all of one number are a fair sample.
    """

    id: str
    request_id: str
    tenant_id: str
    key_id: str
    model: str
    operation: str
    tier_asked: str
    tier: str
    tier_version: int
    arrival: datetime
    outcome: Outcome
    reason: str
    stream: bool
    prompt_tokens: int
    output_tokens: int
    total_ns: int
    queue_ns: int | None
    ttft_ns: int | None
    ttft_due_ns: int
    gaps: int
    late_gaps: int
    tbt_ns: int
    tbt_mode: str
    needed_tbt_ns: int | None
    draw: int
    met: bool | None = None
    ttft_met: bool | None = None
    tbt_met: bool | None = None
    available: bool | None = None
    eased: bool = False
    trace_id: str = ""

    @property
    def verdict(self) -> Verdict:
        """What became of each promise."""
        return Verdict(self.met, self.ttft_met, self.tbt_met, self.available)


def judged(record: SloRecord) -> SloRecord:
    """Return a record with the verdict that follows from what else it says."""
    verdict = judge(
        record.outcome,
        ttft_ns=record.ttft_ns,
        ttft_due_ns=record.ttft_due_ns,
        total_ns=record.total_ns,
        is_steady=is_steady(record.gaps, record.late_gaps),
    )
    return replace(
        record,
        met=verdict.met,
        ttft_met=verdict.ttft_met,
        tbt_met=verdict.tbt_met,
        available=verdict.available,
    )


def overrun(record: SloRecord) -> Fraction:
    """Return how many times its promise a request took, or waited for in vain."""
    first = record.ttft_ns
    waited = Fraction(record.total_ns if first is None else first, max(record.ttft_due_ns, 1))
    if record.needed_tbt_ns is None or record.tbt_met is None:
        return waited
    return max(waited, Fraction(record.needed_tbt_ns, max(record.tbt_ns, 1)))


@dataclass(frozen=True, slots=True)
class SloCounts:
    """Requests added up: by outcome, and for each objective those that count and the bad ones."""

    offered: int = 0
    completed: int = 0
    disconnected: int = 0
    refused: int = 0
    limited: int = 0
    invalid: int = 0
    failed: int = 0
    expired: int = 0
    downgraded: int = 0
    counted_all: int = 0
    bad_all: int = 0
    counted_ttft: int = 0
    bad_ttft: int = 0
    counted_tbt: int = 0
    bad_tbt: int = 0
    counted_availability: int = 0
    bad_availability: int = 0
    gaps: int = 0
    late_gaps: int = 0

    def counted(self, objective: Objective) -> int:
        """Return how many requests count for an objective."""
        value: int = getattr(self, f"counted_{objective.value}")
        return value

    def bad(self, objective: Objective) -> int:
        """Return how many of them broke it."""
        value: int = getattr(self, f"bad_{objective.value}")
        return value

    def plus(self, other: SloCounts) -> SloCounts:
        """Return the sum of two."""
        return SloCounts(*(getattr(self, f) + getattr(other, f) for f in COUNT_FIELDS))


COUNT_FIELDS = tuple(SloCounts.__dataclass_fields__)


def count_one(record: SloRecord) -> SloCounts:
    """Return the counts of one request."""
    return SloCounts(**dict.fromkeys(count_names(record), 1)).plus(
        SloCounts(gaps=record.gaps, late_gaps=record.late_gaps)
        if record.tbt_met is not None
        else SloCounts()
    )


def count_names(record: SloRecord) -> list[str]:
    """Return the counts that one request adds one to."""
    names = ["offered", record.outcome.value]
    if record.tier != record.tier_asked:
        names.append("downgraded")
    for objective in Objective:
        verdict = record.verdict.of(objective)
        if verdict is not None:
            names.append(f"counted_{objective.value}")
            if not verdict:
                names.append(f"bad_{objective.value}")
    return names


def add_up(records: Iterable[SloRecord]) -> SloCounts:
    """Return the counts of all of these."""
    sums = dict.fromkeys(COUNT_FIELDS, 0)
    for record in records:
        for name in count_names(record):
            sums[name] += 1
        if record.tbt_met is not None:
            sums["gaps"] += record.gaps
            sums["late_gaps"] += record.late_gaps
    return SloCounts(**sums)


def target_of(objective: float) -> Fraction:
    """Return a tier's objective as the decimal number that was typed: 0.95 is 19/20."""
    return Fraction(str(objective))


@dataclass(frozen=True, slots=True)
class Budget:
    """What may go wrong and what did, as exact fractions; SRE Workbook, "Alerting on SLOs".

    `target` is the share that must be good. Nothing is rounded before it is shown.
    """

    counted: int
    bad: int
    target: Fraction = field(default_factory=lambda: Fraction(1))

    @property
    def attainment(self) -> Fraction | None:
        """The good share of what counts; None where nothing counts."""
        return None if self.counted == 0 else 1 - Fraction(self.bad, self.counted)

    @property
    def allowed(self) -> Fraction:
        """How many of these requests may be bad."""
        return (1 - self.target) * self.counted

    @property
    def left(self) -> Fraction | None:
        """The share of the budget that is left, below 0 when overdrawn; None without a budget."""
        return None if self.allowed == 0 else 1 - self.bad / self.allowed

    @property
    def burn(self) -> Fraction | None:
        """How fast the budget is spent: 1 spends all of it in the window. At most 1/(1 - target).

        None where nothing counts, or where nothing may go wrong at all.
        """
        if self.counted == 0 or self.target == 1:
            return None
        return Fraction(self.bad, self.counted) / (1 - self.target)

    @property
    def is_met(self) -> bool | None:
        """True where enough requests were good; None where nothing counts."""
        good = self.attainment
        return None if good is None else good >= self.target


def budget_of(counts: SloCounts, objective: Objective, target: float) -> Budget:
    """Return the budget of one objective."""
    return Budget(counts.counted(objective), counts.bad(objective), target_of(target))
