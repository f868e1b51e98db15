"""The search finds the largest rate that passes, runs no point twice, and says what it knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_tallies import make_tally

from engine.sim import capacity
from engine.sim.capacity import EverySlo, Key, MedianTtft, NormalisedLatency
from engine.sim.tally import Tallies, Tally


class World:
    """Policies with known capacities; counts what was run."""

    def __init__(self, **capacities: float) -> None:
        self.capacities = capacities
        self.ran: list[Key] = []
        self.rounds = 0

    def evaluate(self, keys: Sequence[Key]) -> list[Tally]:
        self.rounds += 1
        self.ran += keys
        return [make_tally(*key, self.capacities[key[0]], offered=2) for key in keys]

    def mean_passes(self, label: str, rate: float, seeds: Sequence[int]) -> bool:
        rows = [make_tally(label, rate, s, self.capacities[label], offered=2) for s in seeds]
        return EverySlo().margin(rows) >= 0


@given(
    st.floats(min_value=0.02, max_value=50.0),
    st.floats(min_value=0.05, max_value=20.0),
    st.sampled_from([0.01, 0.02, 0.1]),
    st.sampled_from([1, 2, 50]),
)
def test_what_is_found_passes_and_the_next_rate_fails(
    true: float, start: float, tolerance: float, width: int
) -> None:
    """From any start, on any number of cores; and no point is run twice."""
    world = World(a=true)
    [found] = capacity.find_capacities(
        ["a"],
        [1, 2, 3],
        EverySlo(),
        world.evaluate,
        tolerance=tolerance,
        start=start,
        width=width,
    )
    assert len(set(world.ran)) == len(world.ran)
    assert world.mean_passes("a", found.rate, [1, 2, 3])
    assert not world.mean_passes("a", found.rate * (1 + tolerance) * 1.0001, [1, 2, 3])
    # The seeds shift the capacity by at most 2 %, the grid by another step.
    assert math.isclose(found.rate, true, rel_tol=0.03 + tolerance)
    assert all(math.isclose(r, true, rel_tol=0.03 + tolerance) for r in found.by_seed.values())
    assert not found.at_least


def test_policies_are_searched_side_by_side() -> None:
    """Two policies take no more rounds than the slower one alone: rounds are what run at once."""
    alone = World(a=2.0)
    capacity.find_capacities(["a"], [1, 2], EverySlo(), alone.evaluate, width=100)
    both = World(a=2.0, b=0.7)
    found = capacity.find_capacities(["a", "b"], [1, 2], EverySlo(), both.evaluate, width=100)
    assert [one.label for one in found] == ["a", "b"]
    assert both.rounds <= alone.rounds + 6
    assert found[0] == capacity.find_capacities(["a"], [1, 2], EverySlo(), World(a=2.0).evaluate)[0]


def test_cores_change_the_number_of_points_and_never_the_answer() -> None:
    """A rate that one seed makes hopeless is left there when seeds run one by one."""
    found, cost = [], []
    for width in (1, 5, 40):
        world = World(a=1.3)
        found += capacity.find_capacities(
            ["a"], range(5), EverySlo(), world.evaluate, start=8.0, width=width
        )
        cost.append(len(world.ran))
    assert found[0] == found[1] == found[2]
    assert cost[0] < cost[1] == cost[2]


def test_a_margin_at_best_is_never_below_the_one_in_the_end() -> None:
    """Whatever the seeds still missing bring: giving up early is exact."""
    rows = [make_tally("a", 1.0, seed, 0.9 + seed / 20, offered=20) for seed in range(4)]
    rows[2] = replace(rows[2], unserved=2)
    for criterion in (EverySlo(), MedianTtft(300.0), NormalisedLatency(40.0)):
        whole = criterion.margin(rows)
        bounds = [criterion.margin(rows[:known], 4) for known in range(1, 5)]
        assert bounds == sorted(bounds, reverse=True)
        assert bounds[-1] == whole


def test_the_ends_of_the_search_are_told() -> None:
    """A policy that takes everything is `at least`; one that takes nothing is 0."""
    world = World(strong=1000.0, weak=1e-6)
    strong, weak = capacity.find_capacities(
        ["strong", "weak"], [1, 2], EverySlo(), world.evaluate, lowest=0.1, highest=10.0
    )
    assert strong.at_least
    assert strong.rate == pytest.approx(10.0, rel=0.02)
    assert (weak.rate, weak.at_least, set(weak.by_seed.values())) == (0.0, False, {0.0})


def test_every_tier_must_meet_its_objective_in_the_mean_over_seeds() -> None:
    rows = [make_tally("a", 1.0, seed, 1.0, offered=2) for seed in (1, 2)]
    shares = [{"premium": 1.0, "free": 0.96}, {"premium": 0.98, "free": 0.94}]
    for row, share in zip(rows, shares, strict=True):
        for tier, value in share.items():
            row.point["tiers"][tier]["attainment"] = value
    assert 0 <= EverySlo().margin(rows) < 1e-5  # 0.99 and 0.95, exactly
    rows[1].point["tiers"]["free"]["attainment"] = 0.93
    assert EverySlo().margin(rows) == pytest.approx(-0.005, abs=1e-5)


def test_a_tier_without_requests_does_not_count() -> None:
    row = make_tally("a", 0.5, 1, 1.0, offered=2)
    row.point["tiers"]["premium"] |= {"attainment": None, "offered": 0}
    assert EverySlo().margin([row]) > 0


def test_other_criteria_are_limits_on_means() -> None:
    row = make_tally("a", 1.0, 1, 1.0, offered=2)
    assert MedianTtft(2 * row.ttft_p50_ms).margin([row]) == pytest.approx(0.5)
    assert MedianTtft(row.ttft_p50_ms / 2).margin([row]) == -1.0
    assert NormalisedLatency(2 * row.normalised_mean_ms).margin([row]) == pytest.approx(0.5)


def test_means_of_those_served_do_not_hide_those_who_were_not() -> None:
    row = make_tally("a", 1.0, 1, 1.0, offered=100)  # of two tiers each
    assert NormalisedLatency(1e9).margin([replace(row, unserved=2)]) > 0
    assert NormalisedLatency(1e9).margin([replace(row, unserved=3)]) == -1.0
    assert MedianTtft(1e9).margin([replace(row, ttft_p50_ms=math.inf)]) == -1.0


def test_criteria_are_read_or_refused() -> None:
    assert capacity.parse_criterion("slo") == EverySlo()
    assert capacity.parse_criterion("ttft-p50:500") == MedianTtft(500)
    assert capacity.parse_criterion("normalised:100") == NormalisedLatency(100)
    for text in ("", "slo:1", "ttft-p50", "ttft-p50:0", "ttft-p50:-5", "normalised:nan", "p99:5"):
        with pytest.raises(capacity.CriterionError, match="must be slo"):
            capacity.parse_criterion(text)


def test_capacities_are_read_off_a_grid_by_straight_lines() -> None:
    """Between a rate with a margin of 0.04 and one with -0.01, four fifths of the way."""
    rows = [make_tally("a", rate, 1, 1.0, offered=2) for rate in (1.0, 2.0)]
    for row, free in zip(rows, (0.99, 0.94), strict=True):
        row.point["tiers"]["premium"]["attainment"] = 1.0
        row.point["tiers"]["free"]["attainment"] = free
    rows[0].point["tiers"]["premium"]["attainment"] = 1.0
    # At rate 1 the premium tier's margin, 0.01, is the smaller one.
    [found] = capacity.capacities_of(Tallies(rows), EverySlo())
    assert found.rate == pytest.approx(1.5, abs=1e-3)
    assert not found.at_least
    assert found.by_seed == {1: found.rate}
    [high] = capacity.capacities_of(Tallies(rows[:1]), EverySlo())
    assert (high.rate, high.at_least) == (1.0, True)
    [none] = capacity.capacities_of(Tallies(rows[1:]), EverySlo())
    assert (none.rate, none.at_least) == (0.0, False)
