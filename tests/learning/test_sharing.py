"""Who learns from whom: tenants apart unless allowed, everything bounded, cold to warm."""

from __future__ import annotations

import dataclasses
import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from length_scenes import ask, order_accuracy, serve

from engine.learning import predictor as predictor_module
from engine.learning import scope as scope_module
from engine.learning import scopes as scopes_module
from engine.learning.cold import PRIOR
from engine.learning.drift import DriftDetector
from engine.learning.learner import DueFit, Learner
from engine.learning.length_model import LengthModel
from engine.learning.predictor import LearnedPredictor
from engine.learning.question import Question
from engine.learning.scope import Ended
from engine.learning.scopes import Sharing


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["acme", "loud", "other"]), st.integers(0, 999)), max_size=120
    )
)
def test_another_tenants_answers_never_change_a_guess(served: list[tuple[str, int]]) -> None:
    """Whatever is interleaved, acme is told exactly what it is told alone."""

    def told(*, alone: bool) -> list[object]:
        predictor = LearnedPredictor(every=1)
        out: list[object] = []
        for number, (tenant, seed) in enumerate(served):
            if alone and tenant != "acme":
                continue
            question, length = ask(random.Random(seed), tenant)
            guess = predictor.predict(str(number), question)
            predictor.observe(str(number), length, is_whole=seed % 5 > 0)
            if tenant == "acme":
                out.append(guess)
        return out

    assert told(alone=True) == told(alone=False)


def test_fits_of_others_change_nothing_either() -> None:
    """Past the first fits of both, in batches of different sizes."""

    def told(others: int) -> list[object]:
        predictor = LearnedPredictor(every=1)
        rng = random.Random(5)
        out: list[object] = []
        for number in range(80):
            if others and number % 2:
                serve(predictor, random.Random(number), others, "loud", scale=9.0)
            out += serve(predictor, rng, 1)
        assert predictor.stats().fits >= (2 if not others else 4)
        return out

    assert told(0) == told(2)


def test_a_new_tenant_hears_of_the_others_only_where_allowed() -> None:
    """`tenant`: the prior, as if alone in the world; `all`: what everybody's answers say."""
    question, _ = ask(random.Random(1), "newcomer")
    guesses = {}
    sharings: tuple[Sharing, ...] = ("tenant", "all")
    for sharing in sharings:
        predictor = LearnedPredictor(sharing=sharing, every=8)
        serve(predictor, random.Random(0), 64, "acme", scale=0.2)
        guesses[sharing] = predictor.predict("x", question)
    assert guesses["tenant"] == PRIOR.estimate(4096)
    assert guesses["all"].middle < guesses["tenant"].middle


def test_tenants_that_share_a_model_keep_their_own_running_numbers() -> None:
    """One answers ten times as long as the other, to the same questions: both are told so."""
    predictor = LearnedPredictor(sharing="all", every=8)
    rng = random.Random(0)
    for _ in range(60):
        serve(predictor, rng, 2, "brief", scale=0.3)
        serve(predictor, rng, 2, "wordy", scale=3.0)
    question, _ = ask(random.Random(7))
    middle = {
        name: predictor.predict(name, dataclasses.replace(question, tenant=name)).middle
        for name in ("brief", "wordy")
    }
    assert middle["wordy"] > 3 * middle["brief"]


def test_it_learns_what_makes_answers_long() -> None:
    """From nothing; after some 150 answers most pairs are in order, and nine in ten below high."""
    predictor = LearnedPredictor(every=4)
    rng = random.Random(11)
    first = serve(predictor, rng, 24)
    assert first[0][0] == PRIOR.estimate(4096).middle
    serve(predictor, rng, 128)
    later = serve(predictor, rng, 100)
    assert order_accuracy(later) > 0.85 > order_accuracy(first)
    assert sum(length <= high for _, high, length in later) >= 78
    stats = predictor.stats()
    assert (stats.learned, stats.rows, stats.models, stats.open_questions) == (252, 252, 1, 0)
    assert stats.order_accuracy > 0.7


def test_after_a_change_of_traffic_the_newest_answers_speak() -> None:
    """What was long is short from now on: found, counted, and learned within 200 answers."""
    predictor = LearnedPredictor(every=4)
    rng = random.Random(4)
    serve(predictor, rng, 260)
    assert predictor.stats().drifts == 0
    out = []
    for number in range(260):
        question, length = ask(rng)
        length = max(1, 700 // length)
        guess = predictor.predict(str(number), question)
        predictor.observe(str(number), length, is_whole=True)
        out.append((guess.middle, guess.high, length))
    assert predictor.stats().drifts >= 1
    assert order_accuracy(out[:20]) < 0.5
    assert order_accuracy(out[-60:]) > 0.75


def test_equal_runs_give_equal_guesses() -> None:
    """Bit for bit, fits included."""
    one, other = (serve(LearnedPredictor(every=4), random.Random(8), 120) for _ in range(2))
    assert one == other


def test_everything_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenants, rows of one, rows of all, open questions, and what models take."""
    monkeypatch.setattr(scopes_module, "MOST_TENANTS", 5)
    monkeypatch.setattr(scopes_module, "MOST_ROWS", 60)
    monkeypatch.setattr(scopes_module, "MOST_MODEL_BYTES", 1)
    monkeypatch.setattr(scope_module, "MOST_ROWS", 40)
    monkeypatch.setattr(predictor_module, "MOST_OPEN", 10)
    sharings: tuple[Sharing, ...] = ("tenant", "all")
    for sharing in sharings:
        predictor = LearnedPredictor(sharing=sharing, every=1)
        rng = random.Random(0)
        for tenant in "abcdefgh":
            serve(predictor, rng, 50, tenant)
            stats = predictor.stats()
            assert stats.rows <= 60
            assert stats.scopes <= 5
            assert stats.models <= 1
        for number in range(25):
            predictor.predict(f"open{number}", ask(rng)[0])
        stats = predictor.stats()
        assert (stats.open_questions, stats.forgotten) == (10, 15)
        predictor.observe("open0", 5, is_whole=True)  # pushed out: ignored
        assert predictor.stats().learned == 400


def test_of_several_that_are_due_the_one_without_a_fit_for_longest_is_fitted() -> None:
    """However busy another tenant is: between two fits of its own comes one of the quiet tenant's.

    An urgent fit does not wait for others' rest, but the next one of the same tenant does for its
    own.
    """
    learner, rng = Learner(), random.Random(0)

    def end(tenant: str, count: int) -> None:
        for _ in range(count):
            question, length = ask(rng, tenant)
            learner.learn([Ended(learner.ask(question), length, True)])

    end("quiet", 40)
    end("busy", 40)
    names = {id(scope): name for name, scope in learner.scopes}
    told = []
    for _ in range(4):
        end("quiet", 40)
        end("busy", 600)  # always due, and always asked last
        due = learner.due_fit()
        assert due is not None
        told.append(names[id(due.scope)])
    assert told == ["quiet", "busy", "quiet", "busy"]

    scopes = dict(learner.scopes)
    for scope in scopes.values():
        scope._change(40)
    scopes["busy"].last_fit, scopes["busy"].not_urgent_until_ns = 0, 100
    assert learner.scopes.due(50, only_urgent=True) is scopes["quiet"]
    assert learner.scopes.due(100, only_urgent=True) is scopes["busy"]
    assert learner.scopes.due(50) is scopes["busy"]


def test_answers_that_end_during_a_fit_are_in_the_new_models_index() -> None:
    """The fit did not see them: until the next one they are found by questions like theirs."""
    predictor, rng = LearnedPredictor(every=1), random.Random(0)
    serve(predictor, rng, 240)
    learner = predictor._learner
    scope = learner.scopes.find("acme")
    assert scope is not None
    fit = DueFit(scope, scope.to_fit())
    for _ in range(7):
        question, length = ask(rng)
        learner.learn([Ended(learner.ask(question), length, True)])
    model = LengthModel.fit(fit.rows)
    assert len(model.near.targets) == 240
    learner.install(fit, model)
    assert scope.model is not None
    assert len(scope.model.near.targets) == 247
    question, length = ask(rng)
    learner.learn([Ended(learner.ask(question), length, True)])
    assert len(scope.model.near.targets) == 248


def test_a_change_of_traffic_is_dated_to_the_answer() -> None:
    """So many newest answers are of the new traffic, the one that showed it included."""
    predictor, rng = LearnedPredictor(every=1000), random.Random(0)
    serve(predictor, rng, 20)
    predictor.learn_now()
    scope = predictor._learner.scopes.find("acme")
    assert scope is not None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DriftDetector, "add", lambda self, error: 5)
        serve(predictor, rng, 1)
        predictor.learn_now()
    assert [row.source for row in scope.rows] == [0] * 16 + [1] * 5
    assert scope._fresh == 5


def test_a_flood_takes_room_from_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for all, whoever has most gives; a small tenant keeps its rows."""
    monkeypatch.setattr(scopes_module, "MOST_ROWS", 60)
    predictor = LearnedPredictor(every=1)
    rng = random.Random(0)
    serve(predictor, rng, 20, "small")
    small = predictor.predict("q", ask(random.Random(3), "small")[0])
    serve(predictor, rng, 200, "flood")
    scopes = dict(predictor._learner.scopes)
    assert (len(scopes["small"].rows), len(scopes["flood"].rows)) == (20, 40)
    assert predictor.predict("q", ask(random.Random(3), "small")[0]) == small


def test_what_is_not_known_or_came_to_nothing_is_ignored() -> None:
    """Unknown ids, forgotten ones, answers without a token, and the same answer twice."""
    predictor = LearnedPredictor(every=1)
    question, _ = ask(random.Random(0))
    predictor.observe("nobody", 5, is_whole=True)
    for name in ("gone", "empty", "twice"):
        predictor.predict(name, question)
    predictor.forget("gone")
    predictor.forget("gone")
    predictor.observe("gone", 5, is_whole=True)
    predictor.observe("empty", 0, is_whole=True)
    for _ in range(2):
        predictor.observe("twice", 5, is_whole=True)
    stats = predictor.stats()
    assert (stats.learned, stats.open_questions) == (1, 0)


ODD_TEXTS = st.one_of(
    st.text(max_size=300), st.sampled_from(["", "\ud800", "\0" * 4000, "🙂" * 4000])
)
COUNTS = st.one_of(st.integers(0, 5), st.integers(0, 10**8))


@settings(max_examples=30, deadline=None)
@given(ODD_TEXTS, COUNTS, st.integers(1, 10**8), st.lists(COUNTS, max_size=90), st.floats(-1, 25))
def test_whatever_is_asked_a_guess_within_bounds_is_given(
    text: str, num_prompt: int, most: int, previous: list[int], hour: float
) -> None:
    """Before anything is known and when a model is there; it is learned from as well."""
    cold = LearnedPredictor(every=1)
    for predictor in (cold, taught_predictor()):
        question = Question("acme", text, num_prompt, most, tuple(previous), hour)
        for number in range(2):
            guess = predictor.predict(str(number), question)
            assert 1.0 <= guess.middle <= guess.high <= most
            predictor.observe(str(number), most, is_whole=False)


@cache
def taught_predictor() -> LearnedPredictor:
    predictor = LearnedPredictor(every=1)
    serve(predictor, random.Random(0), 210)
    return predictor
