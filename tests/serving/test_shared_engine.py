"""Several doors at one engine: each gets its own, none holds up another, the dead are forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
import scripted_executor as scripted
from engine_kit import Gate, config_of, eventually, order_of, read, tokens_of

from engine.core.errors import EngineUnavailable, ModelLoadError
from engine.core.request import FinishReason
from engine.core.stats import RequestStats, Snapshot, StepStats, TokenEvent
from engine.serving.config import EngineConfig
from engine.serving.host import EngineHost, listen_for_doors
from engine.serving.link import EngineLink
from engine.serving.messages import (
    Abort,
    Shutdown,
    StepOutput,
    Submit,
    command_codec,
    output_codec,
)
from engine.serving.shared import StepFrames


class Doors:
    """An engine, the doors at it, and where further ones would connect."""

    def __init__(self, host: EngineHost, links: list[EngineLink], path: Path) -> None:
        self.host = host
        self.links = links
        self.path = path

    def connect(self) -> socket.socket:
        """Return a connection that speaks only what the test says."""
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(str(self.path))
        return raw


@asynccontextmanager
async def doors(folder: Path, config: EngineConfig, num: int = 2) -> AsyncIterator[Doors]:
    """Run an engine with `num` doors for the length of a block."""
    path = folder / "e.sock"
    with listen_for_doors(path) as listener:
        host = EngineHost(config, listener)
        links = [EngineLink(path) for _ in range(num)]
        try:
            await asyncio.gather(host.start(), *(link.start() for link in links))
            yield Doors(host, links, path)
        finally:
            Gate(folder).open()
            for link in links:
                await link.close()
            await host.close()
            path.unlink()


def pid_of(host: EngineHost) -> int:
    assert host.info is not None
    return host.info.pid


def running(link: EngineLink) -> int:
    return -1 if link.snapshot is None else link.snapshot.running


async def test_each_door_gets_the_tokens_of_its_own_requests(tmp_path: Path) -> None:
    """Three doors at once: every answer is whole and right, every end is told to its door only."""
    async with doors(tmp_path, config_of(), num=3) as at:
        heard: list[list[RequestStats]] = [[] for _ in at.links]
        for link, ends in zip(at.links, heard, strict=True):
            link.add_finish_listener(ends.append)
        orders = [[order_of(f"d{d}-{i}", prompt=(d, i, 5)) for i in range(6)] for d in range(3)]
        answers = await asyncio.gather(
            *[
                read(link.submit(order))
                for link, own in zip(at.links, orders, strict=True)
                for order in own
            ]
        )
        flat = [order for own in orders for order in own]
        assert [tokens_of(a) for a in answers] == [scripted.expected_tokens(o) for o in flat]
        for own, ends in zip(orders, heard, strict=True):
            assert sorted(end.request_id for end in ends) == [order.id for order in own]


async def test_all_doors_see_the_same_engine(tmp_path: Path) -> None:
    """Steps and the state after them are told to doors without a request, too."""
    async with doors(tmp_path, config_of()) as at:
        worker, onlooker = at.links
        steps: list[StepStats] = []
        onlooker.add_step_listener(steps.append)
        await read(worker.submit(order_of("a", max_tokens=20)))
        await eventually(
            lambda: onlooker.snapshot is not None and onlooker.snapshot.finished_total == 1,
            "the onlooker hears of the end",
        )
        await eventually(lambda: onlooker.snapshot == worker.snapshot, "both have heard all")
        await eventually(lambda: len(steps) >= 20, "every step was told")
        assert onlooker.info == worker.info == at.host.info


async def test_a_dead_door_frees_its_seats_before_the_next_step(tmp_path: Path, gate: Gate) -> None:
    """The step under way ends; the one after it computes the other door's request alone."""
    async with doors(tmp_path, config_of(options={"gate": gate.folder})) as at:
        dying, other = at.links
        held = [dying.submit(order_of(f"r{i}", max_tokens=4000)) for i in range(3)]
        kept = other.submit(order_of("kept", max_tokens=4000))
        for stream in (*held, kept):
            await stream.next_events()
        gate.close()
        await gate.step_waits()
        await asyncio.sleep(0.2)  # what was sent before that has been read
        steps: list[StepStats] = []
        other.add_step_listener(steps.append)
        await dying.close()
        gate.open()
        await eventually(lambda: len(steps) >= 2, "two steps are over")
        assert [step.num_decodes for step in steps[:2]] == [4, 1]
        assert [(await read(stream))[-1].finish_reason for stream in held] == [
            FinishReason.FAILED
        ] * 3
        other.abort("kept")
        await eventually(lambda: running(other) == 0, "nothing runs")
        now = other.snapshot
        assert now is not None
        assert now.free_blocks == now.num_blocks


async def test_a_killed_engine_is_found_again_by_every_door(tmp_path: Path) -> None:
    """kill -9: streams of all doors fail with what was seen; the next engine serves them all."""
    async with doors(tmp_path, config_of(options={"step_s": 0.001})) as at:
        streams = [link.submit(order_of("x" * (i + 1), max_tokens=4000)) for i, link in
                   enumerate(at.links)]  # fmt: skip
        begun = [await stream.next_events() for stream in streams]
        killed = pid_of(at.host)
        os.kill(killed, signal.SIGKILL)
        for stream, first in zip(streams, begun, strict=True):
            events = first + await read(stream)
            last = events[-1]
            assert last.finish_reason is FinishReason.FAILED
            assert last.stats is not None
            assert last.stats.detail == "engine restarted"
            assert last.stats.num_output_tokens == len(tokens_of(events)) > 0
        for link in at.links:
            with pytest.raises(EngineUnavailable):
                link.submit(order_of("meanwhile"))
        await eventually(lambda: all(link.ready for link in at.links), "all doors are back")
        assert pid_of(at.host) != killed
        assert {link.info for link in at.links} == {at.host.info}
        for link in at.links:
            order = order_of("x")
            assert tokens_of(await read(link.submit(order))) == scripted.expected_tokens(order)


async def test_a_hung_engine_is_killed_although_nobody_told_of_requests(tmp_path: Path) -> None:
    """The parent sees no request; it asks, and gets no answer."""
    async with doors(tmp_path, config_of(hang_timeout_s=0.4)) as at:
        hung = pid_of(at.host)
        link = at.links[0]
        last = (await read(link.submit(order_of("bad", prompt=(scripted.HANG,)))))[-1]
        assert last.finish_reason is FinishReason.FAILED
        await eventually(lambda: link.ready, "the engine is back")
        assert pid_of(at.host) != hung


async def test_an_idle_shared_engine_is_not_taken_for_hung(tmp_path: Path) -> None:
    """It answers when asked, for many timeouts."""
    async with doors(tmp_path, config_of(hang_timeout_s=0.2)) as at:
        await asyncio.sleep(1.5)
        assert at.host.restarts == 0
        assert all(link.ready for link in at.links)


async def test_only_the_owner_ends_a_request(tmp_path: Path) -> None:
    """Another door can neither abort nor stop it, nor take its id, nor shut the engine down."""
    async with doors(tmp_path, config_of(options={"step_s": 0.001})) as at:
        owner, other = at.links
        order = order_of("mine", max_tokens=300)
        stream = owner.submit(order)
        first = await stream.next_events()
        with at.connect() as raw:
            raw.sendall(command_codec().encode(Abort("mine")))
            raw.sendall(command_codec().encode(Shutdown()))
            (refused,) = await read(other.submit(order_of("mine")))
            other.abort("mine")
            other.stop("mine", 1)
            assert refused.finish_reason is FinishReason.REJECTED
            assert refused.stats is not None
            assert refused.stats.detail.startswith("duplicate_id: ")
            assert tokens_of(first + await read(stream)) == scripted.expected_tokens(order)
        assert at.host.restarts == 0


async def test_any_door_may_ask_about_any_request(tmp_path: Path) -> None:
    """Questions of several doors cross; each gets the answer to its own."""
    async with doors(tmp_path, config_of()) as at:
        asker, server = at.links
        for name in ("a", "b"):
            await read(server.submit(order_of(name)))
        records = await asyncio.gather(
            asker.explain("a"), server.explain("b"), asker.explain("b"), asker.explain("nobody")
        )
        assert [record and record.request_id for record in records] == ["a", "b", "b", None]


async def test_a_door_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    """Its unsent tokens wait for it; the others' answers come, and so do its own in the end."""
    async with doors(tmp_path, config_of(), num=1) as at:
        codec = command_codec()
        with at.connect() as raw:
            lazy = [order_of(f"lazy{i}", prompt=(i, 3), max_tokens=2000) for i in range(30)]
            for order in lazy:
                raw.sendall(codec.encode(Submit(order)))
            (link,) = at.links
            order = order_of("brisk", max_tokens=500)
            assert tokens_of(await read(link.submit(order))) == scripted.expected_tokens(order)
            await eventually(lambda: running(link) == 0, "the lazy one's have been computed")
            found = await asyncio.to_thread(read_all, raw, len(lazy))
            for order in lazy:
                assert found[order.id] == scripted.expected_tokens(order)


def read_all(raw: socket.socket, num: int) -> dict[str, list[int]]:
    """Read until `num` requests have ended; return their tokens."""
    codec, tokens, ended = output_codec(), dict[str, list[int]](), 0
    while ended < num:
        for output in codec.feed(raw.recv(1 << 20)):
            for event in output.events if isinstance(output, StepOutput) else ():
                if event.token_id is not None:
                    tokens.setdefault(event.request_id, []).append(event.token_id)
                ended += event.finish_reason is not None
    return tokens


async def test_a_door_that_speaks_nonsense_is_let_go(tmp_path: Path) -> None:
    """Its connection ends, and nothing else does."""
    async with doors(tmp_path, config_of(), num=1) as at:
        (link,) = at.links
        with at.connect() as raw:
            raw.sendall(command_codec().encode(Submit(order_of("orphan", max_tokens=4000))))
            raw.sendall(b"\x05\x00\x00\x00nonsense")
            raw.settimeout(30)
            await asyncio.to_thread(drain, raw)
        order = order_of("next")
        assert tokens_of(await read(link.submit(order))) == scripted.expected_tokens(order)
        await eventually(lambda: running(link) == 0, "what it had handed in has ended")


def drain(raw: socket.socket) -> None:
    while raw.recv(1 << 16):
        pass


async def test_a_wrong_model_is_told_to_the_parent(tmp_path: Path) -> None:
    """The doors go on waiting, and can be closed."""
    path = tmp_path / "e.sock"
    with listen_for_doors(path) as listener:
        host, link = EngineHost(config_of(options={"load": "refuse"}), listener), EngineLink(path)
        waiting = asyncio.create_task(link.start())
        with pytest.raises(ModelLoadError, match="made of cheese"):
            await host.start()
        assert not waiting.done()
        await link.close()
        with pytest.raises(EngineUnavailable):
            await waiting


async def test_closing_leaves_no_process_task_or_descriptor(tmp_path: Path) -> None:
    await asyncio.to_thread(int)  # the loop's own worker thread, made before we count
    descriptors = sorted(os.listdir("/proc/self/fd"))
    async with doors(tmp_path, config_of()) as at:
        pid = pid_of(at.host)
        await read(at.links[0].submit(order_of("a")))
    assert not psutil.pid_exists(pid)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


def test_frames_are_those_of_the_codec() -> None:
    """What is packed once for all readers is byte for byte what the codec writes."""
    snapshot = Snapshot(3, 4, 1, 2, 0, 7, 5, 8, waiting_by_tier=(("free", 1),))
    events = tuple(TokenEvent(f"r{i}", i, 9) for i in range(40))
    codec = output_codec()
    output = StepOutput(events, None, snapshot)
    frames = StepFrames(msgspec.msgpack.Encoder(), output)
    assert frames.frame(events) == codec.encode(output)
    assert codec.feed(frames.frame(())) == [StepOutput((), None, snapshot)]
