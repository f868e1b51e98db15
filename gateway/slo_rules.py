"""Makes Prometheus rules for the promises of tiers: shares, budgets and burns; it sends no alert.

Names and labels of the recorded series are Sloth's (`slo:sli_error:ratio_rate5m`, `sloth_id`, ...),
so that boards made for Sloth show them. Everything is a function of the tiers alone: the same tiers
give the same text. Windows are those of the SRE Workbook, chapter "Alerting on SLOs"; their factors
are bent to the objective, because a burn can never be above 1 / (1 - objective): docs/alerts.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction

from tenants.slo import Objective, target_of
from tenants.slo_windows import BURN_WINDOWS
from tenants.values import TierRecord

SERVICE = "tiergate"
PERIOD, PERIOD_DAYS = "30d", 30
# Windows that are read from so many samples that once in two minutes is often enough; not less
# often, because Prometheus forgets a series that is five minutes old.
SLOW_WINDOWS, SLOW_INTERVAL = ("3d", "30d"), "2m"
# Fewer bad requests than this in the long window are never an alert: with little traffic one of
# them is a large share.
LEAST_BAD = 10
# A tier whose fastest page needs more bad requests than this share pages too late.
FASTEST_SHARE = Fraction(1, 4)
CLASSIC_FASTEST = 14.4

PAGE, TICKET = "page", "ticket"


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus computes: `expr` under the name `record`."""

    record: str
    expr: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that someone is told of once it has held for `hold` (empty: at once)."""

    alert: str
    expr: str
    severity: str
    summary: str
    description: str
    hold: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after another; `interval` empty: as Prometheus is set."""

    name: str
    rules: tuple[Recording | Alert, ...]
    interval: str = ""


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """What rules cannot know from tiers: the scrape job's name, and where docs/alerts.md lies."""

    job: str = "tiergate"
    docs_url: str = "docs/alerts.md"

    @property
    def selector(self) -> str:
        """The part of every selector that names the job, with quotes."""
        return f"job={quoted(self.job)}"


@dataclass(frozen=True, slots=True)
class BurnWindow:
    """Both windows must burn faster than `factor`; `classic` is the Workbook's factor."""

    severity: str
    long: str
    short: str
    classic: float


WINDOWS = (
    BurnWindow(PAGE, "1h", "5m", 14.4),
    BurnWindow(PAGE, "6h", "30m", 6.0),
    BurnWindow(TICKET, "1d", "2h", 3.0),
    BurnWindow(TICKET, "3d", "6h", 1.0),
)


@dataclass(frozen=True, slots=True)
class Slo:
    """One objective of one tier, as rules know it."""

    tier: str
    objective: Objective
    target: Fraction

    @property
    def name(self) -> str:
        """What Sloth's boards list."""
        return f"{self.tier}-{self.objective.value}"

    @property
    def budget(self) -> Fraction:
        """The share of requests that may be bad; 0 where the tier promises everything."""
        return 1 - self.target

    @property
    def id(self) -> str:
        """One word for both."""
        return f"{SERVICE}-{self.name}"

    @property
    def labels(self) -> dict[str, str]:
        """What stands on everything that is recorded of it."""
        return {
            "sloth_id": self.id,
            "sloth_service": SERVICE,
            "sloth_slo": self.name,
            "tiergate_slo_objective": self.objective.value,
            "tiergate_tier": self.tier,
        }


def slos_of(tiers: Sequence[TierRecord]) -> list[Slo]:
    """Return every objective of every tier, the tier served first in front."""
    return [
        Slo(tier.name, objective, target_of(tier.objective))
        for tier in sorted(tiers, key=lambda tier: (tier.rank, tier.name))
        for objective in Objective
    ]


def factors(target: Fraction) -> tuple[Fraction, ...]:
    """Return the burn of each of `WINDOWS` from which an alert is due; 0 where there is no budget.

    The fastest page is due at the Workbook's 14.4, but at no more than a quarter of the ceiling
    C = 1 / (1 - target); where C is below 16 that would leave no room above a burn of 1, and the
    square root of C takes its place. The other factors keep their places between 1 and the fastest
    on a scale of logarithms. From 0.983 on nothing changes. Rounded to tenths.
    """
    if target == 1:
        return (Fraction(0),) * len(WINDOWS)
    ceiling = 1 / (1 - float(target))
    fastest = min(CLASSIC_FASTEST, max(float(FASTEST_SHARE) * ceiling, math.sqrt(ceiling)))
    bend = math.log(fastest) / math.log(CLASSIC_FASTEST)
    return tuple(Fraction(round(window.classic**bend * 10), 10) for window in WINDOWS)


def slo_groups(tiers: Sequence[TierRecord], options: RuleOptions) -> list[Group]:
    """Return two groups for each objective of each tier: the quick rules, and the slow ones."""
    groups: list[Group] = []
    for slo in slos_of(tiers):
        quick = tuple(w for w in BURN_WINDOWS if w not in SLOW_WINDOWS)
        recordings = [_share(slo, window, options) for window in quick]
        counts = [_bad(slo, w.long, options) for w in WINDOWS if w.long in quick]
        alerts = _burn_alerts(slo) if slo.budget else _without_budget(slo)
        groups.append(
            Group(f"tiergate-slo-{slo.name}", (*recordings, *counts, *_meta(slo), *alerts))
        )
        slow = [_share(slo, window, options) for window in SLOW_WINDOWS]
        slow_counts = [_bad(slo, window, options) for window in SLOW_WINDOWS]
        period = (*slow, *slow_counts, *_period(slo))
        groups.append(Group(f"tiergate-slo-{slo.name}-period", period, SLOW_INTERVAL))
    return groups


def _events(slo: Slo, kind: str, options: RuleOptions) -> str:
    labels = (
        f"{options.selector},tiergate_slo_objective={quoted(slo.objective.value)},"
        f"tiergate_tier={quoted(slo.tier)}"
    )
    return f"tiergate_tier_slo_{kind}_total{{{labels}}}"


def share_of_errors(slo: Slo, window: str, options: RuleOptions) -> str:
    """Return the expression for the bad share of a window; no value where there was no request."""
    bad, all_of_them = (_events(slo, kind, options) for kind in ("violations", "requests"))
    return f"sum(rate({bad}[{window}]))\n/\n(sum(rate({all_of_them}[{window}])) > 0)"


def _share(slo: Slo, window: str, options: RuleOptions) -> Recording:
    # Of thirty days too, from the counters: Sloth's mean of five-minute shares counts a quiet
    # night as much as a busy day.
    labels = {**slo.labels, "sloth_window": window}
    return Recording(
        f"slo:sli_error:ratio_rate{window}", share_of_errors(slo, window, options), labels
    )


def _bad(slo: Slo, window: str, options: RuleOptions) -> Recording:
    labels = {**slo.labels, "sloth_window": window}
    events = _events(slo, "violations", options)
    return Recording(
        f"tiergate:slo_violations:increase{window}", f"sum(increase({events}[{window}]))", labels
    )


def _meta(slo: Slo) -> list[Recording]:
    target, budget = decimal(slo.target), decimal(slo.budget)
    info = {
        **slo.labels,
        "sloth_mode": "tiergate",
        "sloth_objective": decimal(slo.target * 100),
        "sloth_spec": "prometheus/v1",
        "sloth_version": "tiergate",
    }
    made = [
        Recording("slo:objective:ratio", f"vector({target})", slo.labels),
        Recording("slo:error_budget:ratio", f"vector({budget})", slo.labels),
        Recording("slo:time_period:days", f"vector({PERIOD_DAYS})", slo.labels),
        Recording("sloth_slo_info", "vector(1)", info),
    ]
    if slo.budget:  # without a budget there is nothing to divide by
        burn = f"{_window(slo, '5m')}\n/ {budget}"
        made.append(Recording("slo:current_burn_rate:ratio", burn, slo.labels))
    return made


def _period(slo: Slo) -> list[Recording]:
    if not slo.budget:
        return []
    burn = f"{_window(slo, PERIOD)}\n/ {decimal(slo.budget)}"
    left = f"1 - slo:period_burn_rate:ratio{_of(slo)}"
    return [
        Recording("slo:period_burn_rate:ratio", burn, slo.labels),
        Recording("slo:period_error_budget_remaining:ratio", left, slo.labels),
    ]


def _of(slo: Slo) -> str:
    return f"{{sloth_id={quoted(slo.id)}}}"


def _window(slo: Slo, window: str) -> str:
    # Without the window's label, so that an alert keeps its identity whichever window raised it.
    return f"max without (sloth_window) (slo:sli_error:ratio_rate{window}{_of(slo)})"


def _enough(slo: Slo, window: str) -> str:
    return f"and on (sloth_id)\n  tiergate:slo_violations:increase{window}{_of(slo)} >= {LEAST_BAD}"


def _burn_alerts(slo: Slo) -> list[Alert]:
    budget = decimal(slo.budget)
    alerts = []
    for severity, name in ((PAGE, "TiergateBurnFast"), (TICKET, "TiergateBurnSlow")):
        parts = [
            f"(\n  {_window(slo, window.short)} > ({decimal(factor)} * {budget})\nand\n"
            f"  {_window(slo, window.long)} > ({decimal(factor)} * {budget})\n"
            f"{_enough(slo, window.long)}\n)"
            for window, factor in zip(WINDOWS, factors(slo.target), strict=True)
            if window.severity == severity
        ]
        alerts.append(
            Alert(
                name,
                "\nor\n".join(parts),
                severity,
                f"tier {slo.tier}: {{{{ $value | humanizePercentage }}}} of requests break"
                f" {_promise(slo)}",
                f"The budget of {decimal(slo.budget * 100)} % is being spent too fast.",
                labels=slo.labels,
            )
        )
    spent = f"slo:period_error_budget_remaining:ratio{_of(slo)} <= 0\n{_enough(slo, PERIOD)}"
    alerts.append(
        Alert(
            "TiergateBudgetSpent",
            spent,
            TICKET,
            f"tier {slo.tier}: the budget of {PERIOD_DAYS} days for {_promise(slo)} is spent",
            "Left of it: {{ $value | humanizePercentage }}.",
            labels=slo.labels,
        )
    )
    return alerts


def _without_budget(slo: Slo) -> list[Alert]:
    many = f"{_window(slo, '5m')} > 0\nand\n{_window(slo, '1h')} > 0\n{_enough(slo, '1h')}"
    words = (
        f"tier {slo.tier}: {{{{ $value | humanizePercentage }}}} of requests break {_promise(slo)}",
        "The tier's objective is 1: it has no budget, and every bad request breaks the promise.",
    )
    return [
        Alert("TiergateBurnFast", many, PAGE, *words, labels=slo.labels),
        Alert("TiergateBurnSlow", f"{_window(slo, '1d')} > 0", TICKET, *words, labels=slo.labels),
    ]


def _promise(slo: Slo) -> str:
    return {
        Objective.ALL: "one of the tier's promises",
        Objective.TTFT: "the time to the first token",
        Objective.TBT: "the time between tokens",
        Objective.AVAILABILITY: "the promise of an answer",
    }[slo.objective]


def quoted(value: str) -> str:
    """Return a label's value as PromQL reads it."""
    return json.dumps(value, ensure_ascii=False)


def decimal(value: Fraction) -> str:
    """Return a fraction as digits, exact for what was typed as digits."""
    with localcontext() as context:
        context.prec = 30
        digits = (Decimal(value.numerator) / Decimal(value.denominator)).normalize()
    return f"{digits:f}"
