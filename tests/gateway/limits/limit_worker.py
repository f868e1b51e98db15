"""A gateway's worker as far as limits go, in a process of its own: asks, holds, settles, and tells.

Run: python limit_worker.py CONFIG, where CONFIG is JSON; what it saw goes to stdout as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

from redis.asyncio import Redis
from redis_kit import ticking_script
from store_kit import allow

from engine.core.clock import MonotonicClock
from gateway.limits.limiter import Limiter
from gateway.limits.redis_store import RedisStore, connect
from gateway.limits.store import NO_SEEDS, Closing, Mode
from gateway.limits.values import Ask, Grant, Spend


async def storm(config: dict[str, Any]) -> list[Any]:
    """Ask as fast as can be from many tasks, in a time that ticks with every call.

    Returns one row per call, with the store's time and answer, for a judge to play again.
    """
    store = RedisStore(connect(config["url"], 30), script=ticking_script(), timeout_s=30)
    line = asyncio.create_task(store.run())
    chance = random.Random(config["seed"])
    owners = [allow(name, **limits) for name, limits in config["limits"].items()]
    rows: list[Any] = []

    async def one(task: int) -> None:
        for number in range(config["rounds"]):
            name = f"w{config['seed']}-{task}-{number}"
            most = Spend(1, chance.randrange(1, 40), chance.randrange(1, 60))
            asked = Ask(name, "acme", tuple(owners), most)
            reply = await store.reserve(asked, NO_SEEDS)
            sizes = [most.prompt_tokens, most.output_tokens]
            answer = [int(reply.outcome), [list(reading) for reading in reply.readings]]
            rows.append([reply.at_us, "ask", name, sizes, answer])
            if reply.outcome.name != "GRANTED":
                continue
            await asyncio.sleep(chance.random() * 0.02)
            spent = Spend(1, most.prompt_tokens, chance.randrange(0, most.output_tokens + 1))
            closed = await store.settle(Closing(asked, Mode.SETTLE, spent))
            sizes = [spent.prompt_tokens, spent.output_tokens]
            rows.append([closed.at_us, "settle", name, sizes, [int(closed.outcome), []]])

    await asyncio.gather(*[one(task) for task in range(config["tasks"])])
    line.cancel()
    await asyncio.gather(line, return_exceptions=True)
    return rows


async def seats(config: dict[str, Any]) -> dict[str, int]:
    """Take seats through a whole limiter, and count in Redis who sits at the same time."""
    counter = Redis.from_url(config["url"], protocol=2)
    limiter = Limiter(RedisStore(connect(config["url"], 30), timeout_s=30), MonotonicClock())
    running = asyncio.create_task(limiter.run())
    owner = allow("tenant:t", concurrent_requests=config["limit"])
    most = granted = 0

    async def one(task: int) -> None:
        nonlocal most, granted
        for number in range(config["rounds"]):
            asked = Ask(f"w{config['seed']}-{task}-{number}", "acme", (owner,), Spend())
            if not isinstance(await limiter.reserve(asked), Grant):
                await asyncio.sleep(0.002)
                continue
            granted += 1
            most = max(most, await counter.incr("sitting"))
            await asyncio.sleep(0.001)
            await counter.decr("sitting")
            limiter.settle(asked.id, prompt_tokens=0, output_tokens=0)

    await asyncio.gather(*[one(task) for task in range(config["tasks"])])
    assert await limiter.flush(10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await counter.aclose()
    return {"most": most, "granted": granted}


async def hold(config: dict[str, Any]) -> None:
    """Take all the seats, say so, and hold them until killed."""
    lease_us = config["lease_us"]
    store = RedisStore(connect(config["url"]), lease_us=lease_us)
    limiter = Limiter(store, MonotonicClock(), lease_us=lease_us)
    running = asyncio.create_task(limiter.run())
    owner = allow("tenant:t", concurrent_requests=config["limit"])
    for number in range(config["limit"]):
        verdict = await limiter.reserve(Ask(f"h{number}", "acme", (owner,), Spend(1, 10)))
        assert isinstance(verdict, Grant)
    sys.stdout.write("held\n")
    sys.stdout.flush()
    await running


def main() -> None:
    config = json.loads(sys.argv[1])
    work = {"storm": storm, "seats": seats, "hold": hold}[config["work"]]
    sys.stdout.write(json.dumps(asyncio.run(work(config))) + "\n")


if __name__ == "__main__":
    main()
