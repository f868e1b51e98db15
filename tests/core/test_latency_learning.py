"""What a latency model makes of measured steps: it converges, forgets, and is never led astray."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.latency_learning import BOUND_RANGE, RATES, Level, PriceLearner
from engine.core.latency_model import LatencyModel, StepCost
from engine.core.latency_profile import LatencyProfile, load_profile
from engine.core.step_features import PRICES, Held, freshness

TRUE = load_profile("builtin-cpu")
SCALED = [name for name in PRICES if name != "mixed_kv_factor"]
PER_TOKEN = ("token_ns", "tile_ns", "knee_token_ns", "row_ns")
PER_CONTEXT = ("decode_kv_ns", "pair_ns", "prompt_kv_ns")


def scaled(by: float, names: Sequence[str] = SCALED) -> LatencyProfile:
    return dataclasses.replace(TRUE, **{name: by * getattr(TRUE, name) for name in names})


def cost_of(model: LatencyModel, held: Held) -> float:
    return model.held_ns(*held)


def drawn(rng: random.Random) -> Held:
    """A step of mixed traffic: decodes, or a prompt, or both."""
    num_decodes, size = rng.choice([(0, 0.5), (8, 0.7), (64, 0.3)])
    decodes = rng.randint(min(1, num_decodes), num_decodes) if num_decodes else 0
    kv = sum(rng.randint(10, 1500) for _ in range(decodes))
    if decodes and rng.random() > size:
        return Held(decodes, decodes, 0, kv, 0.0, 0)
    start, chunk = rng.choice([0, 0, 0, 500]), rng.randint(1, 512)
    return Held(decodes + chunk, decodes + 1, 1, kv, chunk * (start + chunk / 2), start)


def teach(model: LatencyModel, held: Held, elapsed_ns: float, *, settled: bool = True) -> float:
    """Have a step predicted and measured; returns the relative error of the prediction."""
    predicted_ns = cost_of(model, held)
    model.learn(held, predicted_ns, elapsed_ns)
    if settled:
        model.settle()
    return abs(predicted_ns / elapsed_ns - 1)


def run(
    model: LatencyModel, device: LatencyProfile, steps: int, rng: random.Random, noise: float = 0.03
) -> list[float]:
    """Let the model see a device at work; returns its errors."""
    truth = LatencyModel(device)
    errors = []
    for _ in range(steps):
        held = drawn(rng)
        took_ns = cost_of(truth, held) * math.exp(rng.gauss(0, noise))
        errors.append(teach(model, held, 10 * took_ns if rng.random() < 0.01 else took_ns))
    return errors


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


WRONG = {
    "three times too dear": scaled(3.0),
    "a third": scaled(0.3),
    "the base alone": scaled(3.0, ["base_ns"]),
    "hardly a base": scaled(0.02, ["base_ns"]),
    "per token too dear": scaled(3.0, PER_TOKEN),
    "per token too cheap": scaled(0.2, PER_TOKEN),
    "contexts too dear": scaled(5.0, PER_CONTEXT),
    "contexts for nothing": scaled(0.0, PER_CONTEXT),
    "a 7B model's": load_profile("mistral-7b-rtx6000ada"),
    "an 8B model's with tiles": load_profile("llama31-8b-rtx4090"),
    "a 13B model's": load_profile("opt-13b-v100"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_wrong_profile_is_corrected_within_200_steps(name: str, seed: int) -> None:
    """Noise of 3 %, and one step in a hundred ten times as long: afterwards 10 % in the median."""
    errors = run(LatencyModel(WRONG[name]), TRUE, 300, random.Random(seed))
    assert median(errors[200:]) < 0.10


@pytest.mark.parametrize("name", WRONG)
def test_what_was_hardly_seen_is_learnt_too(name: str) -> None:
    """After 2,000 steps prompts and decodes are known to a fifth, each asked for by itself."""
    model, truth = LatencyModel(WRONG[name]), LatencyModel(TRUE)
    run(model, TRUE, 2000, random.Random(7))
    for held in (
        Held(1, 1, 0, 500, 0.0, 0),
        Held(48, 48, 0, 24_000, 0.0, 0),
        Held(256, 1, 1, 0, 256 * 128.0, 0),
        Held(512, 33, 1, 12_000, 480 * 240.0, 0),
    ):
        assert cost_of(model, held) == pytest.approx(cost_of(truth, held), rel=0.20)


def test_what_is_never_seen_stays_as_the_profile_has_it() -> None:
    """Thousands of full steps in 10 % of noise do not tell prices apart: the profile's shape does.

    Without its say, a lone decode would come out a fifth off after a while, or worse.
    """
    device = load_profile("mistral-7b-rtx6000ada")
    truth, model, rng = LatencyModel(device), LatencyModel(device), random.Random(1)
    for _ in range(3000):
        num_decodes, size = rng.randint(30, 64), rng.randint(300, 2000)
        kv = num_decodes * rng.randint(300, 900)
        held = Held(num_decodes + size, num_decodes + 1, 1, kv, size * size / 2, 0)
        teach(model, held, cost_of(truth, held) * math.exp(rng.gauss(0, 0.10)))
    for held in (Held(1, 1, 0, 500, 0.0, 0), Held(60, 60, 0, 30_000, 0.0, 0)):
        assert cost_of(model, held) == pytest.approx(cost_of(truth, held), rel=0.10)


def test_noise_is_not_followed() -> None:
    """A right profile under 10 % of noise stays within a tenth more than what noise alone costs."""
    rng = random.Random(5)
    errors = run(LatencyModel(TRUE), TRUE, 3000, rng, noise=0.10)
    unmoved = [abs(math.exp(-rng.gauss(0, 0.10)) - 1) for _ in range(3000)]
    assert median(errors) < 1.1 * median(unmoved)


def test_a_change_of_the_world_is_learnt_in_a_few_steps_and_noise_slowly() -> None:
    """In noise the slowest memory counts; once the device is twice as slow, the fastest."""
    rng, model = random.Random(3), LatencyModel(TRUE)
    run(model, TRUE, 1000, rng)
    assert model._alone.log == model._alone.logs[RATES.index(min(RATES))]
    errors = run(model, scaled(2.0), 100, rng)
    assert median(errors[30:]) < 0.10
    run(model, scaled(2.0), 2000, rng)
    assert model.factor == pytest.approx(2.0, rel=0.05)
    assert model._alone.value == pytest.approx(1.0, abs=0.1), "the prices have taken it over"


@given(st.floats(1.5, 1e12), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_an_outlier_teaches_little_however_large(times: float, seed: int) -> None:
    """After calm steps one that took `times` as long moves nothing by more than a twentieth."""
    rng, model = random.Random(seed), LatencyModel(TRUE)
    run(model, TRUE, 200, rng)
    asked = [drawn(rng) for _ in range(20)]
    before = [cost_of(model, held) for held in asked]
    held = drawn(rng)
    teach(model, held, times * cost_of(model, held))
    for held, was_ns in zip(asked, before, strict=True):
        assert cost_of(model, held) == pytest.approx(was_ns, rel=0.05)


times = st.floats(allow_nan=True, allow_infinity=True)
steps = st.builds(drawn, st.builds(random.Random, st.integers(0, 2**32)))
lessons = st.lists(st.tuples(steps, st.one_of(times, st.floats(1.0, 1e12))), max_size=60)
profiles = st.sampled_from([TRUE, *WRONG.values(), dataclasses.replace(TRUE, floor_ns=3e6)])


def taught(profile: LatencyProfile, seen: Sequence[tuple[Held, float]]) -> LatencyModel:
    model = LatencyModel(profile)
    for held, elapsed_ns in seen:
        model.learn(held, cost_of(model, held), elapsed_ns)
        model.settle()
    return model


@given(profiles, lessons, steps)
@settings(deadline=None)
def test_whatever_is_learnt_times_stay_finite_and_positive(
    profile: LatencyProfile, seen: list[tuple[Held, float]], held: Held
) -> None:
    model = taught(profile, seen)
    assert 0 < cost_of(model, held) < math.inf
    assert 0 < model.factor < math.inf
    assert 0 < model.prefill_ns(0, 100) < math.inf
    assert 0 < model.decode_ns(100) < math.inf
    assert 0 <= model.fixed_ns < math.inf
    assert all(0 <= price < math.inf for price in model._learner.prices)


@given(profiles, lessons, steps, st.integers(0, 2000), st.integers(1, 512))
@settings(deadline=None)
def test_whatever_is_learnt_more_is_never_cheaper(
    profile: LatencyProfile, seen: list[tuple[Held, float]], held: Held, start: int, size: int
) -> None:
    """Another decode, another prompt, or a longer one: none makes a step shorter."""
    model = taught(profile, seen)
    cost = StepCost(model)
    cost.add_decodes(int(held.num_rows - held.num_prefills), int(held.kv_tokens))
    if held.num_prefills:
        cost.add_prefill(int(held.prompt_kv), int(held.num_tokens - held.num_rows + 1))
    bare = cost.total_ns * (1 - 1e-12)
    cost.add_decodes(1, start)
    assert cost.total_ns >= bare
    cost.add_decodes(-1, -start)
    last = bare
    for tokens in (1, size, size + 1, 4 * size):
        cost.add_prefill(start, tokens)
        assert cost.total_ns >= last
        last = cost.total_ns * (1 - 1e-12)
        cost.add_prefill(start, tokens, -1)


@given(profiles, lessons, steps, st.integers(0, 2000), st.integers(1, 300), st.floats(0.5, 3.0))
@settings(max_examples=50, deadline=None)
def test_whatever_is_learnt_the_affordable_prompt_is_the_largest_that_fits(
    profile: LatencyProfile,
    seen: list[tuple[Held, float]],
    held: Held,
    start: int,
    most: int,
    share: float,
) -> None:
    """Brute force over every size, limits around what the step costs already."""
    cost = StepCost(taught(profile, seen))
    cost.add_decodes(int(held.num_rows), int(held.kv_tokens))
    limit_ns = share * cost.total_ns

    def fits(size: int) -> bool:
        cost.add_prefill(start, size)
        total_ns = cost.total_ns
        cost.add_prefill(start, size, -1)
        return total_ns <= limit_ns

    expected = max([size for size in range(1, most + 1) if fits(size)], default=0)
    assert cost.affordable_prefill(start, most, limit_ns) == expected


@given(profiles, lessons, steps)
@settings(max_examples=50, deadline=None)
def test_equal_lessons_make_equal_models(
    profile: LatencyProfile, seen: list[tuple[Held, float]], held: Held
) -> None:
    assert cost_of(taught(profile, seen), held) == cost_of(taught(profile, seen), held)


@given(lessons)
@settings(deadline=None)
def test_the_link_is_not_what_steps_are(seen: list[tuple[Held, float]]) -> None:
    """Copies go beside steps and nobody times them: their prices are the profile's for ever."""
    model = taught(TRUE, seen)
    out_ns = TRUE.link_ns + 400 * TRUE.link_out_ns_per_token
    back_ns = TRUE.link_ns + 400 * TRUE.link_in_ns_per_token
    assert model.copy_ns(400, is_return=False) == out_ns
    assert model.return_ns(400) == model.copy_ns(400, is_return=True) == back_ns
    assert model.park_ns(400) == out_ns + back_ns


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, -math.inf, math.nan])
def test_times_that_cannot_be_teach_nothing(bad: float) -> None:
    model = LatencyModel(TRUE)
    held = Held(1, 1, 0, 50, 0.0, 0)
    before = cost_of(model, held)
    for predicted_ns, elapsed_ns in ((bad, 1e6), (1e6, bad)):
        model.learn(held, predicted_ns, elapsed_ns)
        model.settle()
    assert cost_of(model, held) == before
    assert model.errors.quantile(0.5) is None


def test_a_prediction_that_was_right_teaches_nothing() -> None:
    """A simulated device that is its profile never moves it, not even by rounding."""
    model = LatencyModel(TRUE)
    for seed in range(100):
        held = drawn(random.Random(seed))
        model.learn(held, int(cost_of(model, held)), int(cost_of(LatencyModel(TRUE), held)))
        model.settle()
    assert model.factor == 1.0
    assert model._learner.prices == PriceLearner(model._known).prices


def test_a_floor_that_shows_no_prices_moves_only_the_level() -> None:
    profile = dataclasses.replace(TRUE, floor_ns=1e9)
    model = LatencyModel(profile)
    for _ in range(200):
        teach(model, Held(4, 4, 0, 100, 0.0, 0), 2e9)
    assert cost_of(model, Held(4, 4, 0, 100, 0.0, 0)) == pytest.approx(2e9, rel=0.01)
    assert model._learner.prices == list(model._known)


def level_after(ratios: Sequence[float], check: Callable[[Level, float], None]) -> Level:
    level = Level()
    for ratio in ratios:
        before = level.log
        level.learn(math.log(ratio))
        check(level, before)
    return level


@given(st.lists(st.floats(1e-6, 1e6), max_size=80))
def test_a_level_moves_by_a_bounded_step(ratios: list[float]) -> None:
    """Even the fastest memory follows at most its rate times the bound, and all stay in range."""

    def check(level: Level, before: float) -> None:
        spread = max(level.logs) - min(level.logs)
        assert abs(level.log - before) <= max(RATES) * BOUND_RANGE[1] + spread + 1e-9
        assert 1e-3 <= level.value <= 1e3 + 1e-6

    level_after(ratios, check)


def test_what_fresh_caches_cost_is_learnt() -> None:
    """Steps right after a prompt, and the first ones after nobody was there, take 0.2 ms more."""
    rng, model, truth = random.Random(2), LatencyModel(TRUE), LatencyModel(TRUE)
    for _ in range(1500):
        held = drawn(rng)._replace(fresh=rng.choice([0.0, 0.0, 0.0, 1.0, 2.0]))
        calm_ns = cost_of(truth, held._replace(fresh=0.0)) + 2e5 * held.fresh
        teach(model, held, calm_ns * math.exp(rng.gauss(0, 0.03)))
    lone = Held(1, 1, 0, 500, 0.0, 0)
    extra_ns = cost_of(model, lone._replace(fresh=1.0)) - cost_of(model, lone)
    assert extra_ns == pytest.approx(2e5, rel=0.25)
    cost = StepCost(model)
    cost.add_decodes(1, 500)
    cost.fresh = 1.0
    assert cost.total_ns == cost_of(model, cost.held)


def test_freshness_wears_off() -> None:
    """Most after an idle engine's first prompt, nothing in the run of decodes."""
    assert freshness(0, follows_prompt=False) == freshness(50, follows_prompt=True) == 1.0
    assert freshness(1, follows_prompt=True) == 2.0
    assert 0 < freshness(2, follows_prompt=False) < 1
    assert freshness(50, follows_prompt=False) == 0.0
