"""Are first tokens forecast rightly by a real gateway at a real engine, over HTTP?

The built-in model under the hybrid, on this machine, with the client beside it. First it is found
out how many answers a second it gives at the most, with many streams at once; then Poisson arrivals
come at shares of that, one in five of the premium tier. Of each stage every forecast is laid beside
the time to first token that came, from the request's first byte to the door's having the token, as
promises count. Nobody is refused (shadow mode). Two kinds of traffic: `mixed` has short questions,
long ones that differ (up to some nine hundred tokens) and talks that repeat a beginning; `short`
has short questions and such talks. The engine computes with `--threads` threads.
Run: python -m benchmarks.learning.http_forecast (a quiet machine)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gateway_under_test import Target, gateway_process
from benchmarks.scheduling.points import RESULTS, machine
from benchmarks.sse_client import CLOCK, Connection, Seen
from engine.core.clock import NS_PER_MS, NS_PER_S, utc_now

RESULT = RESULTS / "learning_http_forecast.json"
TIERS = ("premium", "free", "free", "free", "free")
STREAMS = 128
MOST_WAITING = 4096
QUESTIONS = (
    "Tell me a story about a {}.",
    "What is the colour of a {}?",
    "Count from one to {}.",
    "Name three things that have to do with a {}.",
)
THINGS = ("dog", "king", "river", "garden", "ten", "twenty", "ship", "bird", "bear", "boat")
COMMON = (
    "the a and of to in was with for on day old little said went saw big tree house red friend "
    "water then home happy sun morning night found time long good under over"
)
TALK = "We spoke of many things before. "
MOST_WORDS = 700


def ask(rng: random.Random, traffic: str) -> dict[str, Any]:
    """Return a question to the built-in model, some with a long way to it."""
    text, coin = rng.choice(QUESTIONS).format(rng.choice(THINGS)), rng.random()
    if coin < 0.3:
        text = TALK * rng.randint(5, 60) + text
    elif coin < 0.6 and traffic == "mixed":
        text = " ".join(rng.choices(COMMON.split(), k=rng.randint(50, MOST_WORDS))) + ". " + text
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 256}


async def one(target: Target, tier: str, body: dict[str, Any]) -> Seen:
    connection = Connection(target, tier)
    await connection.open()
    try:
        return await connection.ask(body)
    finally:
        await connection.close()


async def most_per_s(target: Target, seconds: float, rng: random.Random, traffic: str) -> float:
    """Return the answers a second that come where nobody waits to ask again."""
    end_ns = CLOCK.now_ns() + int(seconds * NS_PER_S)

    async def keep_asking() -> int:
        count = 0
        while CLOCK.now_ns() < end_ns:
            seen = await one(target, "free", ask(rng, traffic))
            count += seen.done and CLOCK.now_ns() < end_ns
        return count

    counts = await asyncio.gather(*[keep_asking() for _ in range(STREAMS)])
    return sum(counts) / seconds


async def stage(
    target: Target, rate: float, seconds: float, rng: random.Random, traffic: str
) -> dict[str, Any]:
    """Let arrivals come at a rate; return how many, how many were answered, and why others not."""
    tasks: list[asyncio.Task[Seen]] = []
    end_ns, next_ns = CLOCK.now_ns() + int(seconds * NS_PER_S), CLOCK.now_ns()
    while next_ns < end_ns:
        next_ns += int(rng.expovariate(rate) * NS_PER_S)
        await asyncio.sleep(max(0.0, (next_ns - CLOCK.now_ns()) / NS_PER_S))
        body = ask(rng, traffic)
        tasks.append(asyncio.create_task(one(target, rng.choice(TIERS), body)))
    await asyncio.gather(*tasks)
    seen = [task.result() for task in tasks]
    others = Counter(one.reason or str(one.status) for one in seen if not one.done)
    answered = sum(one.done for one in seen)
    return {"offered": len(seen), "answered": answered, "not_answered": dict(others)}


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how forecasts were borne out; times in ms, errors as shares but where named."""
    off = [abs(row["ttft_ns"] - row["actual_ns"]) for row in rows]
    actual = [row["actual_ns"] for row in rows]
    left = [
        of / max(1, row["actual_ns"] - row["waited_ns"]) for of, row in zip(off, rows, strict=True)
    ]
    is_met = [row["actual_ns"] <= row["target_ns"] for row in rows]
    said = [row["ttft_ns"] <= row["target_ns"] for row in rows]
    count = len(rows)
    return {
        "forecasts": count,
        "ttft_ms": [round(quantile(actual, share) / NS_PER_MS, 1) for share in (0.5, 0.9)],
        "median_error": round(quantile([a / b for a, b in zip(off, actual, strict=True)], 0.5), 3),
        "p90_error": round(quantile([a / b for a, b in zip(off, actual, strict=True)], 0.9), 3),
        "median_error_of_what_was_to_come": round(quantile(left, 0.5), 3),
        "error_ms": [round(quantile(off, share) / NS_PER_MS, 1) for share in (0.5, 0.9)],
        "error_of_target": [
            round(quantile([a / row["target_ns"] for a, row in zip(off, rows, strict=True)], at), 4)
            for at in (0.5, 0.9)
        ],
        "covered": round(
            sum(r["low_ns"] <= r["actual_ns"] <= r["high_ns"] for r in rows) / count, 3
        ),
        "on_time": round(sum(is_met) / count, 3),
        "foretold": round(sum(a == b for a, b in zip(is_met, said, strict=True)) / count, 3),
    }


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def read(forecasts: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in forecasts.read_text().splitlines()]


async def measure(args: argparse.Namespace, target: Target, forecasts: Path) -> dict[str, Any]:
    rng, traffic = random.Random(args.seed), args.traffic
    await most_per_s(target, 4.0, rng, traffic)  # warm: profile, lengths, buffers
    most = await most_per_s(target, args.seconds / 2, rng, traffic)
    stages = {}
    for share in args.shares:
        await asyncio.sleep(1.0)
        before = len(read(forecasts))
        offered = await stage(target, share * most, args.seconds, rng, traffic)
        rows = read(forecasts)[before:]
        stages[str(share)] = {
            **offered,
            "all": figures(rows),
            **{
                tier: figures([row for row in rows if row["tier"] == tier])
                for tier in sorted({row["tier"] for row in rows})
            },
        }
    return {"most_answers_per_s": round(most, 1), "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of a stage")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 1.0, 1.3])
    parser.add_argument("--traffic", choices=("mixed", "short"), default="mixed")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args, busy = parser.parse_args(), os.getloadavg()
    engine = {
        "policy": "hybrid",
        "threads": args.threads,
        "max_waiting_requests": MOST_WAITING,
        "max_waiting_prompt_tokens": 1 << 24,
    }
    settings = {
        "admission": "shadow", "max_queue": MOST_WAITING, "max_queue_prompt_tokens": 1 << 24
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        forecasts = Path(folder) / "forecasts.jsonl"
        flags = ("--engine", json.dumps(engine), "--settings", json.dumps(settings))
        with gateway_process(Path(folder), *flags, "--forecasts", str(forecasts)) as target:
            found = uvloop.run(measure(args, target, forecasts))
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": machine() | {"load_average": [round(load, 1) for load in busy]},
        "traffic": args.traffic,
        "threads": args.threads,
        "seconds": args.seconds,
        "seed": args.seed,
        **found,
    }
    print(json.dumps(report, indent=2))
    if not args.dry_run:
        known = json.loads(args.result.read_text()) if args.result.exists() else {}
        runs = known.get("runs", {})
        runs[f"{args.traffic}, {args.threads} thread(s), seed {args.seed}"] = report
        args.result.write_text(json.dumps({"runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
