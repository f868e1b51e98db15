"""What is written twice agrees: judging, budgets, percentiles, windows, figures and the chain."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.slo_report_figures import shown
from tenants import slo_verify_figures, slo_verify_sums
from tenants.slo import COUNT_FIELDS, Objective, Outcome, is_steady, judge
from tenants.slo_report import COLUMNS, FORMAT, as_csv, as_json, csv_header, next_chain
from tenants.slo_report_sums import (
    Line,
    bar_of,
    budget_for,
    nearest_rank,
    period_around,
    rolling_bounds,
)
from tenants.slo_verify_file import HASHED, TALLIES, Differs, open_report
from tenants.values import Period

NS = st.one_of(st.integers(0, 20), st.integers(0, 10**14))
MOMENTS = st.integers(0, 60 * 24 * 800).map(
    lambda n: datetime(2024, 12, 1, tzinfo=UTC) + timedelta(minutes=n)
)
TARGETS = st.sampled_from(["0.5", "0.9", "0.95", "0.985", "0.99", "0.999", "0.99999", "1.0"])


@given(st.sampled_from(list(Outcome)), st.none() | NS, NS, NS, st.integers(0, 500), st.data())
def test_a_request_is_judged_alike(
    outcome: Outcome, first: int | None, due: int, total: int, gaps: int, data: st.DataObject
) -> None:
    """The checker's verdicts, from the written rule, are the ledger's; borders included."""
    late = data.draw(st.integers(0, min(gaps, 8)))
    times: dict[str, Any] = {"ttft_ns": first, "ttft_due_ns": due, "total_ns": total}
    verdict = judge(outcome, **times, is_steady=is_steady(gaps, late))
    facts = slo_verify_sums.Facts(
        arrival=datetime(2026, 1, 1, tzinfo=UTC),
        outcome=outcome.value,
        stream=True,
        prompt_tokens=1,
        total=total,
        first=first,
        due=due,
        gaps=gaps,
        late=late,
        gap_due=1,
        gap_mode="gap",
        needed=None,
        eased=False,
        tier="premium",
        asked="premium",
        version=1,
    )
    again = slo_verify_sums.verdicts(facts)
    assert again == {o.value: verdict.of(o) for o in Objective}


@given(st.integers(0, 10**12), st.data(), st.none() | TARGETS)
def test_a_budget_is_the_same_to_the_digit(
    counted: int, data: st.DataObject, target: str | None
) -> None:
    """Fractions here, decimals there; nothing is rounded up."""
    bad = data.draw(st.one_of(st.integers(0, counted), st.just(counted)))
    tally = {"counted_all": counted, "bad_all": bad}
    share = None if target is None else Fraction(target)
    written = {n: str(v) for n, v in budget_for(tally, Objective.ALL, share).items()}
    written["kept"] = written.get("kept", "").lower()
    again = slo_verify_sums.budgets(tally, "all", target or "")
    mine = {n: t for n, t in again.items() if n not in ("objective", "target")}
    assert mine == {n: t for n, t in written.items() if t}
    if counted and bad:
        assert Fraction(mine["attainment"]) < 1


@given(st.lists(st.integers(0, 10**14), min_size=1, max_size=400))
def test_percentiles_are_values_that_occurred(values: list[int]) -> None:
    """The least value that so many percent do not exceed, by its definition."""
    said = slo_verify_sums.percentiles(list(values))
    for percent in (50, 90, 95, 99):
        found = nearest_rank(sorted(values), percent)
        assert str(found) == said[f"p{percent}"]
        assert 100 * sum(v <= found for v in values) >= percent * len(values)
        assert all(
            100 * sum(v <= w for v in values) < percent * len(values) for w in values if w < found
        )


@given(MOMENTS, st.integers(0, 60 * 24 * 100))
def test_windows_are_cut_alike(until: datetime, minutes: int) -> None:
    since = until - timedelta(minutes=minutes)
    mine = {name: first for name, first, _ in rolling_bounds(since, until)}
    assert mine == slo_verify_sums.rolling(since, until)
    around = slo_verify_sums.around(until)
    assert around == {p.value: period_around(until, p) for p in Period}
    assert all(first <= until < last for first, last in around.values())


@given(NS.filter(bool), NS.filter(bool))
def test_the_bar_of_a_time_is_on_the_right_side(took: int, allowed: int) -> None:
    """Those in time are below the middle; each bar is twice the one two before it."""
    bar = bar_of(took, allowed)
    assert (bar < 12) is (took <= allowed)
    # The first and the last hold all that is beyond them, too.
    assert bar_of(2 * took, allowed) in ((bar + 2, 23) if bar else (0, 1, 2))


FORMS = {
    "count": st.integers(0, 10**15).map(str),
    "ms": st.integers(0, 10**12).map(str),
    "ns": st.integers(0, 10**16).map(str),
    "number": st.integers(-(10**14), 10**14).map(lambda n: f"{n // 10**6}.{abs(n) % 10**6:06d}"),
    "percent": st.integers(0, 10**6).map(lambda n: f"{n // 10**6}.{n % 10**6:06d}"),
    "share": st.integers(-(10**9), 10**6).map(
        lambda n: f"{'-' if n < 0 else ''}{abs(n) // 10**6}.{abs(n) % 10**6:06d}"
    ),
    "objective": TARGETS,
    "text": st.text(max_size=5),
    "verdict": st.sampled_from(["true", "false", ""]),
    "kept": st.sampled_from(["true", "false", ""]),
    **dict.fromkeys(("when", "minute", "day"), st.just("2026-11-21T12:34:56.789012Z")),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_figure_looks_alike(form: str) -> None:
    """What the page is made with and what the checker expects are the same text."""
    forms: dict[str, Callable[[str], str]] = slo_verify_figures._FORMS

    @given(FORMS[form] | st.just(""))
    def check(text: str) -> None:
        assert shown(text, form) == forms[form](text)

    assert set(FORMS) == set(forms)
    check()


CELLS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    st.integers(0, 10**18),
    st.booleans(),
)
LINES = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS[:-1]), CELLS, min_size=1, max_size=6),
    min_size=1,
    max_size=6,
)


def chained(lines: list[Line]) -> list[Line]:
    chain, found = hashlib.sha256(FORMAT.encode()).hexdigest(), []
    for line in lines:
        chain = next_chain(chain, line)
        found.append({**line, "chain": chain})
    return found


@given(LINES, st.data())
def test_any_lines_are_read_back_and_any_change_of_them_breaks_the_chain(
    lines: list[Line], data: st.DataObject
) -> None:
    """Whatever their fields hold, as CSV and as JSON: separators, quotes, line ends."""
    assert COLUMNS[:-1] == HASHED
    whole = chained(lines)
    said = [
        {n: str(v).lower() if isinstance(v, bool) else str(v) for n, v in line.items()}
        for line in whole
    ]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        document = f'{{"format":"{FORMAT}","lines":[\n' + ",\n".join(map(as_json, whole)) + "\n]}\n"
        sheet = csv_header() + "".join(map(as_csv, whole))
        for text in (document, sheet):
            file.write_text(text, newline="", encoding="utf-8")
            assert [line for _, line in open_report(file).lines()] == said
        place = data.draw(st.integers(0, len(whole) - 1))
        name = data.draw(st.sampled_from(COLUMNS[:-1]))
        value = data.draw(CELLS)
        before = whole[place].get(name, "")
        words = [str(v).lower() if isinstance(v, bool) else str(v) for v in (before, value)]
        if words[0] == words[1]:
            return
        changed = [*whole[:place], {**whole[place], name: value}, *whole[place + 1 :]]
        file.write_text(csv_header() + "".join(map(as_csv, changed)), newline="")
        with pytest.raises(Differs, match="its chain does not follow"):
            list(open_report(file).lines())


def test_the_columns_and_sums_are_those_of_the_ledger() -> None:
    """The checker's own lists are complete."""
    assert set(TALLIES) == set(COUNT_FIELDS)
    assert len(set(COLUMNS)) == len(COLUMNS)
    header = next(csv.reader(io.StringIO(csv_header())))
    assert tuple(header) == COLUMNS
    assert json.loads(as_json({"id": "x", "reason": ""})) == {"id": "x"}


def test_the_checker_shares_no_code_with_what_it_checks() -> None:
    """None of its modules imports what judges, sums or writes."""
    root = Path(__file__).parents[2] / "tenants"
    for file in sorted(root.glob("slo_verify*.py")):
        found = re.findall(r"^from (\S+) import|^import (\S+)", file.read_text(), re.M)
        ours = {a or b for a, b in found if (a or b).startswith("tenants")}
        assert all(
            name in ("tenants.database", "tenants.errors") or name.startswith("tenants.slo_verify")
            for name in ours
        ), (file.name, ours)
