"""The learned predictor in the simulator: what it may know, that equal runs are equal, and why."""

from __future__ import annotations

import builtins
import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from sim_world import short_rows, write_profile

from engine.core.length_predictor import LengthPredictor
from engine.core.request import LengthEstimate, RequestOrder
from engine.core.tape import RecordingCore, TapeEvent, replay
from engine.sim.point import PointSpec, Scene, run_point
from engine.sim.predictors import PredictorError, make_predictor
from engine.sim.trace import TraceRow

pytest.importorskip("numpy", reason="the learned predictor needs numpy")
pytest.importorskip("xgboost", reason="the learned predictor needs xgboost")


def talks(count: int, seed: int = 0) -> tuple[TraceRow, ...]:
    """Conversations of three turns whose answers are all about as long."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        usual, said = rng.choice((2, 6, 20)), ()
        for _ in range(3):
            output = max(1, usual + rng.randint(-1, 1))
            rows.append(TraceRow(rng.randint(4, 30), output, None, "", (), f"t{number}", said))
            said = (*said, output)
    return tuple(rows)


ROWS = talks(200)


def spec(folder: Path, predictor: str = "learned", **changes: Any) -> PointSpec:
    fields: dict[str, Any] = {"profile": write_profile(folder), "seed": 3, **changes}
    return PointSpec("", "alise", 20.0, fields.pop("requests", 90), predictor=predictor, **fields)


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    """Learning and its fits included; another seed is another run."""
    one, other = (run_point(spec(tmp_path, "learned:30"), ROWS) for _ in range(2))
    assert one == other
    assert run_point(spec(tmp_path, "learned:30", seed=4), ROWS) != one


def test_a_recorded_run_replays_to_identical_batches(tmp_path: Path) -> None:
    """A fresh predictor learns the same from the same run (law L37)."""
    tape: list[TapeEvent] = []
    point = spec(tmp_path, "learned:20", faults=dataclasses.replace(PointSpec("", "", 1, 1).faults))
    run_point(point, ROWS, wrap=lambda core: RecordingCore(core, tape.append))
    told = replay(tape, Scene(point, ROWS).core())
    assert sum(event.stats is not None for event in told) == 90


def test_a_turns_guess_never_depends_on_lengths_that_are_still_to_come(tmp_path: Path) -> None:
    """All answers that were not known when it was asked are changed: it is told the same (L26)."""
    orders: list[RequestOrder] = []
    guesses: list[LengthEstimate] = []
    rows = [*ROWS]
    scene = Scene(spec(tmp_path), rows)
    predictor = scene._learned(0)
    maker = scene.orders()
    for request in scene.workload.requests[:40]:
        orders.append(maker.order(request))
        guesses.append(predictor.predict(orders[-1]))
    changed = [
        dataclasses.replace(row, num_output_tokens=1 + (7 * row.num_output_tokens) % 23)
        for row in rows
    ]
    other_scene = Scene(spec(tmp_path, max_output_tokens=scene.max_output_tokens), changed)
    other = other_scene._learned(0)
    other_maker = other_scene.orders()
    for request, guess in zip(other_scene.workload.requests[:40], guesses, strict=True):
        assert other.predict(other_maker.order(request)) == guess


def test_it_is_asked_as_the_door_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much was asked in each turn, and the most that a row may have where the trace says."""
    from engine.learning.predictor import LearnedPredictor

    asked: list[Any] = []

    def listen(self: LearnedPredictor, name: str, question: Any) -> LengthEstimate:
        asked.append(question)
        return LengthEstimate(1.0, 2.0)

    monkeypatch.setattr(LearnedPredictor, "predict", listen)
    rows = [
        TraceRow(9, 5, max_tokens=77),
        TraceRow(12, 5, conversation="a", previous_outputs=(3,), asked_tokens=(4, 5)),
    ]
    scene = Scene(spec(tmp_path, requests=2), rows)
    predictor, maker = scene._learned(0), scene.orders()
    for request in scene.workload.requests:
        predictor.predict(maker.order(request))
    found = {(q.num_prompt_tokens, q.asked_tokens, q.max_tokens) for q in asked}
    assert found == {(9, (9,), 77), (12, (4, 5), scene.max_output_tokens)}


def test_it_is_taught_by_rows_of_other_conversations_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same file, but of no talk that the workload has a turn of."""
    from engine.learning.predictor import LearnedPredictor

    taught: list[Any] = []

    def listen(self: LearnedPredictor, examples: Any) -> None:
        taught.extend(examples)

    monkeypatch.setattr(LearnedPredictor, "teach", listen)
    scene = Scene(spec(tmp_path, requests=40), ROWS)
    used = {ROWS[r.row].conversation for r in scene.workload.requests}
    free = [row for row in ROWS if row.conversation not in used]
    scene._learned(len(free))
    assert len(taught) == len(free) > 100
    asked = sorted((q.num_prompt_tokens, n, q.previous_outputs) for q, n in taught)
    assert asked == sorted(
        (row.num_prompt_tokens, row.num_output_tokens, row.previous_outputs) for row in free
    )
    with pytest.raises(PredictorError, match=f"has only {len(free)} rows"):
        scene._learned(len(free) + 1)


def test_every_request_knows_its_row(tmp_path: Path) -> None:
    """With drawn arrivals and with recorded ones."""
    timed = short_rows(30)
    for arrivals in ("poisson", "trace"):
        point = spec(tmp_path, "oracle", arrivals=arrivals, requests=50)
        for request in Scene(point, timed).workload.requests:
            row = timed[request.row]
            assert request.num_output_tokens == row.num_output_tokens
            assert request.num_prompt_tokens == row.num_prompt_tokens


def test_it_orders_turns_by_what_their_conversation_said_before(tmp_path: Path) -> None:
    """Taught by others, it lays later turns of long-winded talks behind those of brief ones."""
    scene = Scene(spec(tmp_path, requests=60), ROWS)
    predictor, maker = scene._learned(60), scene.orders()
    brief, wordy = [], []
    for request in scene.workload.requests:
        guess = predictor.predict(maker.order(request)).middle
        if request.previous_outputs:
            (wordy if request.num_output_tokens > 15 else brief).append(guess)
    assert min(wordy) > max(brief)


def test_what_is_asked_is_known_where_the_trace_has_texts(tmp_path: Path) -> None:
    """Two kinds of question, told apart by their words alone."""
    rng = random.Random(0)
    rows = [
        TraceRow(9, rng.randint(20, 28), text=f"Write a poem about the number {rng.random():.3}")
        if number % 2
        else TraceRow(9, 2, text=f"Is {rng.random():.3} a number? Answer yes or no.")
        for number in range(160)
    ]
    scene = Scene(spec(tmp_path, requests=40), rows)
    predictor, maker = scene._learned(100), scene.orders()
    guesses: dict[bool, list[float]] = {False: [], True: []}
    for request in scene.workload.requests:
        is_long = request.num_output_tokens > 2
        guesses[is_long].append(predictor.predict(maker.order(request)).middle)
    assert min(guesses[True]) > max(guesses[False])


@pytest.mark.parametrize("text", ["learned:0", "learned:-3", "learned:x", "learned:1.5"])
def test_a_number_of_rows_that_is_none_is_refused(text: str) -> None:
    """One sentence that names it."""

    def learned(num_warm: int) -> LengthPredictor:
        raise AssertionError(num_warm)

    with pytest.raises(PredictorError, match="number"):
        make_predictor(text, {}, 0, learned)


def test_without_the_packages_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator itself needs neither numpy nor xgboost."""
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "engine.sim.learned":
            raise ModuleNotFoundError("No module named 'numpy'", name="numpy")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(PredictorError, match="numpy is not installed"):
        run_point(spec(tmp_path), ROWS)
    assert run_point(spec(tmp_path, "history"), ROWS).records
