"""What the door costs: the same workload through HTTP and on the bare engine client, in one run.

Workers ask in a closed loop, each for one answer of fixed length after the other. Rounds on the
bare `EngineProcess` and rounds through a whole gateway (keys, metering, metrics and logging on)
take turns, so that a busy neighbour hits both. The engine is a paced executor: it sleeps through
each step, so the door does not compete with a model for the same cores; `--model builtin` measures
with the real model instead. Client, door and engine are three processes.
Added time is the difference of the percentiles, HTTP minus bare.
Run: python -m benchmarks.door_cost
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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.gateway_under_test import Target, engine_config, gateway_process
from benchmarks.sse_client import Connection
from engine.core.clock import MonotonicClock, utc_now
from engine.core.request import RequestOrder, SamplingParams
from engine.model.builtin import builtin_path
from engine.model.tokenizer import Tokenizer
from engine.serving.process import EngineProcess

RESULT = Path(__file__).parent / "results" / "door_cost.json"
STREAMS = (1, 16, 64)
CLOCK = MonotonicClock()
QUESTION = "Explain in a few sentences why a server batches requests, and what that costs."
OUTPUT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Round:
    """Times of one round, nanoseconds."""

    ttft: tuple[int, ...]
    tbt: tuple[int, ...]
    door_cpu_s: float = 0.0


Ask = Callable[[int], Awaitable[tuple[int, tuple[int, ...]]]]


async def run_round(streams: int, requests: int, ask: Ask) -> Round:
    """Let `streams` workers ask `requests` times each."""
    ttft: list[int] = []
    tbt: list[int] = []

    async def work(worker: int) -> None:
        # Spread the beginnings over a few steps: real clients are not in lockstep.
        await asyncio.sleep(worker * 0.0037)
        for _ in range(requests):
            sent_ns, tokens_ns = await ask(worker)
            ttft.append(tokens_ns[0] - sent_ns)
            tbt.extend(b - a for a, b in itertools.pairwise(tokens_ns))

    await asyncio.gather(*[work(worker) for worker in range(streams)])
    return Round(tuple(ttft), tuple(tbt))


async def bare_round(engine: EngineProcess, prompt: tuple[int, ...], streams: int, n: int) -> Round:
    serial = iter(range(10**9))
    sampling = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0)

    async def ask(_worker: int) -> tuple[int, tuple[int, ...]]:
        sent_ns = CLOCK.now_ns()
        order = RequestOrder(f"bare-{sent_ns}-{next(serial)}", prompt, sampling, sent_ns)
        stream = engine.submit(order)
        tokens_ns: list[int] = []
        while events := await stream.next_events():
            now_ns = CLOCK.now_ns()
            tokens_ns.extend([now_ns] * sum(event.token_id is not None for event in events))
        return sent_ns, tuple(tokens_ns)

    return await run_round(streams, n, ask)


async def door_round(target: Target, streams: int, n: int) -> Round:
    connections = [Connection(target) for _ in range(streams)]
    for connection in connections:
        await connection.open()
    door = psutil.Process(target.pid)
    before = door.cpu_times()
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }

    async def ask(worker: int) -> tuple[int, tuple[int, ...]]:
        seen = await connections[worker].ask(body)
        assert seen.done, seen
        return seen.sent_ns, seen.tokens_ns

    result = await run_round(streams, n, ask)
    after = door.cpu_times()
    for connection in connections:
        await connection.close()
    cpu_s = after.user + after.system - before.user - before.system
    return Round(result.ttft, result.tbt, cpu_s)


def quantiles(values_ns: list[int]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(values_ns)
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6, 3)
        for name, share in (("p50", 0.50), ("p99", 0.99))
    }


def summary(rounds: list[Round]) -> dict[str, Any]:
    return {
        "ttft_ms": quantiles([t for r in rounds for t in r.ttft]),
        "tbt_ms": quantiles([t for r in rounds for t in r.tbt]),
        "answers": sum(len(r.ttft) for r in rounds),
    }


def difference(through: dict[str, Any], bare: dict[str, Any]) -> dict[str, Any]:
    return {
        what: {p: round(through[what][p] - bare[what][p], 3) for p in ("p50", "p99")}
        for what in ("ttft_ms", "tbt_ms")
    }


async def measure(args: argparse.Namespace, target: Target) -> list[dict[str, Any]]:
    tokenizer = Tokenizer.load(builtin_path())
    prompt = tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
    step_ms = None if args.model else args.step_ms
    engine = EngineProcess(engine_config(args.model, step_ms, args.threads))
    await engine.start()
    rows = []
    for streams in STREAMS:
        per_round = max(args.answers // streams // args.rounds, 1)
        await bare_round(engine, prompt, streams, 1)  # warm both up
        await door_round(target, streams, 1)
        bare, door = [], []
        for _ in range(args.rounds):
            bare.append(await bare_round(engine, prompt, streams, per_round))
            door.append(await door_round(target, streams, per_round))
        through, direct = summary(door), summary(bare)
        tokens = through["answers"] * OUTPUT_TOKENS
        cpu_s = sum(r.door_cpu_s for r in door)
        row = {
            "streams": streams,
            "added": difference(through, direct),
            "through_the_door": through,
            "bare_engine": direct,
            "door_cpu_us_per_token": round(cpu_s / tokens * 1e6, 1),
        }
        print(json.dumps(row))
        rows.append(row)
    await engine.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=10.0, help="pace of the paced executor")
    parser.add_argument("--model", default="", help="measure with a real model, e.g. builtin")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--answers", type=int, default=192, help="per number of streams")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    busy = os.getloadavg()
    flags = ["--model", args.model] if args.model else ["--step-ms", str(args.step_ms)]
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
        "engine": args.model or f"paced, {args.step_ms} ms a step",
        "output_tokens": OUTPUT_TOKENS,
        "rows": rows,
    }
    kept = json.loads(args.result.read_text()) if args.result.exists() else []
    kept = [one for one in kept if one["engine"] != report["engine"]]
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps([*kept, report], indent=2) + "\n")


if __name__ == "__main__":
    main()
