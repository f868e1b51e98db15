"""Who may be refused by forecast, who never, and what is told them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_forecast import AT, FREE, MS, PREMIUM, S, make_load, newcomer, waiting

from engine.core.admission import (
    HINT_STEPS_S,
    MOST_FOLLOWED,
    Action,
    AdmissionRules,
    Gatekeeper,
    Mode,
    OnOverload,
    Reason,
)
from engine.core.calibration import EXPIRE_NS
from engine.core.forecast import LEAST_PAIRS
from engine.core.load import EngineLoad
from engine.core.prompt_plan import PromptPlan

BUSY = make_load(waiting("free", 1, [2000] * 40), rate=1000.0, free=0, plan=PromptPlan())
NO_PROBES = AdmissionRules(probe_every=0)


def keeper_at(
    load: EngineLoad, rules: AdmissionRules = NO_PROBES, outcomes: int = 100
) -> Gatekeeper:
    """A door that knows this load, and so many outcomes of each tier as they were forecast."""
    keeper = Gatekeeper(rules)
    keeper.look(load, AT)
    for number in range(outcomes):
        for slo in (FREE, PREMIUM):
            who = newcomer(slo=slo, name=f"{slo.rank}/{number}")
            found = keeper.forecaster.forecast(who, load, AT, AT)
            if found is not None:
                keeper.forecaster.expects(who, found, AT)
                keeper.forecaster.first_token(who.id, AT + int(found.raw_ns))
    return keeper


def test_a_hopeless_free_request_is_refused_with_reason_and_hint() -> None:
    """80 s of prompts ahead and a target of 3 s: no chance, and the hint is one of the steps."""
    verdict = keeper_at(BUSY).judge(newcomer(), OnOverload.REJECT, AT)
    assert verdict.action is verdict.would is Action.REFUSE
    assert verdict.reason in (Reason.SLO_UNREACHABLE, Reason.SATURATED)
    assert verdict.retry_after_ms in [1000 * step for step in HINT_STEPS_S]
    assert verdict.forecast is not None
    assert verdict.forecast.on_time <= 0.1
    assert verdict.forecast.ttft_ns >= 2 * verdict.forecast.target_ns


def test_the_first_class_is_never_refused_by_forecast() -> None:
    """Soft mode: whatever the forecast says of it."""
    verdict = keeper_at(BUSY).judge(newcomer(slo=PREMIUM), OnOverload.REJECT, AT)
    assert verdict.forecast is not None
    assert verdict.forecast.ttft_ns > 10 * verdict.forecast.target_ns
    assert verdict.action is verdict.would is Action.ADMIT


def test_the_tier_says_what_happens() -> None:
    """Queue lets everybody in, downgrade serves as another tier, also those of the first class."""
    keeper = keeper_at(BUSY)
    assert keeper.judge(newcomer(), OnOverload.QUEUE, AT).would is Action.ADMIT
    for slo in (FREE, PREMIUM):
        verdict = keeper.judge(newcomer(slo=slo), OnOverload.DOWNGRADE, AT)
        assert verdict.action is Action.DOWNGRADE


def test_shadow_and_off_let_everybody_in() -> None:
    """Shadow says what it would do; off says nothing."""
    shadow = keeper_at(BUSY, AdmissionRules(Mode.SHADOW))
    verdict = shadow.judge(newcomer(), OnOverload.REJECT, AT)
    assert (verdict.action, verdict.would) == (Action.ADMIT, Action.REFUSE)
    off = keeper_at(BUSY, AdmissionRules(Mode.OFF)).judge(newcomer(), OnOverload.REJECT, AT)
    assert (off.action, off.would, off.forecast) == (Action.ADMIT, Action.ADMIT, None)


def test_hard_mode_refuses_every_class_at_the_target() -> None:
    """Where the operator wants it."""
    hard = keeper_at(BUSY, AdmissionRules(Mode.HARD, probe_every=0))
    for slo in (FREE, PREMIUM):
        assert hard.judge(newcomer(slo=slo), OnOverload.REJECT, AT).action is Action.REFUSE
        assert hard.judge(newcomer(slo=slo), OnOverload.QUEUE, AT).action is Action.ADMIT


def test_a_cold_door_refuses_nobody() -> None:
    """Before enough outcomes are known the forecast is only a guess (law L40)."""
    few = keeper_at(BUSY, outcomes=10)
    assert few.judge(newcomer(), OnOverload.REJECT, AT).would is Action.ADMIT
    assert Gatekeeper().judge(newcomer(), OnOverload.REJECT, AT).would is Action.ADMIT


def test_an_idle_engine_refuses_nobody() -> None:
    """Nobody waits for a first token: it is let in, however long its prompt."""
    keeper = keeper_at(make_load(rate=10.0, free=0))
    verdict = keeper.judge(newcomer(200_000), OnOverload.REJECT, AT)
    assert verdict.forecast is not None
    assert verdict.would is Action.ADMIT


def test_a_silent_engine_refuses_nobody() -> None:
    """A load that is too old says nothing."""
    keeper = keeper_at(BUSY)
    late = AT + NO_PROBES.stale_ns + S
    verdict = keeper.judge(newcomer(), OnOverload.REJECT, late)
    assert (verdict.would, verdict.forecast) == (Action.ADMIT, None)


def test_a_draining_engine_refuses_everybody() -> None:
    """Another replica may take it at once."""
    keeper = keeper_at(BUSY)
    keeper.look(dataclasses.replace(BUSY, draining=True), AT)
    verdict = keeper.judge(newcomer(slo=PREMIUM), OnOverload.QUEUE, AT)
    assert (verdict.action, verdict.reason) == (Action.REFUSE, Reason.DRAINING)
    assert verdict.retry_after_ms == 1000


def test_a_near_miss_is_let_in() -> None:
    """Beyond the target but not by the stated factor: soft means in doubt, yes."""
    near = make_load(waiting("free", 1, [1000] * 3), rate=1000.0, free=0, plan=PromptPlan())
    verdict = keeper_at(near).judge(newcomer(), OnOverload.REJECT, AT)
    assert verdict.forecast is not None
    assert verdict.forecast.ttft_ns > verdict.forecast.target_ns
    assert verdict.would is Action.ADMIT


def test_forecasts_that_proved_wrong_open_the_door() -> None:
    """They were all on time although said to be hopeless: nobody is refused on such forecasts."""
    keeper = keeper_at(BUSY)
    assert keeper.judge(newcomer(), OnOverload.REJECT, AT).would is Action.REFUSE
    for number in range(60):
        who = newcomer(name=f"lucky{number}")
        verdict = keeper.judge(who, OnOverload.REJECT, AT)
        assert verdict.forecast is not None
        keeper.forecaster.expects(who, verdict.forecast, AT)
        keeper.forecaster.first_token(who.id, AT + S)
    assert keeper.judge(newcomer(), OnOverload.REJECT, AT).would is Action.ADMIT


def test_probes_are_let_in() -> None:
    """Every so many of those to be refused shows what would have become of it."""
    keeper = keeper_at(BUSY, AdmissionRules(probe_every=5))
    verdicts = [keeper.judge(newcomer(), OnOverload.REJECT, AT) for _ in range(20)]
    assert [v.would for v in verdicts] == [Action.REFUSE] * 20
    assert sum(v.action is Action.ADMIT for v in verdicts) == 4


def test_a_probe_is_for_its_own_tier_only() -> None:
    """One in five of each tier's; who is asked for in a lower tier's place is no probe there."""
    keeper = keeper_at(BUSY, AdmissionRules(probe_every=5))
    probes = {OnOverload.DOWNGRADE: 0, OnOverload.REJECT: 0}
    for _ in range(100):
        for slo, on_overload in ((PREMIUM, OnOverload.DOWNGRADE), (FREE, OnOverload.REJECT)):
            may_probe = slo is PREMIUM
            verdict = keeper.judge(newcomer(slo=slo), on_overload, AT, may_probe=may_probe)
            assert verdict.would is not Action.ADMIT
            probes[on_overload] += verdict.action is Action.ADMIT
    assert probes == {OnOverload.DOWNGRADE: 20, OnOverload.REJECT: 0}


def test_a_class_of_which_nobody_is_served_is_refused_at_last() -> None:
    """All leave without a first token after 20 s: that is what becomes of them, and is known."""
    keeper, refused = Gatekeeper(NO_PROBES), 0
    for number in range(300):
        now_ns = AT + number * S // 5
        load = dataclasses.replace(BUSY, at_ns=now_ns, last_arrival_ns=now_ns)
        keeper.look(load, now_ns)
        who = newcomer(name=str(number))
        verdict = keeper.judge(who, OnOverload.REJECT, now_ns)
        if verdict.action is Action.REFUSE:
            refused += 1
            continue
        keeper.took(who, verdict, now_ns)
        keeper.left(str(number - 100))
    assert refused > 200


IDLE = make_load(rate=1000.0, free=1000, plan=PromptPlan())


@pytest.mark.parametrize("every_s", [0.25, 60.0])
def test_idle_time_counts_though_an_idle_engine_says_nothing(every_s: float) -> None:
    """A burst is over 0.1 s after a refusal: it was false, and who came back would be on time."""
    keeper = keeper_at(BUSY)
    who = newcomer(100)
    verdict = keeper.judge(who, OnOverload.REJECT, AT)
    assert verdict.action is Action.REFUSE
    keeper.refused(who, verdict, AT)
    for number in range(102):  # whoever was let in for the evidence
        keeper.forecaster.forget(str(number))
    now_ns = AT + 100 * MS
    keeper.look(IDLE, now_ns)
    while now_ns < AT + 300 * S:
        now_ns += int(every_s * S)
        keeper.look(IDLE, now_ns)
    counts = keeper.ledger
    assert (counts.justified, counts.false) == (0, 1)
    assert (counts.returns, counts.returns_admitted, counts.returns_on_time) == (1, 1, 1)


def test_an_engine_is_idle_until_somebody_is_let_in() -> None:
    """From then on the next load says what there was to do."""
    keeper = keeper_at(BUSY)
    who = newcomer(5000)
    verdict = keeper.judge(who, OnOverload.REJECT, AT)
    keeper.refused(who, verdict, AT)
    keeper.look(IDLE, AT + 100 * MS)
    another = newcomer(5000, name="another")
    keeper.took(another, keeper.judge(another, OnOverload.QUEUE, AT), AT + 150 * MS)
    keeper.look(BUSY, AT + 60 * S)
    counts = keeper.ledger
    assert (counts.justified, counts.false) == (1, 0)


@given(st.integers(1, 20_000), st.integers(0, 60), st.sampled_from(OnOverload))
def test_refusals_only_under_the_stated_conditions(
    tokens: int, count: int, on_overload: OnOverload
) -> None:
    """Whatever the queue: a refusal has reject, a class behind, the factor, and no chance."""
    load = make_load(waiting("free", 1, [1500] * count), rate=1500.0, free=0, plan=PromptPlan())
    keeper = keeper_at(load, outcomes=60)
    for slo in (FREE, PREMIUM):
        verdict = keeper.judge(newcomer(tokens, slo), on_overload, AT)
        if verdict.would is Action.REFUSE:
            found = verdict.forecast
            assert on_overload is OnOverload.REJECT
            assert slo.rank > 0
            assert count > 0
            assert found is not None
            assert found.ttft_ns >= 2.0 * found.target_ns
            assert found.on_time <= 0.1
            assert verdict.retry_after_ms is not None
            assert 1000 <= verdict.retry_after_ms <= 120_000
        else:
            assert (verdict.reason, verdict.retry_after_ms) in ((None, None),) or (
                verdict.would is Action.DOWNGRADE
            )


def test_what_is_followed_is_bounded() -> None:
    """Requests without a first token do not pile up."""
    keeper = keeper_at(BUSY, AdmissionRules(Mode.SHADOW))
    for number in range(MOST_FOLLOWED + 200):
        who = newcomer(name=f"n{number}")
        keeper.took(who, keeper.judge(who, OnOverload.QUEUE, AT), AT)
    assert keeper.num_followed <= MOST_FOLLOWED + 1024


def test_a_request_that_left_is_forgotten() -> None:
    """Neither forecast nor ledger waits for it."""
    keeper = keeper_at(BUSY, AdmissionRules(Mode.SHADOW, check_every=1))
    who = newcomer()
    keeper.took(who, keeper.judge(who, OnOverload.QUEUE, AT), AT)
    keeper.left(who.id)
    keeper.first_token(who.id, AT + 5 * MS)
    keeper.look(BUSY, AT + 60 * S)
    assert keeper.ledger.checked == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 0.5},
        {"factor": float("nan")},
        {"most_on_time": 2.0},
        {"probe_every": -1},
        {"least_evidence": 65},
    ],
)
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    """One clear error."""
    with pytest.raises(ValueError, match="admission:"):
        AdmissionRules(**wrong)


CROWDED = make_load(waiting("free", 1, [500] * 40, due_ns=8 * S), rate=1000.0, free=0)
MANY = 7000  # tokens of a prompt that every simulated future gives up in that crowd


def outcome_of(keeper: Gatekeeper, name: str, now_ns: int, ttft_ns: int) -> Action:
    """Return what a hopeless forecast comes to; one let in has its first token after `ttft_ns`."""
    keeper.look(dataclasses.replace(CROWDED, at_ns=now_ns, last_arrival_ns=now_ns), now_ns)
    who = newcomer(MANY, name=name)
    verdict = keeper.judge(who, OnOverload.REJECT, now_ns)
    assert verdict.forecast is not None
    assert verdict.forecast.basis == "risk 3/4"
    if verdict.action is Action.ADMIT:
        keeper.took(who, verdict, now_ns)
        keeper.first_token(who.id, now_ns + ttft_ns)
    return verdict.action


@pytest.mark.parametrize("mode", [Mode.SOFT, Mode.HARD])
@pytest.mark.parametrize(("ttft_s", "then"), [(100, Action.REFUSE), (1, Action.ADMIT)])
def test_nobody_is_refused_for_a_kind_that_nobody_has_checked(
    mode: Mode, ttft_s: int, then: Action
) -> None:
    """Plenty of outcomes of calm times say nothing of a risk: those let in do, until they expire.

    Whether they miss or are on time decides of the next; ten minutes later it begins anew.
    """
    keeper = keeper_at(make_load(), AdmissionRules(mode, probe_every=0))
    assert keeper.judge(newcomer(), OnOverload.REJECT, AT).would is Action.ADMIT
    for began_ns in (AT, AT + 2 * EXPIRE_NS):
        said = [
            outcome_of(keeper, f"{began_ns} {number}", began_ns + number * S // 100, ttft_s * S)
            for number in range(LEAST_PAIRS)
        ]
        assert said == [Action.ADMIT] * LEAST_PAIRS
        assert outcome_of(keeper, f"{began_ns} next", began_ns + 200 * S, ttft_s * S) is then


@pytest.mark.parametrize("rules", [AdmissionRules(Mode.SHADOW), AdmissionRules(probe_every=1)])
def test_who_is_let_in_against_the_rules_tells_what_they_are_worth(rules: AdmissionRules) -> None:
    """Shadow mode and probes: a false refusal is counted as well as a right one."""
    keeper = keeper_at(BUSY, rules)
    firsts = {"timely": AT + S, "late": AT + 100 * S}
    for name in (*firsts, "patient", "hasty"):
        who = newcomer(name=name)
        verdict = keeper.judge(who, OnOverload.REJECT, AT)
        assert (verdict.action, verdict.would) == (Action.ADMIT, Action.REFUSE)
        keeper.took(who, verdict, AT)
    sure = newcomer(name="sure")
    keeper.took(sure, keeper.judge(sure, OnOverload.QUEUE, AT), AT)
    for name, at_ns in (firsts | {"sure": AT + S}).items():
        keeper.first_token(name, at_ns)
    keeper.left("hasty")
    keeper.look(BUSY, AT + 100 * S)
    keeper.left("patient")
    keeper.left("late")
    counts = keeper.ledger
    assert (counts.would_refuse, counts.would_on_time, counts.would_missed) == (4, 1, 2)
    assert counts.refused == 0
