"""The thread that learns and the process that fits: begun, ended, and never in anyone's way."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from length_scenes import ask, serve

from engine.core.clock import NS_PER_S, MonotonicClock, VirtualClock
from engine.learning import background as background_module
from engine.learning import fit_process, state
from engine.learning.fit_process import FitFailed, FitProcess
from engine.learning.learner import Learner
from engine.learning.length_model import LengthModel
from engine.learning.predictor import LearnedPredictor
from engine.learning.rows import Row
from engine.learning.scope import Ended


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until it is so; a minute is far more than anything here takes."""
    end = MonotonicClock().now_ns() + 60 * 10**9
    while not condition():
        assert MonotonicClock().now_ns() < end, "it never came"
        time.sleep(0.02)


def rows(count: int) -> list[Row]:
    rng, learner = random.Random(0), Learner()
    made = [ask(rng) for _ in range(count)]
    return [Row(learner.ask(question).features, length) for question, length in made]


def test_answers_become_a_model_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned in the background, fitted in a process, saved at the end, and there again."""
    monkeypatch.setattr(background_module, "BATCH_S", 0.01)
    predictor = LearnedPredictor("m", folder=tmp_path)
    predictor.start()
    try:
        serve(predictor, random.Random(0), 40)
        wait_for(lambda: predictor.stats().fits == 1)
        assert predictor.stats().models == 1
    finally:
        predictor.close()
    assert not predictor.stats().is_fitting
    again = LearnedPredictor("m", folder=tmp_path)
    assert (again.stats().rows, again.stats().models) == (40, 1)
    again.close()  # without a start: nothing to end


def test_closing_learns_what_is_pending_and_gives_up_a_fit(tmp_path: Path) -> None:
    """Nothing that was observed is lost, and no thread or process is left."""
    before = set(threading.enumerate())
    predictor = LearnedPredictor("m", folder=tmp_path)
    predictor.start()
    serve(predictor, random.Random(0), 40)
    predictor.close()
    assert set(threading.enumerate()) == before
    known = state.load(tmp_path, "m", "tenant")
    assert known is not None
    assert known.scopes.num_rows == 40


def test_a_fit_in_a_process_is_the_fit_made_here() -> None:
    """Equal rows give equal models, wherever they are fitted."""
    made = rows(40)
    fit = FitProcess(made, 0)
    found: list[LengthModel] = []

    def has_come() -> bool:
        model = fit.poll(1)
        if model is not None:
            found.append(model)
        return bool(found)

    wait_for(has_come)
    here = LengthModel.fit(made)
    for row in made:
        assert found[0].predict(row.features).middle == pytest.approx(
            here.predict(row.features).middle, rel=1e-3
        )


def test_a_fit_that_fails_says_why_in_one_sentence() -> None:
    """Too few rows: the process's own words."""
    fit = FitProcess(rows(3), 0)

    said: list[str] = []

    def has_failed() -> bool:
        try:
            assert fit.poll(1) is None
        except FitFailed as error:
            said.append(str(error))
        return bool(said)

    wait_for(has_failed)
    assert "too few" in said[0]


def test_a_fit_that_takes_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock that is handed in; whoever closes it twice does no harm."""
    fit = FitProcess(rows(40), 0)
    with pytest.raises(FitFailed, match="longer than"):
        fit.poll(int((fit_process.MOST_SECONDS + 1) * 1e9))
    fit.close()


def test_a_failed_fit_is_told_once_and_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guessing goes on; no second try before its time."""

    def refuse(rows: object, now_ns: int) -> FitProcess:
        raise OSError("no more processes")

    monkeypatch.setattr(background_module, "FitProcess", refuse)
    monkeypatch.setattr(background_module, "BATCH_S", 0.01)
    monkeypatch.setattr(background_module, "IDLE_S", 0.01)
    predictor = LearnedPredictor("m", clock=VirtualClock())
    predictor.start()
    try:
        with caplog.at_level(logging.WARNING):
            serve(predictor, random.Random(0), 120)
            wait_for(lambda: predictor.stats().learned == 120)
            wait_for(lambda: predictor.stats().failed_fits == 1)
        guess = predictor.predict("x", ask(random.Random(1))[0])
        assert guess.middle >= 1
    finally:
        predictor.close()
    assert [r.getMessage() for r in caplog.records] == [
        "output lengths: no process for a fit: no more processes; guessing goes on with what is "
        "known"
    ]


def test_more_than_can_be_learned_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that nobody empties stays bounded."""
    monkeypatch.setattr(background_module, "MOST_PENDING", 30)
    predictor = LearnedPredictor("m")
    serve(predictor, random.Random(0), 50)
    assert predictor.stats().forgotten == 20


def test_a_folder_that_cannot_be_written_is_told_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "taken").write_text("")
    with caplog.at_level(logging.WARNING):
        predictor = LearnedPredictor("m", folder=tmp_path / "taken" / "lengths")
        predictor.start()
        serve(predictor, random.Random(0), 5)
        predictor.close()
    assert any("cannot be saved" in r.getMessage() for r in caplog.records)


def test_it_is_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only at the end: a gateway that is killed keeps most of what it learned."""
    monkeypatch.setattr(background_module, "BATCH_S", 0.01)
    monkeypatch.setattr(background_module, "IDLE_S", 0.01)
    clock = VirtualClock()
    predictor = LearnedPredictor("m", folder=tmp_path, clock=clock)
    predictor.start()
    try:
        serve(predictor, random.Random(0), 5)
        wait_for(lambda: predictor.stats().learned == 5)
        assert not list(tmp_path.iterdir())
        clock.advance_to(background_module.SAVE_NS + 1)
        wait_for(lambda: state.file_of(tmp_path, "m").exists())
    finally:
        predictor.close()


def test_a_fault_does_not_end_the_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once with its traceback, counted, gone on after it; and saved at the end."""
    for name in ("BATCH_S", "IDLE_S", "PAUSE_S"):
        monkeypatch.setattr(background_module, name, 0.01)
    learn, faults = Learner.learn, [RuntimeError("one"), RuntimeError("two"), KeyError("three")]

    def sometimes(self: Learner, ended: Sequence[Ended]) -> None:
        if faults:
            raise faults.pop(0)
        learn(self, ended)

    monkeypatch.setattr(Learner, "learn", sometimes)
    predictor = LearnedPredictor("m", folder=tmp_path)
    assert not predictor.stats().is_learning
    predictor.start()
    try:
        with caplog.at_level(logging.ERROR):
            for failures in (1, 2, 3):
                serve(predictor, random.Random(failures), 1)
                wait_for(lambda: predictor.stats().failures == failures)  # noqa: B023
            serve(predictor, random.Random(4), 5)
            wait_for(lambda: predictor.stats().learned == 5)
        assert predictor.stats().is_learning
        faults.append(RuntimeError("at the very end"))
        serve(predictor, random.Random(5), 1)
    finally:
        predictor.close()
    assert not predictor.stats().is_learning
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    assert "RuntimeError" in caplog.records[0].getMessage()
    known = state.load(tmp_path, "m", "tenant")
    assert known is not None
    assert known.scopes.num_rows == 5


def test_a_fit_that_fails_in_an_unforeseen_way_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its process is ended, and it is not asked again every half second."""
    ended: list[bool] = []

    class OddFit:
        def __init__(self, rows: list[Row], now_ns: int) -> None: ...

        def poll(self, now_ns: int) -> LengthModel | None:
            raise ZeroDivisionError

        def close(self) -> None:
            ended.append(True)

    monkeypatch.setattr(background_module, "FitProcess", OddFit)
    for name in ("BATCH_S", "IDLE_S", "LOOK_S", "PAUSE_S"):
        monkeypatch.setattr(background_module, name, 0.01)
    predictor = LearnedPredictor("m", clock=VirtualClock())
    serve(predictor, random.Random(0), 40)
    predictor.start()
    try:
        wait_for(lambda: predictor.stats().failures == 1)
        serve(predictor, random.Random(1), 200)
        wait_for(lambda: predictor.stats().learned == 240)
        assert not predictor.stats().is_fitting
        assert predictor.stats().failures == 1
    finally:
        predictor.close()
    assert ended == [True]


def test_a_fit_is_followed_by_rest_unless_the_traffic_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tenth of the time at most is spent on fits that merely make a good model better."""
    clock = VirtualClock()

    class SlowFit:
        """Takes ten seconds of the clock, whatever the machine does."""

        def __init__(self, rows: list[Row], now_ns: int) -> None:
            self._rows, self._end_ns = rows, now_ns + 10 * NS_PER_S

        def poll(self, now_ns: int) -> LengthModel | None:
            if now_ns < self._end_ns:
                clock.advance_to(self._end_ns)
                return None
            return LengthModel.fit(self._rows)

        def close(self) -> None: ...

    monkeypatch.setattr(background_module, "FitProcess", SlowFit)
    for name in ("BATCH_S", "IDLE_S", "LOOK_S"):
        monkeypatch.setattr(background_module, name, 0.01)
    predictor, rng = LearnedPredictor("m", clock=clock), random.Random(0)
    serve(predictor, rng, 150)  # before it starts: all of them are in the first fit
    predictor.start()
    try:
        wait_for(lambda: predictor.stats().fits == 1)
        serve(predictor, rng, 100)
        wait_for(lambda: predictor.stats().learned == 250)
        time.sleep(0.2)
        assert (predictor.stats().fits, predictor.stats().is_fitting) == (1, False)
        clock.advance_to(clock.now_ns() + 90 * NS_PER_S)
        wait_for(lambda: predictor.stats().fits == 2)
        serve(predictor, rng, 90, scale=60.0)  # quite another traffic: that does not wait
        wait_for(lambda: predictor.stats().drifts >= 1)
        wait_for(lambda: predictor.stats().fits >= 3)
        assert clock.now_ns() < 200 * NS_PER_S
    finally:
        predictor.close()
