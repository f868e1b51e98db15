"""Tier files: what they mean, and impossible promises refused by field and row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.core.request import Slo, TbtMode
from engine.sim.tiers import DEFAULT_TIERS, TierError, load_tiers

GOOD = {
    "name": "gold", "rank": 0, "ttft_ms": 300, "ttft_ms_per_1k_prompt_tokens": 50,
    "tbt_ms": 80, "tbt_mode": "stream", "objective": 0.9, "share": 1, "weight": 2,
}  # fmt: skip


def write(folder: Path, rows: object) -> Path:
    path = folder / "tiers.json"
    path.write_text(json.dumps(rows))
    return path


def test_the_seeded_tiers_are_those_of_the_notes() -> None:
    """500 + 250 and 100 ms for a twentieth, 2000 + 1000 and 500 ms for the rest."""
    premium, free = DEFAULT_TIERS
    assert premium.slo == Slo(0, 500_000_000, 250_000_000, 100_000_000, TbtMode.GAP)
    assert free.slo == Slo(1, 2_000_000_000, 1_000_000_000, 500_000_000, TbtMode.GAP)
    assert (premium.share, premium.objective) == (0.05, 0.99)
    assert (free.share, free.objective) == (0.95, 0.95)


def test_a_file_is_read_and_its_shares_sum_to_one(tmp_path: Path) -> None:
    """Milliseconds become nanoseconds, what is left out has its default."""
    plain = {"name": "rest", "rank": 3, "ttft_ms": 1, "tbt_ms": 2.5, "objective": 1, "share": 3}
    gold, rest = load_tiers(write(tmp_path, [GOOD, plain]))
    assert gold.slo == Slo(0, 300_000_000, 50_000_000, 80_000_000, TbtMode.STREAM)
    assert (gold.share, gold.weight, rest.share, rest.weight) == (0.25, 2.0, 0.75, 1.0)
    assert rest.slo == Slo(3, 1_000_000, 0, 2_500_000, TbtMode.GAP)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ttft_ms": 0}, "row 2: ttft_ms must be above 0"),
        ({"tbt_ms": -5}, "row 2: tbt_ms must be above 0"),
        ({"tbt_ms": "fast"}, "row 2: tbt_ms must be above 0"),
        ({"ttft_ms_per_1k_prompt_tokens": -1}, "prompt_tokens must be at least 0"),
        ({"objective": 0}, "row 2: objective must be above 0 and at most 1"),
        ({"objective": 1.01}, "row 2: objective must be above 0 and at most 1"),
        ({"share": 0}, "row 2: share must be above 0"),
        ({"share": True}, "row 2: share must be above 0"),
        ({"weight": float("nan")}, "row 2: weight must be above 0"),
        ({"rank": -1}, "row 2: rank must be a whole number"),
        ({"rank": 1.5}, "row 2: rank must be a whole number"),
        ({"tbt_mode": "loose"}, "row 2: tbt_mode must be gap or stream"),
        ({"colour": "red"}, "row 2: unknown field 'colour'"),
        ({"name": "gold"}, "row 2: name 'gold' was used before"),
        ({"name": ""}, "row 2: name must be a text"),
    ],
)
def test_an_impossible_promise_is_refused_by_field_and_row(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    """One line, which names the file too."""
    path = write(tmp_path, [GOOD, {**GOOD, "name": "other", **change}])
    with pytest.raises(TierError) as error:
        load_tiers(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [[], {}, "tiers", [3], [{"name": "x"}]])
def test_what_is_no_list_of_tiers_is_refused(tmp_path: Path, rows: object) -> None:
    """Empty, of another shape, or with fields missing."""
    with pytest.raises(TierError):
        load_tiers(write(tmp_path, rows))


def test_a_file_that_is_no_json_or_not_there_is_refused(tmp_path: Path) -> None:
    """Reading errors are tier errors as well."""
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(TierError, match="not JSON"):
        load_tiers(tmp_path / "bad.json")
    with pytest.raises(TierError, match="No such file"):
        load_tiers(tmp_path / "none.json")
