"""Tapes: a recorded run replays to identical batches, and a different core is caught (law L37)."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
from sim_world import short_rows, write_profile

from engine.core.batch import Batch, Chunk, Copy, SampledToken, StepResult, TopLogprob
from engine.core.engine_core import EngineCore
from engine.core.errors import RequestRefused
from engine.core.policies import POLICIES
from engine.core.request import FinishReason, RequestOrder, SamplingParams
from engine.core.tape import (
    Aborted,
    AllFailed,
    Drained,
    RecordingCore,
    ReplayError,
    StepFailed,
    StepFinished,
    StepStarted,
    Stopped,
    Submitted,
    TapeEvent,
    batch_digest,
    replay,
)
from engine.core.tape_file import TapeError, load_tape, save_tape
from engine.sim.faults import Faults
from engine.sim.point import PointSpec, Scene, run_point

ROWS = (*short_rows(40), dataclasses.replace(short_rows(1)[0], num_prompt_tokens=500))
FAULTS = Faults(
    abort_share=0.2,
    error_share=0.01,
    slow_share=0.05,
    slow_factor=5,
    late_copy_share=0.3,
    lost_copy_share=0.1,
)


def record(folder: Path, policy: str, **changes: Any) -> tuple[PointSpec, list[TapeEvent]]:
    profile = write_profile(folder)
    fields: dict[str, Any] = {"profile": profile, "faults": FAULTS, **changes}
    spec = PointSpec("", policy, 20.0, 80, seed=4, **fields)
    tape: list[TapeEvent] = []
    run_point(spec, ROWS, wrap=lambda core: RecordingCore(core, tape.append))
    return spec, tape


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_recorded_run_replays_to_identical_batches(tmp_path: Path, policy: str) -> None:
    """Refusals, aborts, faults and parks included; through a file and back."""
    spec, tape = record(tmp_path, policy)
    assert {type(event) for event in tape} >= {Submitted, Aborted, StepStarted, StepFinished}
    assert any(isinstance(event, Submitted) and event.refusal for event in tape)
    path = tmp_path / "tape.jsonl.gz"
    save_tape(path, tape)
    assert list(load_tape(path)) == tape
    told = replay(load_tape(path), Scene(spec, ROWS).core())
    assert sum(event.stats is not None for event in told) > 40


def test_another_policy_or_another_answer_is_caught(tmp_path: Path) -> None:
    """The first step that differs is named."""
    spec, tape = record(tmp_path, "sarathi")
    other = dataclasses.replace(spec, policy_options=(("token_budget", 9.0),))
    with pytest.raises(ReplayError, match=r"step \d+: another batch"):
        replay(tape, Scene(other, ROWS).core())
    finished = [i for i, event in enumerate(tape) if isinstance(event, StepFinished)]
    twisted = list(tape)
    event = twisted[finished[3]]
    assert isinstance(event, StepFinished)
    tokens = tuple(dataclasses.replace(t, token_id=t.token_id + 1) for t in event.result.tokens)
    twisted[finished[3]] = dataclasses.replace(
        event, result=dataclasses.replace(event.result, tokens=tokens)
    )
    with pytest.raises(ReplayError):
        replay(twisted, Scene(spec, ROWS).core())


def test_a_refusal_that_differs_is_caught(tmp_path: Path) -> None:
    """Taken then, refused now."""
    spec, tape = record(tmp_path, "fcfs")
    smaller = dataclasses.replace(spec, num_kv_tokens=100)
    with pytest.raises(ReplayError):
        replay(tape, Scene(smaller, ROWS).core())


def test_a_recorder_has_every_method_of_the_core() -> None:
    """So whoever drives a core can drive a recorder."""

    def public(cls: type) -> dict[str, object]:
        return {name: member for name, member in vars(cls).items() if not name.startswith("_")}

    theirs, mine = public(EngineCore), public(RecordingCore)
    assert set(theirs) == set(mine)
    for name, member in theirs.items():
        if inspect.isfunction(member):
            other = mine[name]
            assert inspect.isfunction(other)
            assert inspect.signature(member) == inspect.signature(other), name


def test_stops_drains_and_the_end_of_all_are_on_the_tape(tmp_path: Path) -> None:
    """The commands that only service gives replay as well."""
    scene = Scene(PointSpec("", "fcfs", 1.0, 5, profile=write_profile(tmp_path)), ROWS)
    tape: list[TapeEvent] = []
    core = RecordingCore(scene.core(), tape.append)
    executor, orders = scene.executor(), scene.orders()
    first, second, third = (orders.order(r) for r in scene.workload.requests[:3])
    late = 10**12
    for order in (first, second):
        core.submit(order, late)
    batch = core.start_step(late)
    assert batch is not None
    core.fail_step(batch, late + 1, "it broke")
    batch = core.start_step(late + 2)
    assert batch is not None
    core.finish_step(batch, executor.execute(batch), late + 9)
    core.stop(first.id, 1, late + 9)
    core.drain()
    with pytest.raises(RequestRefused):
        core.submit(third, late + 9)
    core.fail_all(late + 10, "it is gone")
    assert core.start_step(late + 11) is None
    kinds = [type(event) for event in tape]
    assert {StepFailed, Stopped, Drained, AllFailed} <= set(kinds)
    save_tape(tmp_path / "tape.jsonl", tape)
    assert len(replay(load_tape(tmp_path / "tape.jsonl"), scene.core())) >= 2


def test_every_field_survives_the_file(tmp_path: Path) -> None:
    """Log probabilities, biases and reasons come back as they were."""
    sampling = SamplingParams(max_tokens=3, logit_bias=((5, -1.5),), stop_token_ids=(1, 2))
    token = SampledToken("a", 7, -0.25, (TopLogprob(7, -0.25), TopLogprob(8, -3.0)))
    tape: list[TapeEvent] = [
        Submitted(5, RequestOrder("a", (1, 2, 3), sampling, 4, "someone", "gold", "salt", 2.0)),
        StepFinished(6, StepResult(1, (token,), 10, ("b",), (4, 3), (5,))),
        Aborted(7, "a", FinishReason.EXPIRED),
    ]
    save_tape(tmp_path / "tape.jsonl", tape)
    assert list(load_tape(tmp_path / "tape.jsonl")) == tape


def test_a_tape_from_before_copies_were_told_still_loads(tmp_path: Path) -> None:
    """Fields that it does not have are empty."""
    path = tmp_path / "old.jsonl"
    result = '{"step":1,"tokens":[],"elapsed_ns":10,"failed":[]}'
    path.write_text('{"event":"StepFinished","now_ns":6,"result":' + result + "}\n")
    assert list(load_tape(path)) == [StepFinished(6, StepResult(1, (), 10))]


@pytest.mark.parametrize("line", ["", "{}", '{"event":"Dance"}', '{"event":"Drained","x":1}', "3"])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    """One sentence with the file and the line."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"event":"Drained"}\n' + line + "\n")
    with pytest.raises(TapeError, match="line 2 is no event"):
        list(load_tape(path))


def test_a_digest_stands_for_every_field() -> None:
    """Change any field of a batch and the digest changes."""
    sampling = SamplingParams(max_tokens=3)
    a = Chunk("a", 4, (1, 2), (3, 4), sampling, 1, (5,), (6,))
    batch = Batch(1, (a,), (Copy("b", (1,), (2,)),), (Copy("c", (3,), (4,)),))
    chunks = [
        dataclasses.replace(a, **change)
        for change in (
            {"request_id": "z"}, {"start": 5}, {"token_ids": (1,)}, {"token_ids": (1, 3)},
            {"block_ids": (3, 5)}, {"sampling": None}, {"output_index": 2}, {"prompt_ids": ()},
            {"output_ids": (7,)}, {"sampling": SamplingParams(max_tokens=4)},
        )
    ]  # fmt: skip
    others = [dataclasses.replace(batch, chunks=(chunk,)) for chunk in chunks]
    others += [
        dataclasses.replace(batch, step=2),
        dataclasses.replace(batch, parks=()),
        dataclasses.replace(batch, returns=()),
        dataclasses.replace(batch, parks=batch.returns, returns=batch.parks),
        dataclasses.replace(batch, parks=(Copy("b", (1,), (3,)),)),
        dataclasses.replace(batch, parks=(Copy("b", (1,), (2,), 7),)),
        dataclasses.replace(batch, parks=(Copy("b", (1,), (2,), 0, 7),)),
        dataclasses.replace(batch, chunks=(a, a)),
    ]
    digests = {batch_digest(b) for b in (batch, *others)}
    assert len(digests) == 1 + len(others)
    assert batch_digest(dataclasses.replace(batch)) == batch_digest(batch)
