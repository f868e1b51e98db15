"""Whoever leaves gives back the seat, streamed or not, and is billed for what was generated."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from door_kit import CHAT, Door, chat_body, eventually, open_door

from gateway.streaming import AnswerResponse


async def read_to_the_break(reader: asyncio.StreamReader) -> None:
    """Read what is still there; fail if the stream came to a regular end."""
    try:
        while part := await reader.read(65536):
            assert b"[DONE]" not in part
    except ConnectionError:
        return


async def leave_during(door: Door, body: dict[str, object], held: int) -> None:
    """Send a request, wait until it holds its seats, and hang up."""
    task = asyncio.create_task(door.post(CHAT, body))

    def has_its_seats() -> bool:
        now = door.services.host.engine.snapshot
        return now is not None and now.running == held

    await eventually(has_its_seats, "the request is running")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_frees_every_seat(tmp_path: Path, stream: bool, n: int) -> None:
    """All choices end as cancelled, all blocks come back, and the rows say what was used."""
    async with open_door(tmp_path, options={"step_s": 0.02}) as door:
        body = chat_body(stream=stream, n=n, ignore_eos=True, max_tokens=900)
        await leave_during(door, body, held=n)
        await door.idle()
        rows = await door.usage(n)
        assert [row.finish_reason for row in rows] == ["cancelled"] * n
        assert all(0 < row.output_tokens < 900 for row in rows)
        assert sorted(row.prompt_tokens for row in rows)[-1] == 4
        assert {row.slo_met for row in rows} == {None}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_the_seat_is_free_within_two_steps(tmp_path: Path, stream: bool) -> None:
    """The step that is under way ends, one more may have been planned, and none computes for it.

    The engine is held in its third step while the client hangs up, so steps can be counted.
    """
    async with open_door(tmp_path) as door:
        door.close_gate()
        body = chat_body(stream=stream, ignore_eos=True, max_tokens=900)
        asking = asyncio.create_task(door.post(CHAT, body))
        for _ in range(2):
            await let_one_step_go(door)
        held_at = int(step_held(door.gate))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: len(door.services.live) == 0 or left(door), "it is seen to leave")
        door.open_gate()
        await door.idle()
        now = door.services.host.engine.snapshot
        assert now is not None
        assert now.step - held_at <= 1  # the held one and at most one more
        (row,) = await door.usage()
        assert (row.finish_reason, 2 <= row.output_tokens <= 4) == ("cancelled", True)


def left(door: Door) -> bool:
    return all(answer.client_left for answer in door.services.live)


async def let_one_step_go(door: Door) -> None:
    await eventually(lambda: step_held(door.gate), "a step is held")
    before = step_held(door.gate)
    (door.gate / "step").touch()
    await eventually(lambda: step_held(door.gate) not in ("", before), "the next one is held")


def step_held(gate: Path) -> str:
    """Return which step is held, empty where none is."""
    try:
        return (gate / "held").read_text()
    except FileNotFoundError:
        return ""


async def test_a_client_that_leaves_the_queue_frees_its_place(tmp_path: Path) -> None:
    """Leaving while still waiting gives the place back, and costs nothing."""
    async with open_door(tmp_path, engine={"max_batch_requests": 1}) as door:
        door.close_gate()
        running = asyncio.create_task(door.post(CHAT, chat_body(max_tokens=5)))
        await eventually(lambda: door.services.admission.waiting == 1, "one is in")
        waiting = asyncio.create_task(door.post(CHAT, chat_body()))
        await eventually(lambda: door.services.admission.waiting == 2, "two are in")
        waiting.cancel()
        await eventually(lambda: door.services.admission.waiting == 1, "one has left")
        door.open_gate()
        assert (await running).status_code == 200
        await door.idle()
        left = [row for row in await door.usage(2) if row.finish_reason == "cancelled"]
        assert [(row.prompt_tokens, row.output_tokens) for row in left] == [(0, 0)]


async def test_the_time_to_free_a_seat_is_a_metric(tmp_path: Path) -> None:
    """Cancellations are timed from the client's leaving to the engine's last event."""
    async with open_door(tmp_path, options={"step_s": 0.01}) as door:
        await leave_during(door, chat_body(stream=True, ignore_eos=True, max_tokens=900), held=1)
        await door.idle()
        text = (await door.http.get("/metrics")).text
        assert "tiergate_cancel_duration_seconds_count 1.0" in text
        assert 'tiergate_outcome="client_disconnected"' in text


async def test_a_fault_while_writing_gives_the_seats_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in the writer, the engine's request is aborted."""
    async with open_door(tmp_path, options={"step_s": 0.01}) as door:

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(AnswerResponse, "_stamp", broken)
        body = chat_body(ignore_eos=True, max_tokens=900)
        assert (await door.post(CHAT, body)).status_code == 500
        await door.idle()
        (row,) = await door.usage()
        assert row.finish_reason == "cancelled"


async def test_every_answer_has_a_deadline(tmp_path: Path) -> None:
    """An answer that takes too long is ended with an error, streamed or not."""
    settings = {"stream_timeout_s": 0.3}
    async with open_door(tmp_path, options={"step_s": 0.05}, settings=settings) as door:
        body = chat_body(ignore_eos=True, max_tokens=900)
        plain = await door.post(CHAT, body)
        assert (plain.status_code, plain.json()["error"]["code"]) == (504, "deadline_exceeded")
        streamed = await door.post(CHAT, body | {"stream": True})
        assert streamed.status_code == 200
        assert "deadline_exceeded" in streamed.text
        assert "[DONE]" not in streamed.text
        await door.idle()


async def test_a_reader_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    """When nothing can be sent for too long the connection is cut and the seat is free.

    The reader's own buffers are made small, and its chunks large, so that they are soon full.
    """
    options = {"step_s": 0, "num_blocks": 4096}
    engine = {"max_model_len": 60_000}
    async with open_door(tmp_path, options=options, engine=engine, stall_s=0.3) as door:
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.get_extra_info("socket").setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF
        body = json.dumps(
            chat_body(stream=True, ignore_eos=True, max_tokens=50_000, logprobs=True,
                      top_logprobs=20)
        )  # fmt: skip
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.keys['free']}\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        await eventually(lambda: len(door.services.live) == 1, "the stream runs")
        await eventually(lambda: len(door.services.live) == 0, "the stream was dropped")
        await door.idle()
        (row,) = await door.usage()
        assert row.finish_reason == "cancelled"
        assert row.output_tokens < 50_000
        await read_to_the_break(reader)
        writer.close()
