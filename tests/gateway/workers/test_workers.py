"""Several workers as one gateway: they share the port, the engine, the ledger and the operator."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import psutil
import pytest
from door_kit import chat_body, eventually
from fire_kit import Received, endless, stream
from redis_kit import RedisServer
from workers_kit import House, open_house

from gateway.workers import pool

COUNT = re.compile(r'^tiergate_requests_total\{worker="(\d)".*\} (\S+)$', re.MULTILINE)


async def counts(house: House) -> dict[str, float]:
    """Return how many requests each worker has answered, as whichever is asked tells it."""
    text = (await house.get("/metrics")).text
    return {worker: float(value) for worker, value in COUNT.findall(text)}


async def test_two_workers_are_one_gateway(tmp_path: Path, redis_server: RedisServer) -> None:
    """Answers are right and billed once, both work, and nothing is left when they have ended."""
    async with open_house(tmp_path, redis_server.url) as house:
        answers = await asyncio.gather(
            *[house.post(chat_body(f"{n}", max_tokens=5)) for n in range(40)]
        )
        assert {a.status_code for a in answers} == {200}
        assert {a.json()["choices"][0]["message"]["content"] for a in answers} == {"abcde"}
        rows = await house.usage(40)
        assert sorted(row.request_id for row in rows) == sorted(a.json()["id"] for a in answers)
        by_worker = await counts(house)
        assert set(by_worker) == {"0", "1"}
        assert sum(by_worker.values()) == 40
        assert min(by_worker.values()) >= 10  # no worker takes a whole burst
        pids = [*house.pids, house.engine_pid]
        assert len(set(pids)) == 3
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert not (tmp_path / "data" / "run").exists()
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_socket()]


async def test_any_worker_tells_of_all(tmp_path: Path, redis_server: RedisServer) -> None:
    """Metrics never fall from scrape to scrape; requests are found whichever worker is asked."""
    async with open_house(tmp_path, redis_server.url, workers=3) as house:
        answers = await asyncio.gather(*[house.post(chat_body(f"{n}")) for n in range(12)])
        ids = {answer.json()["id"] for answer in answers}
        for _ in range(6):  # each on a connection of its own: of all workers, one after the other
            listed = (await house.get("/admin/api/requests?limit=12")).json()["requests"]
            assert {row["id"] for row in listed} == ids
            arrivals = [row["arrival"] for row in listed]
            assert arrivals == sorted(arrivals, reverse=True)
            for name in sorted(ids)[:3]:
                story = (await house.get(f"/admin/api/requests/{name}")).json()
                assert story["door"]["outcome"] == "ok"
                assert story["engine"][name]["state"] == "finished"
        assert (await house.get("/admin/api/requests/nobody")).status_code == 404
        state = await house.engine()
        assert [door["worker"] for door in state["workers"]] == [0, 1, 2]
        assert sum(door["max_queue"] for door in state["workers"]) == 512
        await check_counters(house)
        told = (await house.get("/metrics")).text.count("\nvllm:num_requests_running ")
        assert told == 1  # the engine's own figures stand there once


async def check_counters(house: House) -> None:
    """Scrape while requests run: no counter of any series falls."""
    sample = re.compile(r"^(\S+_(?:total|count|bucket)(?:\{.*\})?) (\S+)$", re.MULTILINE)
    load = [asyncio.create_task(house.post(endless(200, n, stream=False))) for n in range(9)]
    last: dict[str, float] = {}
    num_scrapes = 0
    while not all(task.done() for task in load) or num_scrapes < 5:
        num_scrapes += 1
        now = {name: float(v) for name, v in sample.findall((await house.get("/metrics")).text)}
        fallen = [name for name, value in last.items() if now.get(name, 0) < value]
        assert fallen == []
        last = now
    for task in load:
        assert (await task).status_code == 200


async def test_a_drain_ends_well(tmp_path: Path, redis_server: RedisServer) -> None:
    """Readiness falls first, what is new is refused with a hint, and streams come to their end."""
    options = {"step_s": 0.01}
    async with open_house(tmp_path, redis_server.url, options=options) as house:
        async with house.client() as http:
            got = [Received() for _ in range(4)]
            streams = [
                asyncio.create_task(stream(http, house.auth(), endless(150, n), one))
                for n, one in enumerate(got)
            ]
            await asyncio.gather(*[one.first.wait() for one in got])
            assert (await http.get("/readyz")).status_code == 200
            house.run.stop()

            async def is_not_ready() -> bool:
                return (await http.get("/readyz")).status_code == 503

            await eventually(is_not_ready, "readiness falls")
            refused = await http.post("/v1/chat/completions", json={}, headers=house.auth())
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert int(refused.headers["retry-after"]) >= 1
            await asyncio.gather(*streams)
            assert [one.finish_reason for one in got] == ["length"] * 4
            assert [len(one.text) for one in got] == [150] * 4
        await house.serving
        assert sorted(row.output_tokens for row in await house.rows()) == [150] * 4


async def test_a_second_signal_ends_what_runs(tmp_path: Path, redis_server: RedisServer) -> None:
    """Streams get an error that says why, and are billed for what they got."""
    settings = {"drain_timeout_s": 3600}
    async with (
        open_house(
            tmp_path, redis_server.url, settings=settings, options={"step_s": 0.02}
        ) as house,
        house.client() as http,
    ):
        got = [Received() for _ in range(2)]
        streams = [
            asyncio.create_task(stream(http, house.auth(), endless(900, n), one))
            for n, one in enumerate(got)
        ]
        await asyncio.gather(*[one.first.wait() for one in got])
        house.run.stop()
        house.run.stop()
        await asyncio.gather(*streams)
        assert [one.error for one in got] == ["draining"] * 2
        await house.serving
        billed = {row.request_id: row.output_tokens for row in await house.rows()}
        assert all(billed[one.id] >= len(one.text) > 0 for one in got)


async def test_a_worker_without_an_engine_says_so(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """While the engine is away every worker is alive and not ready; then all are again."""
    async with open_house(tmp_path, redis_server.url) as house:
        psutil.Process(house.engine_pid).kill()

        async def readiness() -> set[int]:
            return {(await house.get("/readyz")).status_code for _ in range(4)}

        async def is_back() -> bool:
            return await readiness() == {200}

        assert (await house.get("/livez")).status_code == 200
        await eventually(is_back, "all workers are ready again")
        assert (await house.post()).status_code == 200


async def test_a_worker_that_stands_still_holds_up_nobody(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other takes its connections meanwhile; after a while it is killed and replaced."""
    async with open_house(tmp_path, redis_server.url) as house:
        still = house.pids[0]
        psutil.Process(still).suspend()
        answers = await asyncio.gather(*[house.post(chat_body(f"{n}")) for n in range(10)])
        assert {answer.status_code for answer in answers} == {200}
        monkeypatch.setattr(pool, "SILENT_S", 0.5)
        await eventually(lambda: still not in house.pids and len(house.pids) == 2, "another")
        await eventually(lambda: not psutil.pid_exists(still), "it is gone")
