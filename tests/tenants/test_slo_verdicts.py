"""The rule by which a request is judged, and the arithmetic of budgets, in exact numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slo_kit import slo_records

from tenants.slo import (
    Budget,
    Objective,
    Outcome,
    SloCounts,
    SloRecord,
    Verdict,
    add_up,
    budget_of,
    count_one,
    is_steady,
    judge,
    target_of,
)

DUE = 500
GOOD = Verdict(True, True, True, True)


def judged(outcome: Outcome, ttft: int | None, total: int = 900, late: int = 0) -> Verdict:
    steady = is_steady(100, late)
    return judge(outcome, ttft_ns=ttft, ttft_due_ns=DUE, total_ns=total, is_steady=steady)


@pytest.mark.parametrize(
    ("outcome", "ttft", "total", "late", "expected"),
    [
        (Outcome.COMPLETED, DUE, 900, 0, GOOD),
        (Outcome.COMPLETED, DUE + 1, 900, 0, Verdict(False, False, True, True)),
        (Outcome.COMPLETED, DUE, 900, 1, GOOD),
        (Outcome.COMPLETED, DUE, 900, 2, Verdict(False, True, False, True)),
        # an answer without tokens was promised no time, only to come
        (Outcome.COMPLETED, None, DUE + 1, 0, Verdict(available=True)),
        # the request's own doing
        (Outcome.INVALID, None, 1, 0, Verdict()),
        (Outcome.LIMITED, None, 1, 0, Verdict()),
        (Outcome.INVALID, DUE, 900, 0, Verdict()),
        # the client left: with no fair chance, after one, and in the middle of its answer
        (Outcome.DISCONNECTED, None, DUE, 0, Verdict()),
        (Outcome.DISCONNECTED, None, DUE + 1, 0, Verdict(met=False, ttft_met=False)),
        (Outcome.DISCONNECTED, DUE, 900, 0, Verdict(True, True, True, None)),
        (Outcome.DISCONNECTED, DUE, 900, 2, Verdict(False, True, False, None)),
        # ours
        (Outcome.REFUSED, None, 1, 0, Verdict(met=False, ttft_met=False, available=False)),
        (Outcome.FAILED, DUE, 900, 0, Verdict(False, True, True, False)),
        (Outcome.EXPIRED, None, 900, 0, Verdict(met=False, ttft_met=False, available=False)),
    ],
)
def test_every_end_has_its_verdict(
    outcome: Outcome, ttft: int | None, total: int, late: int, expected: Verdict
) -> None:
    assert judged(outcome, ttft, total, late) == expected


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.DISCONNECTED, Outcome.FAILED])
def test_one_token_has_no_gap_to_keep(outcome: Outcome) -> None:
    """Else classifiers that answer with a word would hide that every chat stutters."""
    steady = is_steady(0, 0)
    verdict = judge(outcome, ttft_ns=DUE, ttft_due_ns=DUE, total_ns=900, is_steady=steady)
    assert (verdict.ttft_met, verdict.tbt_met) == (True, None)
    assert verdict.met is (outcome is not Outcome.FAILED)


@given(slo_records())
def test_who_met_everything_met_each(record: SloRecord) -> None:
    """`all` is kept only where nothing that counts was broken; what it excludes all exclude."""
    verdict = record.verdict
    parts = [verdict.ttft_met, verdict.tbt_met, verdict.available]
    if verdict.met is None:
        assert parts in ([None, None, None], [None, None, True])
    else:
        assert verdict.met == (False not in parts)


@given(slo_records())
def test_the_needed_tbt_is_the_verdict(record: SloRecord) -> None:
    if record.tbt_met is not None and record.needed_tbt_ns is not None:
        assert record.tbt_met == (record.needed_tbt_ns <= record.tbt_ns)


@given(st.lists(slo_records(), max_size=30))
def test_sums_are_those_of_their_parts(records: list[SloRecord]) -> None:
    """Adding up at once, one by one or in two halves is the same, and every request is offered."""
    whole = add_up(records)
    one_by_one = SloCounts()
    for record in records:
        one_by_one = one_by_one.plus(count_one(record))
    assert whole == one_by_one == add_up(records[:7]).plus(add_up(records[7:]))
    assert whole.offered == len(records)
    assert whole.offered == sum(getattr(whole, outcome.value) for outcome in Outcome)
    for objective in Objective:
        assert 0 <= whole.bad(objective) <= whole.counted(objective) <= whole.offered


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([0.5, 0.95, 0.99, 0.999, 1.0]))
def test_a_budget_is_exact(good: int, bad: int, objective: float) -> None:
    """Attainment, budget and burn say the same in three ways, without rounding."""
    budget = Budget(good + bad, bad, target_of(objective))
    if good + bad == 0:
        assert (budget.attainment, budget.burn, budget.left, budget.is_met) == (None,) * 4
        return
    assert budget.attainment == Fraction(good, good + bad)
    assert budget.is_met == (
        good * budget.target.denominator >= budget.target.numerator * (good + bad)
    )
    if objective == 1.0:
        assert (budget.burn, budget.left, budget.allowed) == (None, None, 0)
    else:
        assert budget.burn == 1 - budget.left  # type: ignore[operator]
        assert 0 <= budget.burn <= 1 / (1 - budget.target)  # type: ignore[operator]
        assert (budget.left >= 0) == budget.is_met  # type: ignore[operator]


def test_the_objective_is_what_was_typed() -> None:
    """0.95 is nineteen of twenty, not the nearest binary number to it."""
    assert target_of(0.95) == Fraction(19, 20)
    counts = SloCounts(counted_all=20, bad_all=1)
    assert budget_of(counts, Objective.ALL, 0.95).left == 0
    assert budget_of(counts, Objective.ALL, 0.95).is_met
