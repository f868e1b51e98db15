"""A forecast follows the queue: longer ahead is later, nobody ahead is the prompt's own time."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.drain import step_ns
from engine.core.forecast import Forecast, Forecaster, Newcomer
from engine.core.load import ClassLoad, EngineLoad, OpenPrompt, Release
from engine.core.prompt_plan import PromptOrder, PromptPlan
from engine.core.request import LengthEstimate, Slo

MS = 1_000_000
S = 1_000_000_000
AT = 1000 * S
FREE = Slo(rank=1, ttft_ns=2 * S, ttft_ns_per_1k_prompt_tokens=S, tbt_ns=500 * MS)
PREMIUM = Slo()
HYBRID = PromptPlan(PromptOrder.DUE, True, 22 * S, 2.0, 0.5, 20.0)


def make_load(
    *classes: ClassLoad, plan: PromptPlan = HYBRID, rate: float = 5000.0, free: int = 9000
) -> EngineLoad:
    """An engine of 0.1 ms a prompt token, 20 ms a bare step and 100 ms a full one."""
    return EngineLoad(
        at_ns=AT,
        classes=classes,
        plan=plan,
        last_arrival_ns=AT,
        budget_ns=100 * MS,
        budget_tokens=8192,
        decode_ns=20 * MS if any(c.decodes for c in classes) else 0,
        bare_ns=20.0 * MS,
        row_ns=0.1 * MS,
        prompt_token_ns=0.1 * MS,
        prompt_rate=rate,
        step_ns=100 * MS,
        num_blocks=10_000,
        free_blocks=free,
        block_size=16,
        releases=(Release(800, 100, 16 * (10_000 - free)),),
    )


def waiting(tier: str, rank: int, tokens: list[int], due_ns: int = S) -> ClassLoad:
    prompts = tuple(OpenPrompt(due_ns + number, t, 200) for number, t in enumerate(tokens))
    return ClassLoad(tier, rank, prompts)


def newcomer(tokens: int = 1000, slo: Slo = FREE, name: str = "me") -> Newcomer:
    tier = "premium" if slo.rank == 0 else "free"
    return Newcomer(name, tier, slo, tokens, LengthEstimate(200.0, 400.0))


def forecast(load: EngineLoad, who: Newcomer, forecaster: Forecaster | None = None) -> Forecast:
    found = (forecaster or Forecaster()).forecast(who, load, AT, AT)
    assert found is not None
    return found


def test_an_empty_engine_takes_the_prompts_own_time() -> None:
    """1,000 tokens of 0.1 ms in steps of 100 ms, 20 ms of each spent: about 120 to 130 ms."""
    raw = forecast(make_load(), newcomer()).raw_ns
    assert 100 * MS <= raw <= 140 * MS


def test_an_unmeasured_engine_without_a_model_is_not_forecast() -> None:
    """Where nothing is known nothing is said."""
    load = EngineLoad(at_ns=AT)
    assert Forecaster().forecast(newcomer(), load, AT, AT) is None


PLANS = [
    HYBRID,
    PromptPlan(),
    PromptPlan(PromptOrder.SHORTEST),
    PromptPlan(PromptOrder.SHORTEST, by_class=True),
]


@pytest.mark.parametrize("plan", PLANS)
@given(tokens=st.lists(st.integers(1, 900), max_size=30), more=st.integers(1, 900))
def test_more_ahead_is_never_sooner(plan: PromptPlan, tokens: list[int], more: int) -> None:
    """Under any order, one more prompt that goes first does not bring the newcomer forward."""
    before = forecast(make_load(waiting("free", 1, tokens), plan=plan), newcomer())
    after = forecast(make_load(waiting("free", 1, [*tokens, more]), plan=plan), newcomer())
    if before.risk == after.risk == 0.0:
        assert after.raw_ns >= before.raw_ns - MS
    else:
        assert after.risk >= before.risk


@given(st.lists(st.integers(1, 3000), max_size=20))
def test_classes_behind_do_not_count(tokens: list[int]) -> None:
    """A premium prompt is not kept waiting by free ones, beyond the step that is out."""
    alone = forecast(make_load(), newcomer(slo=PREMIUM)).raw_ns
    beside = forecast(make_load(waiting("free", 1, tokens)), newcomer(slo=PREMIUM)).raw_ns
    assert alone <= beside <= alone + 200 * MS


def test_classes_ahead_count() -> None:
    """A free prompt waits for the premium ones."""
    alone = forecast(make_load(), newcomer()).raw_ns
    beside = forecast(make_load(waiting("premium", 0, [4000])), newcomer()).raw_ns
    assert beside > alone + 400 * MS


def test_later_due_times_do_not_count_where_due_times_order() -> None:
    """A long prompt with a later due time is overtaken."""
    later = waiting("free", 1, [5000, 5000], due_ns=60 * S)
    sooner = waiting("free", 1, [5000, 5000], due_ns=S)
    assert forecast(make_load(later), newcomer()).raw_ns <= 300 * MS
    assert forecast(make_load(sooner), newcomer()).raw_ns > 900 * MS


def test_the_doors_own_count_stands_for_what_the_load_does_not_hold_yet() -> None:
    """Requests let in since the load was read are ahead, too; none is counted twice."""
    forecaster, load = Forecaster(), make_load(rate=2000.0, free=0)
    for number in range(8):
        forecaster.took(newcomer(400, name=f"new{number}"), AT + 1, load)
    known, unknown = forecast(load, newcomer(), forecaster), forecast(load, newcomer())
    assert known.raw_ns > unknown.raw_ns + S
    told = dataclasses.replace(load, at_ns=AT + 1, last_arrival_ns=AT + 1)
    assert forecast(told, newcomer(), forecaster).raw_ns == pytest.approx(unknown.raw_ns, rel=0.05)


def test_who_cannot_be_on_time_is_at_risk() -> None:
    """Behind 15 s of cheaper prompts that are due before it, a dear one is given up everywhere."""
    queue = [waiting("free", 1, [500] * 40, due_ns=8 * S)]
    found = forecast(make_load(*queue, rate=1000.0, free=0), newcomer(7000))
    assert found.risk == 1.0
    assert found.on_time < 0.2
    assert found.ttft_ns >= HYBRID.second_ns


def test_memory_that_will_be_short_slows_the_queue() -> None:
    """With the same free blocks now, a future peak beyond the pool means the measured speed."""
    queue = waiting("free", 1, [2000] * 4)
    calm = make_load(queue, plan=PromptPlan(), rate=1000.0, free=100)
    calm = dataclasses.replace(calm, releases=(Release(8, 10, 1000),))
    full = dataclasses.replace(calm, releases=(Release(800, 100, 16 * 9_900),))
    assert forecast(full, newcomer()).raw_ns > 2 * forecast(calm, newcomer()).raw_ns


def test_a_cheap_one_is_not_at_risk_behind_dear_ones() -> None:
    """The policy gives up the dearest: a short prompt is kept in the same queue."""
    queue = [waiting("free", 1, [5000] * 8, due_ns=S)]
    assert forecast(make_load(*queue, rate=1000.0, free=0), newcomer(20)).risk == 0.0


def test_outcomes_correct_the_forecast() -> None:
    """Where it always takes twice as long as simulated, the forecast comes to say so."""
    forecaster = Forecaster()
    load = make_load(waiting("free", 1, [900] * 4))
    for number in range(100):
        who = newcomer(name=f"r{number}")
        found = forecast(load, who, forecaster)
        forecaster.expects(who, found, AT)
        forecaster.first_token(who.id, AT + int(2 * found.raw_ns))
    corrected = forecast(load, newcomer(), forecaster)
    assert corrected.ttft_ns == pytest.approx(2 * corrected.raw_ns, rel=0.05)
    assert corrected.low_ns <= corrected.ttft_ns <= corrected.high_ns
    assert corrected.evidence == 100


@given(st.integers(1, 8000), st.integers(0, 60), st.sampled_from(PLANS), st.integers(0, 1))
def test_every_forecast_makes_sense(tokens: int, count: int, plan: PromptPlan, rank: int) -> None:
    """Times are finite and ordered, chances are chances."""
    rng = random.Random(tokens)
    load = make_load(waiting("free", 1, [rng.randrange(1, 3000) for _ in range(count)]), plan=plan)
    found = forecast(load, newcomer(tokens, FREE if rank else PREMIUM))
    assert 0.0 < found.low_ns <= found.high_ns
    assert 0.0 < found.ttft_ns < 1e18
    assert 0.0 <= found.on_time <= 1.0
    assert 0.0 <= found.risk <= 1.0


STEPS = (1, 2, 5, 10, 20, 30, 60, 120)


@pytest.mark.parametrize("plan", PLANS)
@given(tokens=st.lists(st.integers(1, 2000), max_size=40))
def test_hints_are_steps_and_grow_with_the_queue(plan: PromptPlan, tokens: list[int]) -> None:
    """A hint is one of the steps; one more ahead never brings it forward."""
    forecaster = Forecaster()
    short = make_load(waiting("free", 1, tokens), plan=plan, rate=1000.0, free=0)
    more = [*tokens, 2000, 2000, 2000]
    long = make_load(waiting("free", 1, more), plan=plan, rate=1000.0, free=0)
    hint = forecaster.retry_s(newcomer(), short, AT, STEPS)
    assert hint in STEPS
    if plan.order is not PromptOrder.DUE:
        assert forecaster.retry_s(newcomer(), long, AT, STEPS) >= hint


def test_a_step_is_priced_as_the_load_says() -> None:
    """Bare, rows and tokens add up; no step outlasts its budget."""
    load = make_load(ClassLoad("free", 1, decodes=10))
    assert step_ns(load, 0) == 20 * MS
    assert step_ns(load, 100) == pytest.approx(20 * MS + 1 * MS + 10 * MS)
    assert step_ns(load, 100_000) == 100 * MS


def test_times_count_from_the_arrival() -> None:
    """What is over of the promise when it is judged is in the forecast, and no luck of it."""
    load = make_load(waiting("free", 1, [900] * 4))
    now, late = newcomer(), dataclasses.replace(newcomer(), waited_ns=300 * MS)
    fresh, waited = forecast(load, now), forecast(load, late)
    assert waited.ttft_ns == pytest.approx(fresh.ttft_ns + 300 * MS)
    assert waited.low_ns > 300 * MS
    assert waited.on_time <= fresh.on_time
    forecaster = Forecaster()
    for number in range(100):
        who = dataclasses.replace(late, id=f"r{number}")
        found = forecast(load, who, forecaster)
        forecaster.expects(who, found, AT - 300 * MS)
        forecaster.first_token(who.id, AT + int(found.raw_ns))
    assert forecast(load, late, forecaster).ttft_ns == pytest.approx(
        300 * MS + forecast(load, late, forecaster).raw_ns, rel=0.05
    )


def test_the_way_from_the_engine_adds_to_every_time() -> None:
    """What first tokens usually take from the engine to the door is learnt, and added."""
    forecaster, load = Forecaster(), make_load()
    for number in range(40):
        forecaster.first_token(f"r{number}", AT, AT - 8 * MS)
    assert forecast(load, newcomer(), forecaster).raw_ns == pytest.approx(
        forecast(load, newcomer()).raw_ns + 8 * MS
    )


def test_what_is_in_the_prefix_cache_takes_no_time() -> None:
    """A prompt of which nearly all is cached is as quick as a short one."""
    cached = dataclasses.replace(newcomer(5000), num_cached_tokens=4900)
    quick, slow = forecast(make_load(), cached), forecast(make_load(), newcomer(5000))
    assert quick.raw_ns < 0.2 * slow.raw_ns
    assert quick.raw_ns == pytest.approx(forecast(make_load(), newcomer(100)).raw_ns)


def test_who_has_its_first_token_is_ahead_of_nobody() -> None:
    """Also where the load is older than that: the door knows of it already."""
    forecaster, load = Forecaster(), make_load(rate=2000.0, free=0)
    for number in range(8):
        forecaster.took(newcomer(400, name=f"new{number}"), AT + 1, load)
    waiting_ns = forecast(load, newcomer(), forecaster).raw_ns
    for number in range(8):
        forecaster.first_token(f"new{number}", AT + MS)
    assert forecast(load, newcomer(), forecaster).raw_ns < waiting_ns - S
    assert forecaster.is_idle(load)


def test_what_was_done_since_the_load_was_read_is_no_longer_ahead() -> None:
    """The load may be older than the newest snapshot: steps went on meanwhile."""
    load = make_load(waiting("free", 1, [1000] * 8), plan=PromptPlan(), rate=2000.0, free=0)
    now = Forecaster().forecast(newcomer(), load, AT, AT)
    later = Forecaster().forecast(newcomer(), load, AT + S, AT + S)
    assert now is not None
    assert later is not None
    assert later.raw_ns == pytest.approx(now.raw_ns - S, abs=0.2 * S)


def test_a_step_of_few_tokens_is_over_before_its_time_is() -> None:
    """Where a step may hold 200 tokens, 1,000 take five short steps and not five full ones."""
    load = dataclasses.replace(make_load(), budget_tokens=200)
    assert step_ns(load, 5000) == pytest.approx(40 * MS)
    assert forecast(load, newcomer(1000)).raw_ns == pytest.approx(5 * 40 * MS, rel=0.05)
