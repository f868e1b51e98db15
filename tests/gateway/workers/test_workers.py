"""Several workers as one gateway: they share the port, the engine, the ledger and the limits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
from door_kit import chat_body
from redis_kit import RedisServer
from workers_kit import open_house


async def test_two_workers_answer_at_one_port(tmp_path: Path, redis_server: RedisServer) -> None:
    """Every answer is right and billed once, whichever worker it came from; nothing stays."""
    async with open_house(tmp_path, redis_server.url) as house:
        answers = await asyncio.gather(
            *[house.post(chat_body(f"{n}", max_tokens=5)) for n in range(40)]
        )
        assert {a.status_code for a in answers} == {200}
        assert {a.json()["choices"][0]["message"]["content"] for a in answers} == {"abcde"}
        rows = await house.usage(40)
        assert sorted(row.request_id for row in rows) == sorted(a.json()["id"] for a in answers)
        pids = [*house.pids, house.engine_pid]
        assert len(set(pids)) == 3
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert not (tmp_path / "data" / "run").exists()
