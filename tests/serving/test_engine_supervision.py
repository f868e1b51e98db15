"""The engine's process dies, hangs, or never comes up: what the door sees, and what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import scripted_executor as scripted
import uvloop
from engine_kit import (
    HERE,
    Gate,
    ProcessMaker,
    config_of,
    eventually,
    order_of,
    read,
    tokens_of,
)

from engine.core.errors import EngineUnavailable, ModelLoadError
from engine.core.request import FinishReason
from engine.core.stats import RequestStats, TokenEvent
from engine.serving.child import EXIT_ORPHANED
from engine.serving.process import EngineProcess

Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def children_left() -> Children:
    """Children of this process, zombies too, that were not there before the test.

    Servers of other rooms' tests live as long as the session, and so does a tracker of Python's.
    """
    before = {child.pid for child in psutil.Process().children()}
    return lambda: [
        child
        for child in psutil.Process().children()
        if child.pid not in before
        and not any("multiprocessing" in word for word in child.cmdline())
    ]


def is_gone(pid: int) -> bool:
    """True when nothing runs under `pid`; who waits for its burial by init has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pid_of(engine: EngineProcess) -> int:
    assert engine.info is not None
    return engine.info.pid


async def test_a_killed_engine_fails_its_streams_and_comes_back(make_process: ProcessMaker) -> None:
    """kill -9: every stream ends as FAILED with what was seen, ready falls and rises again."""
    engine = make_process(config_of(options={"step_s": 0.001}))
    finished: list[RequestStats] = []
    engine.add_finish_listener(finished.append)
    await engine.start()
    streams = [engine.submit(order_of(f"r{i}", max_tokens=4000, tier="free")) for i in range(4)]
    begun = [await stream.next_events() for stream in streams]
    killed = pid_of(engine)
    os.kill(killed, signal.SIGKILL)
    for stream, first in zip(streams, begun, strict=True):
        events = first + await read(stream)
        check_made_up_end(events)
    assert not engine.ready
    with pytest.raises(EngineUnavailable):
        engine.submit(order_of("meanwhile"))
    assert sorted(stats.request_id for stats in finished) == ["r0", "r1", "r2", "r3"]
    await eventually(lambda: engine.ready, "the engine is back")
    assert pid_of(engine) != killed
    assert is_gone(killed)
    assert engine.restarts == 1
    order = order_of("r0")  # even an id of the life before
    assert tokens_of(await read(engine.submit(order))) == scripted.expected_tokens(order)


def check_made_up_end(events: list[TokenEvent]) -> None:
    """The last event is the door's own: it counts exactly the tokens that came."""
    last = events[-1]
    tokens = [event for event in events if event.token_id is not None]
    assert last.finish_reason is FinishReason.FAILED
    assert last.stats is not None
    assert last.stats.detail == "engine restarted"
    assert last.stats.num_output_tokens == len(tokens) > 0
    assert last.stats.first_token_ns == tokens[0].at_ns
    assert last.stats.last_token_ns == tokens[-1].at_ns <= last.stats.finished_ns
    assert last.stats.tier == "free"


async def test_a_crashed_engine_is_replaced(make_process: ProcessMaker) -> None:
    """An exception in the executor ends the process; the next one serves."""
    engine = make_process(config_of())
    await engine.start()
    await read(engine.submit(order_of("bad", prompt=(scripted.RAISE,))))
    await eventually(lambda: engine.ready and engine.restarts == 1, "the engine is back")
    assert tokens_of(await read(engine.submit(order_of("good")))) != []


async def test_a_hung_engine_is_killed_and_replaced(make_process: ProcessMaker) -> None:
    """Silence while work is outstanding ends the process; all its streams fail with it."""
    engine = make_process(config_of(hang_timeout_s=0.4))
    await engine.start()
    hung = pid_of(engine)
    last = (await read(engine.submit(order_of("bad", prompt=(scripted.HANG,)))))[-1]
    assert last.finish_reason is FinishReason.FAILED
    await eventually(lambda: engine.ready, "the engine is back")
    assert pid_of(engine) != hung
    assert is_gone(hung)
    assert tokens_of(await read(engine.submit(order_of("good")))) != []


async def test_a_signal_to_everybody_is_the_doors_to_answer(make_process: ProcessMaker) -> None:
    """SIGTERM and SIGINT do not end the engine: requests under way are drained by the door."""
    engine = make_process(config_of(options={"step_s": 0.001}))
    await engine.start()
    order = order_of("a", max_tokens=200)
    stream = engine.submit(order)
    first = await stream.next_events()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid_of(engine), signal_number)
    assert tokens_of(first + await read(stream)) == scripted.expected_tokens(order)
    assert engine.restarts == 0


async def test_an_idle_engine_is_not_taken_for_hung(make_process: ProcessMaker) -> None:
    """Owing nothing, it may be silent for many timeouts."""
    engine = make_process(config_of(hang_timeout_s=0.02))
    await engine.start()
    await asyncio.sleep(0.4)
    assert engine.ready
    assert engine.restarts == 0


async def test_a_refused_model_is_one_clear_line(
    make_process: ProcessMaker, children_left: Children
) -> None:
    """What the loader says is what start() raises; nothing runs afterwards."""
    heard: list[tuple[str, float]] = []
    engine = make_process(
        config_of(options={"load": "refuse"}),
        on_progress=lambda stage, fraction: heard.append((stage, fraction)),
    )
    with pytest.raises(ModelLoadError) as caught:
        await engine.start()
    assert str(caught.value) == "the weights are made of cheese: name another model"
    assert heard == [("pretending to load", 0.5)]
    assert not engine.ready
    assert children_left() == []


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ("raise", ["exit code 1", "RuntimeError: nobody expected this"]),
        ("kill", ["killed by SIGKILL", "about to be killed"]),
    ],
)
async def test_a_death_while_loading_names_its_cause(
    make_process: ProcessMaker, load: str, words: list[str]
) -> None:
    """A process that dies before it is ready is reported with its end and its last words."""
    engine = make_process(config_of(options={"load": load}))
    with pytest.raises(ModelLoadError) as caught:
        await engine.start()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_loading_without_progress_is_given_up(make_process: ProcessMaker) -> None:
    """A load that hangs is ended after its own, longer timeout."""
    engine = make_process(config_of(options={"load": "hang"}, load_timeout_s=0.5))
    with pytest.raises(ModelLoadError, match="not a word for"):
        await engine.start()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"executor": "nowhere:make"}, "no executor 'nowhere:make'"),
        ({"executor": "nonsense"}, "no executor 'nonsense'"),
        ({"policy": "lottery"}, "unknown policy 'lottery'"),
    ],
)
async def test_a_wrong_name_is_one_clear_line(
    make_process: ProcessMaker, fields: dict[str, object], words: str
) -> None:
    """Executors and policies that nobody knows stop the start."""
    with pytest.raises(ModelLoadError, match=words):
        await make_process(config_of(**fields)).start()


async def test_a_restart_that_fails_is_tried_again(
    make_process: ProcessMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After the first success a failing load is repeated until it works."""
    marker = tmp_path / "marker"
    engine = make_process(
        config_of(
            options={"load": "die-after-first", "marker": marker},
            backoff_first_s=0.01,
            backoff_max_s=0.05,
        )
    )
    await engine.start()
    os.kill(pid_of(engine), signal.SIGKILL)
    await eventually(lambda: engine.restarts >= 3, "it was tried again and again")
    assert not engine.ready
    assert "the disk has gone" in caplog.text
    marker.unlink()
    await eventually(lambda: engine.ready, "the engine is back")


async def test_closing_leaves_nothing_behind(children_left: Children) -> None:
    """No process, task, thread of ours, descriptor or child survives close()."""
    await asyncio.to_thread(int)  # the loop's own worker thread, made before we count
    descriptors = sorted(os.listdir("/proc/self/fd"))
    threads = set(threading.enumerate())
    engine = EngineProcess(config_of())
    await engine.start()
    pid = pid_of(engine)
    await read(engine.submit(order_of("a")))
    await engine.close()
    assert is_gone(pid)
    assert children_left() == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
    extra = set(threading.enumerate()) - threads
    assert [thread.name for thread in extra if not thread.name.startswith("asyncio_")] == []


async def test_closing_while_it_loads(make_process: ProcessMaker, children_left: Children) -> None:
    """close() ends a load at once; start() then says that it was closed."""
    heard = asyncio.Event()
    engine = make_process(
        config_of(options={"load": "hang"}), on_progress=lambda stage, fraction: heard.set()
    )
    start = asyncio.create_task(engine.start())
    await heard.wait()
    await engine.close()
    with pytest.raises((EngineUnavailable, ModelLoadError)):
        await start
    assert children_left() == []


async def test_closing_between_two_lives(
    make_process: ProcessMaker, children_left: Children
) -> None:
    """After close() nothing is restarted, also when a restart was due."""
    engine = make_process(config_of(backoff_first_s=1000.0))
    await engine.start()
    os.kill(pid_of(engine), signal.SIGKILL)
    await eventually(lambda: not engine.ready, "its death is noticed")
    await engine.close()
    assert engine.restarts == 0
    assert children_left() == []


async def test_closing_an_engine_that_does_not_listen(
    make_process: ProcessMaker, gate: Gate, children_left: Children
) -> None:
    """An engine stuck in a step is killed when its grace is over; its streams end all the same."""
    engine = make_process(config_of(options={"gate": gate.folder}, close_grace_s=0.1))
    await engine.start()
    gate.close()
    stream = engine.submit(order_of("stuck"))
    await gate.step_waits()
    await engine.close()
    last = (await read(stream))[-1]
    assert last.finish_reason is FinishReason.FAILED
    assert last.stats is not None
    assert last.stats.detail == "engine closed"
    assert children_left() == []


async def test_cancelling_the_start_ends_the_process(
    make_process: ProcessMaker, children_left: Children
) -> None:
    """A start that is cancelled leaves no process."""
    heard = asyncio.Event()
    engine = make_process(
        config_of(options={"load": "hang"}), on_progress=lambda stage, fraction: heard.set()
    )
    start = asyncio.create_task(engine.start())
    await heard.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert children_left() == []


async def test_what_cannot_be_sent_is_not_open(make_process: ProcessMaker) -> None:
    """An order that has no bytes (a number beyond 64 bits) raises and leaves nothing open."""
    engine = make_process(config_of())
    finished: list[RequestStats] = []
    engine.add_finish_listener(finished.append)
    await engine.start()
    with pytest.raises(OverflowError):
        engine.submit(order_of("a", prompt=(1 << 70,)))
    assert "a" not in engine
    assert tokens_of(await read(engine.submit(order_of("a")))) != []
    assert len(finished) == 1


async def test_a_full_inbox_refuses(make_process: ProcessMaker, gate: Gate) -> None:
    """While the engine takes nothing, orders pile up to a bound and are then REJECTED."""
    engine = make_process(config_of(options={"gate": gate.folder}, max_inbox_bytes=100_000))
    await engine.start()
    gate.close()
    first = engine.submit(order_of("first"))
    await gate.step_waits()
    prompt = tuple(range(100_000, 104_000))
    for number in range(5000):
        stream = engine.submit(order_of(f"r{number}", prompt=prompt))
        if f"r{number}" not in engine:
            break
    (event,) = await read(stream)
    assert event.finish_reason is FinishReason.REJECTED
    assert event.stats is not None
    assert event.stats.detail == "queue_full: the engine's inbox is full"
    gate.open()
    assert (await read(first))[-1].finish_reason is FinishReason.LENGTH


PARENT = """
import asyncio, sys
sys.path.insert(0, {here!r})
from engine_kit import config_of
from engine.serving.process import EngineProcess

async def main():
    engine = EngineProcess(config_of(options={{"load": {load!r}, "pid_file": {pid_file!r}}}))
    await engine.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_engine_dies_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of the door leaves no engine behind."""
    pid_file = tmp_path / "pid"
    script = PARENT.format(here=HERE, load="", pid_file=str(pid_file))
    root = str(Path(HERE).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}

    with subprocess.Popen([sys.executable, "-c", script], env=environment) as parent:
        asyncio.run(eventually(lambda: pid_file.exists() and pid_file.read_text(), "it runs"))
        pid = int(pid_file.read_text())
        assert not is_gone(pid)
        parent.kill()
    asyncio.run(eventually(lambda: is_gone(pid), "the engine has ended"))


def test_the_end_of_the_lifeline_ends_the_process() -> None:
    """Where no kernel helps, the closed standard input does: the process ends by itself."""
    script = (
        "import sys, time\n"
        "sys.platform = 'elsewhere'\n"
        "from engine.serving.child import tie_to_parent\n"
        "tie_to_parent(0)\n"
        "print('tied', flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(HERE).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"tied\n"
        process.stdin.close()
        assert process.wait(timeout=30) == EXIT_ORPHANED


def test_uvloop_works_as_well(children_left: Children) -> None:
    """The whole life of an engine under the event loop that the door uses."""

    async def life() -> None:
        engine = EngineProcess(config_of(options={"step_s": 0.001}))
        await engine.start()
        orders = [order_of(f"r{i}", prompt=(i, 2), max_tokens=30) for i in range(16)]
        answers = await asyncio.gather(*[read(engine.submit(order)) for order in orders])
        assert [tokens_of(a) for a in answers] == [scripted.expected_tokens(o) for o in orders]
        stream = engine.submit(order_of("open", max_tokens=4000))
        await stream.next_events()
        os.kill(pid_of(engine), signal.SIGKILL)
        assert (await read(stream))[-1].finish_reason is FinishReason.FAILED
        await eventually(lambda: engine.ready, "the engine is back")
        await engine.close()

    uvloop.run(life())
    assert children_left() == []
