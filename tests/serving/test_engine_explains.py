"""What was decided about a request, asked through both clients: live, ended, refused, unknown."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
import scripted_executor as scripted
from engine_kit import ClientMaker, Gate, ProcessMaker, config_of, eventually, order_of, read

from engine.core.decision import DecisionKind, RequestRecord
from engine.core.errors import EngineUnavailable, RefusalReason
from engine.core.request import FinishReason
from engine.core.tape import TapeEvent
from engine.core.tape_file import load_tape
from engine.serving.messages import Explain, Explained
from engine.serving.questions import MOST_OPEN, OpenQuestions


async def test_a_finished_request_is_explained_by_an_idle_engine(make_client: ClientMaker) -> None:
    """The story has its start, its steps and its end, and is that of the billed stats."""
    engine = make_client(config_of())
    await engine.start()
    events = await read(engine.submit(order_of("a", prompt=tuple(range(40)), max_tokens=6)))
    record = await engine.explain("a")
    assert record is not None
    assert record.end == events[-1].stats
    assert (record.state, record.num_prompt_tokens, record.max_tokens) == ("finished", 40, 6)
    assert (record.num_output_tokens, record.num_steps) == (6, 6)
    kinds = [decision.kind for decision in record.decisions]
    assert kinds == [DecisionKind.STARTED, DecisionKind.RAN]
    assert record.decisions[1].num_output_tokens == 6
    assert await engine.explain("b") is None


async def test_live_requests_are_explained_between_two_steps(
    make_client: ClientMaker, gate: Gate
) -> None:
    """One runs and one waits behind it, for a row; the answer comes when the step is over."""
    engine = make_client(
        config_of(options={"gate": gate.folder, "step_s": 0.01}, max_batch_requests=1)
    )
    await engine.start()
    first = engine.submit(order_of("a", max_tokens=40))
    second = engine.submit(order_of("b"))
    await first.next_events()
    gate.close()
    await gate.step_waits()
    asked = [asyncio.create_task(engine.explain(name)) for name in ("a", "b")]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in asked), "a step is out"
    gate.open()
    running, waiting = [await task for task in asked]
    assert running is not None
    assert waiting is not None
    assert running.state in ("running", "finished")
    assert running.decisions[-1].kind is DecisionKind.RAN
    assert waiting.submitted_ns <= waiting.read_ns
    await asyncio.gather(read(first), read(second))
    whole = await engine.explain("b")
    assert whole is not None
    assert "rows_full" in [reason for reason, _ in whole.decisions[0].waits]


async def test_a_refused_request_says_why(make_client: ClientMaker) -> None:
    engine = make_client(config_of(max_model_len=50))
    await engine.start()
    events = await read(engine.submit(order_of("long", max_tokens=80)))
    assert events[-1].finish_reason is FinishReason.REJECTED
    record = await engine.explain("long")
    assert record is not None
    assert (record.state, record.refusal) == ("refused", RefusalReason.NEVER_FITS)
    assert record.decisions == ()


async def test_without_an_engine_nothing_is_explained(make_client: ClientMaker) -> None:
    """One clear error before the start and after the end, no waiting."""
    engine = make_client(config_of())
    with pytest.raises(EngineUnavailable):
        await engine.explain("a")
    await engine.start()
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.explain("a")


async def test_a_question_ends_with_the_engine_it_was_put_to(
    make_process: ProcessMaker, gate: Gate
) -> None:
    """The engine dies with it unanswered: an error at once, and the next engine knows nothing."""
    engine = make_process(config_of(options={"gate": gate.folder}, backoff_first_s=0.01))
    await engine.start()
    await read(engine.submit(order_of("a")))
    gate.close()
    stream = engine.submit(order_of("killer", prompt=(scripted.KILL, 1)))
    await gate.step_waits()
    asked = asyncio.create_task(engine.explain("a"))
    await asyncio.sleep(0)
    gate.open()
    with pytest.raises(EngineUnavailable, match="restarted"):
        await asked
    await read(stream)
    await eventually(lambda: engine.ready, "another engine is there")
    assert await engine.explain("a") is None


def record_of(name: str) -> RequestRecord:
    values = dict.fromkeys([f.name for f in dataclasses.fields(RequestRecord)], 0)
    return RequestRecord(**values | {"request_id": name})  # type: ignore[arg-type]


async def test_questions_are_bounded_numbered_and_time_out() -> None:
    """Answers find their question in any order, late ones nobody; one too many is refused."""
    sent: list[Explain] = []
    questions = OpenQuestions(timeout_s=30)
    asked = [asyncio.create_task(questions.ask(str(i), sent.append)) for i in range(MOST_OPEN)]
    await asyncio.sleep(0)
    with pytest.raises(EngineUnavailable, match="open already"):
        await questions.ask("one too many", sent.append)
    assert len(questions) == len(sent) == MOST_OPEN
    for question in reversed(sent[1:]):
        questions.answer(Explained(question.number, record_of(question.request_id)))
    questions.fail_all("gone")
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(found[0], EngineUnavailable)
    names = [r.request_id for r in found[1:] if isinstance(r, RequestRecord)]
    assert names == [str(i) for i in range(1, MOST_OPEN)]
    assert len(questions) == 0
    questions.answer(Explained(sent[0].number, None))
    with pytest.raises(EngineUnavailable, match="has not answered"):
        await OpenQuestions(timeout_s=0.001).ask("slow", sent.append)


async def test_questions_leave_no_trace_on_a_tape(
    make_process: ProcessMaker, tmp_path: Path
) -> None:
    """A recorded run is the same whether or not somebody asked."""
    engine = make_process(config_of(tape=str(tmp_path / "tape")))
    await engine.start()
    await read(engine.submit(order_of("a")))
    assert await engine.explain("a") is not None
    await engine.close()
    events: list[TapeEvent] = list(load_tape(tmp_path / "tape"))
    assert events
    assert "xplain" not in repr(events)
