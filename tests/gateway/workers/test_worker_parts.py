"""The parts of several workers, each by itself: shares, spools, metrics, words, questions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from engine.learning.predictor import LearnedPredictor
from engine.learning.question import Question
from gateway.server import listen
from gateway.settings import Settings
from gateway.spool import Spool
from gateway.workers.accepting import AWAY, Acceptor, LoadTable, make_table
from gateway.workers.metrics import merge, with_label
from gateway.workers.peers import Peers
from gateway.workers.place import Place, meeting_folder
from gateway.workers.words import portable, restored
from tenants.values import UsageRecord

ROOT = Path(__file__).resolve().parents[3]


def record(name: str) -> UsageRecord:
    return UsageRecord(
        request_id=name,
        tenant_id="t",
        key_id="k",
        tier_requested="free",
        tier_served="free",
        model="m",
        prompt_tokens=3,
        cached_tokens=0,
        output_tokens=5,
        finish_reason="stop",
        stream=True,
        arrival=datetime(2026, 11, 22, tzinfo=UTC),
        total_ms=1.0,
        ttft_ms=0.5,
        late_tokens=0,
        preemptions=0,
        slo_met=True,
    )


@given(total=st.integers(0, 10_000), count=st.integers(1, 64))
def test_the_shares_of_a_bound_are_the_bound(total: int, count: int) -> None:
    """Nothing is lost or added, but where there is less than one place for each."""
    shares = [Place(index, count).share_of(total) for index in range(count)]
    assert sum(shares) == (total if total == 0 or total >= count else count)
    assert max(shares) - min(shares) <= 1


def test_a_folder_that_a_killed_run_left_is_made_anew(tmp_path: Path) -> None:
    """Its sockets go, only the owner may enter, and at the end there is none."""
    left = tmp_path / "run" / "engine.sock"
    left.parent.mkdir()
    left.touch()
    with meeting_folder(tmp_path) as folder:
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_a_name_too_long_for_a_socket_is_avoided(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    with meeting_folder(deep) as folder:
        assert len(str(folder)) < 60
    assert not folder.exists()


LEAVES_RECORDS = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_worker_parts import record
from gateway.spool import Spool
spool = Spool(Path({root!r}), name="worker-1-dead")
assert spool.append([record("a"), record("b")]) == 2
print("written", flush=True)
sys.stdin.read()
"""


def test_what_a_dead_process_left_is_handed_in_by_another(tmp_path: Path) -> None:
    """While it lives its records are its own; when it is dead another takes them, once."""
    script = LEAVES_RECORDS.format(here=str(Path(__file__).parent), root=str(tmp_path))
    other = Spool(tmp_path, name="worker-0-alive")
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        assert other.size_bytes > 0
        assert list(other.batches()) == []
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
    assert [row.request_id for batch in other.batches() for row in batch] == ["a", "b"]
    assert list(other.batches()) == []
    assert list(tmp_path.iterdir()) == []


def test_two_that_look_at_once_do_not_hand_in_the_same(tmp_path: Path) -> None:
    """Who has begun holds the folder; who breaks off leaves all of it to the next."""
    Spool(tmp_path / "worker-7-dead").append([record("a")])
    first, second = Spool(tmp_path, name="x"), Spool(tmp_path, name="y")
    taking = first.batches()
    assert len(next(taking)) == 1
    assert list(second.batches()) == []
    del taking  # the ledger went away
    assert [row.request_id for batch in second.batches() for row in batch] == ["a"]


def test_one_alone_finds_what_several_left_and_the_other_way_round(tmp_path: Path) -> None:
    Spool(tmp_path / "worker-3-dead").append([record("a")])
    alone = Spool(tmp_path)
    alone.append([record("b")])
    assert sorted(row.request_id for batch in alone.batches() for row in batch) == ["a", "b"]
    alone.append([record("c")])
    one = Spool(tmp_path, name="worker-0-new")
    assert [row.request_id for batch in one.batches() for row in batch] == ["c"]


def test_an_empty_spool_of_a_worker_leaves_no_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path, name="worker-0-ended")
    spool.append([record("a")])
    assert len(list(spool.batches())) == 1
    spool.close()
    assert list(tmp_path.iterdir()) == []


ONE = """\
# HELP tiergate_requests_total Requests.
# TYPE tiergate_requests_total counter
tiergate_requests_total{tier="free"} 3.0
# HELP tiergate_engine_preemptions_total Preemptions.
# TYPE tiergate_engine_preemptions_total counter
tiergate_engine_preemptions_total 7.0
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 2.0
"""
TWO = """\
# HELP tiergate_requests_total Requests.
# TYPE tiergate_requests_total counter
tiergate_requests_total{tier="free"} 5.0
tiergate_requests_total{tier="gold"} 1.0
# HELP tiergate_engine_preemptions_total Preemptions.
# TYPE tiergate_engine_preemptions_total counter
tiergate_engine_preemptions_total 8.0
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 9.0
# HELP only_here Once.
# TYPE only_here gauge
only_here 1.0
"""


def test_texts_of_workers_become_one() -> None:
    """Own counts get a label, the engine's are told once, each metric stands in one place."""
    assert merge({0: ONE, 1: TWO}, 0).splitlines() == [
        "# HELP tiergate_requests_total Requests.",
        "# TYPE tiergate_requests_total counter",
        'tiergate_requests_total{worker="0",tier="free"} 3.0',
        'tiergate_requests_total{worker="1",tier="free"} 5.0',
        'tiergate_requests_total{worker="1",tier="gold"} 1.0',
        "# HELP tiergate_engine_preemptions_total Preemptions.",
        "# TYPE tiergate_engine_preemptions_total counter",
        "tiergate_engine_preemptions_total 8.0",
        "# HELP vllm:num_requests_running Running.",
        "# TYPE vllm:num_requests_running gauge",
        "vllm:num_requests_running 2.0",
        "# HELP only_here Once.",
        "# TYPE only_here gauge",
        'only_here{worker="1"} 1.0',
    ]
    assert with_label('a{b="{"}', 3) == 'a{worker="3",b="{"}'


def test_settings_reach_a_worker_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets too; and what was not set stays so, whatever the environment says there."""
    token = "tga_" + "0" * 36
    given = Settings(
        data_dir=tmp_path, workers=3, redis_url="redis://:secret@h/1", admin_token=token
    )
    fields = portable(given)
    assert not any(isinstance(value, SecretStr | Path) for value in fields.values())
    monkeypatch.setenv("TIERGATE_MAX_MODEL_LEN", "77")
    assert restored(fields) == given


def test_loads_are_seen_by_all(tmp_path: Path) -> None:
    path = tmp_path / "loads"
    make_table(path, 3)
    one, two = LoadTable(path), LoadTable(path)
    assert one.least_but(0) == AWAY
    one.write(0, 5)
    one.write(1, 2)
    assert (two.least_but(2), two.least_but(1), two.least_but(0)) == (2, 5, 2)
    one.close()
    two.close()


async def test_a_worker_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    """One is gone, one hangs, one breaks: the fourth's answer comes, in bounded time."""
    asker = Peers(Place(0, 5, tmp_path), timeout_s=0.3)

    async def hang(_: str) -> bytes:
        await asyncio.sleep(60)
        return b""

    async def fault(_: str) -> bytes:
        raise ValueError("a bad argument")

    async def echo(argument: str) -> bytes:
        return argument.encode() * 100_000

    peers = [Peers(Place(index, 5, tmp_path), timeout_s=0.3) for index in (2, 3, 4)]
    async with (
        peers[0].answering({"q": hang}),
        peers[1].answering({"q": fault}),
        peers[2].answering({"q": echo}),
    ):
        assert await asker.ask("q", "ab\n") == {4: b"ab\n" * 100_000}
        assert await asker.ask("unknown") == {}
    assert await Peers().ask("q") == {}


def test_only_one_worker_writes_what_was_learned(tmp_path: Path) -> None:
    """The other begins with the same file, learns for itself and leaves it alone."""
    for keeps in (False, True):
        predictor = LearnedPredictor("model", folder=tmp_path, keeps=keeps)
        predictor.start()
        predictor.predict("r", Question(tenant="t", max_tokens=50, num_prompt_tokens=4, text="hi"))
        predictor.observe("r", 20, is_whole=True)
        predictor.close()
        assert bool(list(tmp_path.iterdir())) is keeps


def test_a_note_of_what_is_under_way_outlives_its_process(tmp_path: Path) -> None:
    """It is handed in behind whole rows; not while its process lives, nor when it ended well."""
    script = LEAVES_RECORDS.format(here=str(Path(__file__).parent), root=str(tmp_path)).replace(
        "print(", 'spool.note([record("open")]); print('
    )
    other = Spool(tmp_path, name="worker-0-alive")
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        assert list(other.batches()) == []
        process.kill()
    found = [row.request_id for batch in other.batches() for row in batch]
    assert found == ["a", "b", "open"]
    other.note([record("mine")])
    assert list(other.batches()) == []
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_a_note_of_one_alone_is_found_by_its_next_run(tmp_path: Path) -> None:
    killed = Spool(tmp_path)
    killed.note([record("a")])
    killed.note([record("b")])
    assert [row.request_id for batch in Spool(tmp_path).batches() for row in batch] == ["b"]
    assert list(tmp_path.iterdir()) == []


def test_what_died_with_nothing_to_tell_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "worker-2-dead"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "usage.open.draft").touch()
    assert list(Spool(tmp_path, name="worker-0-new").batches()) == []
    assert list(tmp_path.iterdir()) == []


class Shaken(asyncio.Protocol):
    """Says hello and ends."""

    def __init__(self, name: str) -> None:
        self.on_lost = lambda: None
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._name.encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_lost()


async def greeting(port: int, kept: list[asyncio.StreamWriter]) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    kept.append(writer)
    async with asyncio.timeout(30):
        return (await reader.read(1)).decode()


async def test_connections_go_to_whoever_has_fewest(tmp_path: Path) -> None:
    """Shares are even; who is not ready gets none, and who died leaves all to the other."""
    make_table(tmp_path / "loads", 2)
    ready, kept = {"a": False, "b": True}, list[asyncio.StreamWriter]()
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        acceptors = [
            Acceptor(
                bound.dup(),
                LoadTable(tmp_path / "loads"),
                index,
                make=lambda name=name: Shaken(name),
                is_ready=lambda name=name: ready[name],
            )
            for index, name in enumerate("ab")
        ]
        await asyncio.sleep(0.1)  # both have told of themselves
        assert [await greeting(port, kept) for _ in range(4)] == ["b"] * 4
        ready["a"] = True
        await asyncio.sleep(0.1)
        later = await asyncio.gather(*[greeting(port, kept) for _ in range(16)])
        assert sorted(later) == ["a"] * 10 + ["b"] * 6
        acceptors[1].close()
        assert [await greeting(port, kept) for _ in range(4)] == ["a"] * 4
        acceptors[0].close()
        for acceptor in acceptors:
            acceptor._bound.close()
    for writer in kept:
        writer.close()
        await writer.wait_closed()
