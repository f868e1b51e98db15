"""Sends requests of many kinds until it is killed: `web_traffic.py URL KEYS_AS_JSON PER_SECOND`."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys

import httpx

QUESTIONS = ("What is TTFT?", "Count from 1 to 30.", "What is a KV cache?", "Say hello. " * 40)
CHAT = "/v1/chat/completions"


async def send(client: httpx.AsyncClient, key: str, number: int, chance: random.Random) -> None:
    """Send one request; of some the client leaves, and some are no good."""
    body = {
        "model": "builtin" if number % 17 else "no-such-model",
        "messages": [{"role": "user", "content": chance.choice(QUESTIONS)}],
        "max_tokens": chance.choice((4, 12, 24, 60)),
        "stream": number % 3 > 0,
    }
    leaves = number % 11 == 0
    try:
        async with asyncio.timeout(0.15 if leaves else 60):
            await client.post(CHAT, json=body, headers={"authorization": f"Bearer {key}"})
    except (TimeoutError, httpx.HTTPError):
        pass


async def main(url: str, keys: dict[str, str], per_s: float) -> None:
    """Send for ever, with pauses as of independent people."""
    chance = random.Random(7)
    running: set[asyncio.Task[None]] = set()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for number in itertools.count(1):
            key = keys["premium"] if chance.random() < 0.4 else keys["free"]
            if len(running) < 64:
                task = asyncio.create_task(send(client, key, number, chance))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.sleep(chance.expovariate(per_s))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])))
