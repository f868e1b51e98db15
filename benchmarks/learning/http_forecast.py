"""Are first tokens forecast rightly by a real gateway at a real engine, over HTTP?

The built-in model under the hybrid, on this machine, with the client beside it. First it is found
out how many answers a second it gives at the most, with many streams at once; then Poisson arrivals
come at shares of that, one in five of the premium tier. After each stage the gateway's own score is
read from /metrics: the error of its forecasts against the first tokens that came, and how many came
within the interval that is meant to hold nine in ten. Nobody is refused (shadow mode).
Run: python -m benchmarks.learning.http_forecast (a quiet machine)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gateway_under_test import Target, gateway_process
from benchmarks.scheduling.points import RESULTS, machine
from benchmarks.sse_client import CLOCK, Connection, Seen
from engine.core.clock import NS_PER_S, utc_now

RESULT = RESULTS / "learning_http_forecast.json"
TIERS = ("premium", "free", "free", "free", "free")
STREAMS = 64
QUESTIONS = (
    "Tell me a story about a {}.",
    "What is the colour of a {}?",
    "Count from one to {}.",
    "Name three things that have to do with a {}.",
)
THINGS = ("dog", "king", "river", "garden", "ten", "twenty", "ship", "bird", "bear", "boat")
SCORE = re.compile(r"tiergate_forecast_(?:error|coverage)(?:_ratio)?\{(.*)\} ([0-9.e+-]+)")


def ask(rng: random.Random) -> dict[str, Any]:
    """Return a question to the built-in model, some with a long way to it."""
    text = rng.choice(QUESTIONS).format(rng.choice(THINGS))
    if rng.random() < 0.3:
        text = "We spoke of many things before. " * rng.randint(5, 60) + text
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 256}


async def one(target: Target, tier: str, body: dict[str, Any]) -> Seen:
    connection = Connection(target, tier)
    await connection.open()
    try:
        return await connection.ask(body)
    finally:
        await connection.close()


async def most_per_s(target: Target, seconds: float, rng: random.Random) -> float:
    """Return the answers a second that come where nobody waits to ask again."""
    end_ns = CLOCK.now_ns() + int(seconds * NS_PER_S)

    async def keep_asking() -> int:
        count = 0
        while CLOCK.now_ns() < end_ns:
            count += (await one(target, "premium", ask(rng))).done
        return count

    began_ns = CLOCK.now_ns()
    counts = await asyncio.gather(*[keep_asking() for _ in range(STREAMS)])
    return sum(counts) * NS_PER_S / (CLOCK.now_ns() - began_ns)


async def stage(target: Target, rate: float, seconds: float, rng: random.Random) -> dict[str, Any]:
    """Let arrivals come at a rate; return what became of them, by tier, and the scores after."""
    tasks: list[tuple[str, asyncio.Task[Seen]]] = []
    end_ns, next_ns = CLOCK.now_ns() + int(seconds * NS_PER_S), CLOCK.now_ns()
    while next_ns < end_ns:
        next_ns += int(rng.expovariate(rate) * NS_PER_S)
        await asyncio.sleep(max(0.0, (next_ns - CLOCK.now_ns()) / NS_PER_S))
        tier = rng.choice(TIERS)
        tasks.append((tier, asyncio.create_task(one(target, tier, ask(rng)))))
    await asyncio.gather(*[task for _, task in tasks])
    waits = {
        tier: sorted(
            seen.tokens_ns[0] - seen.sent_ns
            for own, task in tasks
            if own == tier and (seen := task.result()).tokens_ns
        )
        for tier in sorted(set(TIERS))
    }
    return {
        "offered": len(tasks),
        "answered": sum(task.result().done for _, task in tasks),
        "median_ttft_ms": {tier: round(middle(of) / 1e6, 1) for tier, of in waits.items() if of},
        **await asyncio.to_thread(scores, target),
    }


def middle(ordered: Sequence[int]) -> int:
    return ordered[len(ordered) // 2]


def scores(target: Target) -> dict[str, Any]:
    """Return error and coverage of the latest forecasts of each tier, from /metrics."""
    url = f"http://{target.host}:{target.port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, Any] = {}
    for labels, value in SCORE.findall(text):
        names = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        tier = next(v for k, v in names.items() if k.endswith("tier"))
        quantile = next((v for k, v in names.items() if k.endswith("quantile")), "")
        name = {"0.5": "median_error", "0.9": "p90_error", "": "covered"}[quantile]
        found.setdefault(name, {})[tier] = round(float(value), 3)
    return found


async def measure(args: argparse.Namespace, target: Target) -> dict[str, Any]:
    rng = random.Random(args.seed)
    await most_per_s(target, 3.0, rng)  # warm: profile, lengths, buffers
    most = await most_per_s(target, args.seconds / 2, rng)
    stages = {}
    for share in args.shares:
        stages[str(share)] = await stage(target, share * most, args.seconds, rng)
        await asyncio.sleep(1.0)
    return {"most_answers_per_s": round(most, 1), "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of a stage")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.8, 1.0, 1.2])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    engine = json.dumps({"policy": "hybrid"})
    settings = json.dumps({"admission": "shadow", "max_queue": 4096})
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--engine", engine, "--settings", settings)
        with gateway_process(Path(folder), *flags) as target:
            found = uvloop.run(measure(args, target))
    report = {"measured": utc_now().date().isoformat(), "machine": machine(), **found}
    print(json.dumps(report, indent=2))
    if not args.dry_run:
        args.result.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
