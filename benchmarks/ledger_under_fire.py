"""Kills every part of a gateway with four workers during load, and compares bill and notes.

    python -m benchmarks.ledger_under_fire [--seconds 90] [--out FILE]

Real processes throughout: four workers and an engine (its executor is made up: it says letters at a
pace), Postgres and Redis started for this run. Clients stream answers and write down every letter
they get. Meanwhile, one after the other and again: kill -9 of a worker, of the engine, of Postgres
(away for some seconds), of Redis, and of a worker while Postgres is away. Afterwards each answer is
compared with its row in the ledger.

What may be missing is stated in docs/ledger.md: answers that a killed worker was writing, and those
that had ended less than `usage_flush_s` before. Anything else that was delivered and not billed,
billed twice, or billed above what a whole answer held, is a failure: the exit code is 1.

The servers and the clients are those of the tests (tests/gateway/workers).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "ledger_under_fire.json"
TESTS = HERE.parent / "tests"
for room in ("", "gateway", "gateway/limits", "gateway/workers"):
    sys.path.append(str(TESTS / room))

from door_kit import eventually  # noqa: E402
from fire_kit import Load, Received, audit  # noqa: E402
from postgres_kit import PostgresServer  # noqa: E402
from redis_kit import RedisServer  # noqa: E402
from workers_kit import House, open_house  # noqa: E402

WORKERS, CLIENTS, TOKENS, STEP_S, FLUSH_S = 4, 48, 80, 0.01, 0.5
AWAY_S = 4.0
LIMITS = ("--rpm", "1000000", "--concurrent", "1000")  # never reached, counted all the same

Blow = Callable[[], Awaitable[dict[str, float]]]


class Fire:
    """What is done to a house, and how long it took to be well again."""

    def __init__(self, house: House, postgres: PostgresServer, redis: RedisServer) -> None:
        self._house = house
        self._postgres = postgres
        self._redis = redis
        self._chance = random.Random(6)
        self.worker_deaths: list[float] = []
        self.rows: list[dict[str, Any]] = []

    async def storm(self, seconds: float) -> None:
        """Strike again and again, each time when all is well."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        blows: list[tuple[str, Blow]] = [
            ("worker", self._worker),
            ("engine", self._engine),
            ("postgres", self._database),
            ("redis", self._limits),
            ("worker while postgres is away", self._worker_without_database),
        ]
        number = 0
        while loop.time() < end or number < len(blows):
            name, blow = blows[number % len(blows)]
            number += 1
            await asyncio.sleep(1.0)
            self.rows.append({"killed": name} | await blow())

    async def _well(self) -> float:
        """Return how many seconds it takes until every worker answers."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def all_ready() -> bool:
            pids = self._house.pids
            if len(pids) < WORKERS:
                return False
            doors = _lines((await self._house.get("/metrics")).text, "tiergate_engine_up{")
            return [door.rpartition(" ")[2] for door in doors] == ["1.0"] * WORKERS

        await eventually(all_ready, "all workers are ready")
        return round(loop.time() - began, 2)

    def _kill_worker(self) -> None:
        os.kill(self._chance.choice(self._house.pids), signal.SIGKILL)
        self.worker_deaths.append(asyncio.get_running_loop().time())

    async def _worker(self) -> dict[str, float]:
        self._kill_worker()
        await asyncio.sleep(0.05)
        return {"well_again_s": await self._well()}

    async def _engine(self) -> dict[str, float]:
        old = self._house.engine_pid
        os.kill(old, signal.SIGKILL)
        await eventually(lambda: self._house.engine_pid != old, "another engine")
        return {"well_again_s": await self._well()}

    async def _database(self) -> dict[str, float]:
        await asyncio.to_thread(self._postgres.kill)
        await asyncio.sleep(AWAY_S)
        return await self._bring_back()

    async def _bring_back(self) -> dict[str, float]:
        waiting = sum(path.stat().st_size for path in self._spooled())
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._postgres.start)
        began = loop.time()
        await eventually(lambda: not self._spooled(), "the spools are empty")
        return {
            "away_s": AWAY_S,
            "spooled_bytes": waiting,
            "replayed_after_s": round(loop.time() - began, 2),
            "well_again_s": await self._well(),
        }

    async def _limits(self) -> dict[str, float]:
        await asyncio.to_thread(self._redis.kill)
        await asyncio.sleep(AWAY_S)
        await asyncio.to_thread(self._redis.start)
        return {"away_s": AWAY_S, "well_again_s": await self._well()}

    async def _worker_without_database(self) -> dict[str, float]:
        await asyncio.to_thread(self._postgres.kill)
        await asyncio.sleep(AWAY_S / 2)
        self._kill_worker()
        await asyncio.sleep(AWAY_S / 2)
        return await self._bring_back()

    def _spooled(self) -> list[Path]:
        found = (self._house.settings.data_dir / "spool").rglob("usage.*")
        return [path for path in found if ".open." not in path.name]


def _lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def judge(received: list[Received], rows: list[Any], deaths: list[float]) -> dict[str, Any]:
    """Compare, and say of everything unbilled why it may be."""
    found = audit(received, rows)
    billed = {row.request_id: row.output_tokens for row in rows}
    by_id = {got.id: got for got in received}
    under_way, last_flush, unexplained = [], [], []
    for name, delivered, bill in found.unbilled:
        got = by_id[name]
        if any(0 <= got.ended_s - at <= 2.0 for at in deaths) and got.broke:
            under_way.append(delivered - bill)
        elif any(0 <= at - got.ended_s <= FLUSH_S + 0.1 for at in deaths):
            last_flush.append(delivered - bill)
        else:
            unexplained.append([name, delivered, bill])
    return {
        "answers_whole": found.whole,
        "answers_cut_off": found.broken,
        "requests_refused": found.refused,
        "rows": found.rows,
        # Tokens under way to a client when its answer was cut: billed, and never read by it.
        "billed_beyond_what_cut_off_clients_read": sum(
            max(0, billed.get(got.id, 0) - len(got.text))
            for got in received
            if got.text and not got.is_whole
        ),
        "rows_of_no_client": len({row.request_id for row in rows} - set(by_id)),
        "delivered_tokens": found.delivered_tokens,
        "billed_tokens": found.billed_tokens,
        "billed_twice": len(rows) - len({row.request_id for row in rows}),
        "whole_answers_billed_otherwise": len(found.overbilled),
        "unbilled_under_way_in_killed_workers": {
            "answers": len(under_way), "tokens": sum(under_way)
        },
        "unbilled_of_their_last_flush": {"answers": len(last_flush), "tokens": sum(last_flush)},
        "unbilled_unexplained": unexplained,
    }  # fmt: skip


def set_limits(house: House) -> None:
    """Give the tenant limits, so that every request is counted in Redis."""
    where = ["--data-dir", house.settings.data_dir, "--database-url", house.settings.database_url]
    command = [sys.executable, "-m", "gateway.cli.main", "limit", "set", "--tenant"]
    subprocess.run([*command, "premium-tenant", *LIMITS, *where], cwd=HERE.parent, check=True)


async def measure(folder: Path, seconds: float) -> dict[str, Any]:
    postgres, redis = PostgresServer(), RedisServer()
    try:
        postgres.start()
        redis.start()
        settings = {"database_url": postgres.url, "usage_flush_s": FLUSH_S, "key_poll_s": 0.5}
        options = {"step_s": STEP_S}
        async with open_house(
            folder, redis.url, workers=WORKERS, settings=settings, options=options
        ) as house:
            await asyncio.to_thread(set_limits, house)
            loop = asyncio.get_running_loop()
            began = loop.time()
            load, fire = Load(house, CLIENTS, TOKENS), Fire(house, postgres, redis)
            await fire.storm(seconds)
            received = await load.stop()
            elapsed_s = loop.time() - began
            state = await house.idle()
            await asyncio.sleep(2 * FLUSH_S)
            found = await asyncio.to_thread(
                postgres.rows, "SELECT request_id, output_tokens FROM usage"
            )
            rows = [SimpleNamespace(**row) for row in found]
            held = _lines((await house.get("/metrics")).text, "tiergate_limits_open{")
    finally:
        redis.close()
        postgres.close()
    return {
        "workers": WORKERS,
        "clients": CLIENTS,
        "tokens_an_answer": TOKENS,
        "usage_flush_s": FLUSH_S,
        "elapsed_s": round(elapsed_s, 1),
        "kills": fire.rows,
        **judge(received, rows, fire.worker_deaths),
        "engine_free_blocks_missing": state["snapshot"]["num_blocks"]
        - state["snapshot"]["free_blocks"],
        "reservations_still_open": [line.rpartition(" ")[2] for line in held],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(Path(folder), args.seconds))
    text = json.dumps(result, indent=2)
    print(text)
    args.out.write_text(text + "\n")
    bad = (
        result["billed_twice"]
        or result["whole_answers_billed_otherwise"]
        or result["unbilled_unexplained"]
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
