"""An hour's wear in a minute: many streams for a while, and a queue filled to its brim and beyond.

Two measurements on one gateway with everything on (keys, metering, metrics, logging) and a real
model. `streams`: so many answers are read at any time, for so long; counted are failures, stalls
(a gap between two tokens above --stall-ms) and the resident memory of both processes. `queue`: a
burst of more requests than may wait, all at once; counted is who was served, who was refused, with
what reason and hint, and how fast the refusal came.
Run: python -m benchmarks.soak
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.door_cost import quantiles
from benchmarks.gateway_under_test import MAX_QUEUE, Target, gateway_process
from benchmarks.sse_client import CLOCK, Connection, Seen
from engine.core.clock import NS_PER_S, utc_now
from gateway.process import prepare_process

RESULT = Path(__file__).parent / "results" / "soak.json"
MIB = 2**20
QUESTIONS = (
    "What is a KV cache?",
    "Explain continuous batching.",
    "Why does a gateway keep a queue?",
    "What is the time to first token?",
)


def body_of(number: int, max_tokens: int) -> dict[str, Any]:
    question = QUESTIONS[number % len(QUESTIONS)]
    messages = [{"role": "user", "content": f"{question} ({number})"}]
    return {"messages": messages, "max_tokens": max_tokens, "ignore_eos": True}


async def sample_memory(target: Target, every_s: float) -> list[dict[str, float]]:
    """Sample until cancelled; the list is shared with whoever started this."""
    samples: list[dict[str, float]] = []
    door, engine = psutil.Process(target.pid), psutil.Process(target.engine_pid)
    began_ns = CLOCK.now_ns()
    try:
        while True:
            samples.append(
                {
                    "at_s": round((CLOCK.now_ns() - began_ns) / NS_PER_S, 1),
                    "door_mib": round(door.memory_info().rss / MIB, 1),
                    "engine_mib": round(engine.memory_info().rss / MIB, 1),
                }
            )
            await asyncio.sleep(every_s)
    except asyncio.CancelledError:
        return samples


async def soak(target: Target, args: argparse.Namespace) -> dict[str, Any]:
    """Keep `--streams` answers going for `--seconds`."""
    until_ns = CLOCK.now_ns() + int(args.seconds * NS_PER_S)
    seen: list[Seen] = []
    failures: Counter[str] = Counter()

    async def work(worker: int) -> None:
        connection = Connection(target, "premium" if worker % 2 else "free")
        await connection.open()
        number = worker
        while CLOCK.now_ns() < until_ns:
            try:
                answer = await connection.ask(body_of(number, args.tokens))
            except (OSError, asyncio.IncompleteReadError) as error:
                failures[type(error).__name__] += 1
                connection = Connection(target)
                await connection.open()
                continue
            number += args.streams
            seen.append(answer)
            if not answer.done:
                failures[f"status {answer.status}" if answer.status != 200 else "cut off"] += 1
        await connection.close()

    memory = asyncio.create_task(sample_memory(target, args.seconds / 12))
    began_ns = CLOCK.now_ns()
    await asyncio.gather(*[work(worker) for worker in range(args.streams)])
    took_s = (CLOCK.now_ns() - began_ns) / NS_PER_S
    memory.cancel()
    gaps = [b - a for s in seen for a, b in itertools.pairwise(s.tokens_ns)]
    stall_ns = args.stall_ms * 1_000_000
    return {
        "streams": args.streams,
        "seconds": round(took_s, 1),
        "answers": len(seen),
        "tokens_per_s": round(sum(len(s.tokens_ns) for s in seen) / took_s, 1),
        "failures": dict(failures),
        "ttft_ms": quantiles([s.tokens_ns[0] - s.sent_ns for s in seen if s.tokens_ns]),
        "tbt_ms": quantiles(gaps),
        "worst_gap_ms": round(max(gaps) / 1e6, 1),
        f"stalls_over_{args.stall_ms}_ms": sum(gap > stall_ns for gap in gaps),
        "memory": await memory,
    }


async def fill_queue(target: Target, args: argparse.Namespace) -> dict[str, Any]:
    """Send a burst and see who gets in."""
    number = MAX_QUEUE + args.running + args.beyond
    connections = [
        Connection(target, "premium" if worker % 2 else "free") for worker in range(number)
    ]
    for connection in connections:
        await connection.open()
    answers = await asyncio.gather(
        *[c.ask(body_of(worker, 16)) for worker, c in enumerate(connections)]
    )
    for connection in connections:
        await connection.close()
    refused = [a for a in answers if a.status != 200]
    served = [a for a in answers if a.status == 200]
    return {
        "sent_at_once": number,
        "max_queue": MAX_QUEUE,
        "served": sum(a.done for a in served),
        "cut_off": sum(not a.done for a in served),
        "refused": Counter(f"{a.status} {a.reason}" for a in refused),
        "refused_within_ms": quantiles([int(a.seconds * 1e9) for a in refused]) if refused else {},
        "retry_after_ms": sorted({a.retry_after_ms for a in refused if a.retry_after_ms}),
        "last_served_after_s": round(max(a.seconds for a in served), 1),
    }


async def measure(args: argparse.Namespace, target: Target) -> dict[str, Any]:
    streams = await soak(target, args)
    print(json.dumps(streams))
    queue = await fill_queue(target, args)
    print(json.dumps(queue))
    return {"streams": streams, "queue": queue}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tokens", type=int, default=128, help="length of an answer")
    parser.add_argument("--stall-ms", type=int, default=2000)
    parser.add_argument("--running", type=int, default=64, help="the engine's seats")
    parser.add_argument("--beyond", type=int, default=100, help="requests beyond the queue")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    busy = os.getloadavg()
    prepare_process()
    flags = ["--model", args.model]
    flags += ["--threads", str(args.threads)] if args.threads else []
    with tempfile.TemporaryDirectory() as folder, gateway_process(Path(folder), *flags) as target:
        rows = uvloop.run(measure(args, target))
    if args.dry_run:
        return
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": sys.version.split()[0],
            "load_average": [round(load, 1) for load in busy],
        },
        "model": args.model,
        **rows,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
