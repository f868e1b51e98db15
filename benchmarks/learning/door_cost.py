"""What prediction and admission add to TTFT: a door with both and one without, in the same run.

Two gateways run side by side with everything else equal: one guesses every answer's length, learns
from every end and forecasts every first token, the other has both switched off. Rounds of Poisson
arrivals at a fixed rate take turns, each with the same prompts at the same moments, so that a busy
neighbour hits both. Prompts are real ones of many lengths; every fourth is the next turn of a
conversation. The engine is a paced executor that sleeps through its steps, and its answers end by
themselves, each after a length of its own, so that there is something to learn. Client, doors and
engines are five processes.
Run: python -m benchmarks.learning.door_cost (needs the public prompts)
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import importlib.metadata
import json
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.gateway_under_test import Target, gateway_process
from benchmarks.scheduling.points import DATA, data_file, machine
from benchmarks.sse_client import Connection
from engine.core.clock import NS_PER_S, MonotonicClock, utc_now

RESULT = Path(__file__).resolve().parents[1] / "results" / "learning_door_cost.json"
CLOCK = MonotonicClock()
ON = {"learn": True, "admission": "hard"}  # hard: everybody is forecast, not free tiers alone
OFF = {"learn": False, "admission": "off"}
MEAN_TOKENS = 8.0
MOST_IDLE_NS = 2 * NS_PER_S
PACKAGES = ("numpy", "xgboost-cpu", "fastapi", "starlette", "uvicorn", "uvloop")


@dataclass(frozen=True, slots=True)
class Round:
    """Times of one round in nanoseconds, and the door's own CPU time."""

    ttft: tuple[int, ...]
    failed: int
    door_cpu_s: float


def read_prompts(folder: Path) -> list[str]:
    """Return the prompts of Chatbot Arena users."""
    with gzip.open(data_file(folder, "prompts/arena_prompts.jsonl.gz"), "rt") as lines:
        return [json.loads(line)["prompt"] for line in lines]


def make_bodies(prompts: Sequence[str], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Return requests; every fourth is a conversation with two turns behind it."""
    bodies: list[dict[str, Any]] = []
    for number in range(count):
        messages = [{"role": "user", "content": rng.choice(prompts)[:6000]}]
        if number % 4 == 3:
            earlier = [rng.choice(prompts)[:600] for _ in range(4)]
            roles = ("user", "assistant", "user", "assistant")
            past = [{"role": r, "content": t} for r, t in zip(roles, earlier, strict=True)]
            messages = [*past, *messages]
        bodies.append({"messages": messages, "max_tokens": 64, "temperature": 0})
    return bodies


class Client:
    """Asks at given moments over connections that are kept, as many as it takes."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._free: list[tuple[Connection, int]] = []  # and since when nobody has used it
        self._door = psutil.Process(target.pid)

    async def run(self, bodies: Sequence[dict[str, Any]], moments_s: Sequence[float]) -> Round:
        """Send each request at its moment, whatever became of the others."""
        before, began_ns = self._cpu_s(), CLOCK.now_ns()
        tasks = []
        for body, moment_s in zip(bodies, moments_s, strict=True):
            left_s = moment_s - (CLOCK.now_ns() - began_ns) / NS_PER_S
            if left_s > 0:
                await asyncio.sleep(left_s)
            tasks.append(asyncio.create_task(self._ask(body)))
        times = await asyncio.gather(*tasks)
        good = tuple(t for t in times if t is not None)
        return Round(good, len(times) - len(good), self._cpu_s() - before)

    async def _ask(self, body: dict[str, Any]) -> int | None:
        connection = await self._connection()
        seen = await connection.ask(body)
        self._free.append((connection, CLOCK.now_ns()))
        return seen.tokens_ns[0] - seen.sent_ns if seen.done and seen.tokens_ns else None

    async def _connection(self) -> Connection:
        """Return one that was used lately: the door closes those that are idle for long."""
        if self._free and CLOCK.now_ns() - self._free[-1][1] < MOST_IDLE_NS:
            return self._free.pop()[0]
        await self.close()
        connection = Connection(self._target)
        await connection.open()
        return connection

    def _cpu_s(self) -> float:
        times = self._door.cpu_times()
        return times.user + times.system

    async def close(self) -> None:
        free, self._free = self._free, []
        for connection, _ in free:
            await connection.close()


def quantiles(values_ns: Sequence[int]) -> dict[str, float]:
    """Return milliseconds."""
    ordered = sorted(values_ns)
    shares = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6, 3)
        for name, share in shares
    }


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    answers = sum(len(r.ttft) for r in rounds)
    return {
        "ttft_ms": quantiles([t for r in rounds for t in r.ttft]),
        "answers": answers,
        "failed_or_empty": sum(r.failed for r in rounds),
        "door_cpu_ms_per_request": round(1000 * sum(r.door_cpu_s for r in rounds) / answers, 3),
    }


async def measure(args: argparse.Namespace, targets: Sequence[Target]) -> dict[str, Any]:
    """Warm both doors up, then let them take turns."""
    rng = random.Random(args.seed)
    prompts = read_prompts(args.data)
    clients = [Client(target) for target in targets]
    warm = make_bodies(prompts, args.warm, rng)
    for client in clients:
        await client.run(warm, [number / args.rate for number in range(len(warm))])
    await asyncio.sleep(args.settle)  # what was learned is fitted in the background
    found: list[list[Round]] = [[], []]
    for number in range(args.rounds):
        bodies = make_bodies(prompts, int(args.rate * args.seconds), rng)
        at_s, moments = 0.0, []
        for _ in bodies:
            at_s += rng.expovariate(args.rate)
            moments.append(at_s)
        for which in (0, 1) if number % 2 else (1, 0):
            found[which].append(await clients[which].run(bodies, moments))
    for client in clients:
        await client.close()
    on, off = map(summary, found)
    pairs = [
        quantiles(a.ttft)["p50"] - quantiles(b.ttft)["p50"]
        for a, b in zip(found[0], found[1], strict=True)
    ]
    return {
        "added_ttft_ms": {p: round(on["ttft_ms"][p] - off["ttft_ms"][p], 3) for p in on["ttft_ms"]},
        "ratio": {p: round(on["ttft_ms"][p] / off["ttft_ms"][p], 3) for p in on["ttft_ms"]},
        "added_p50_ms_by_round": [round(pair, 3) for pair in pairs],
        "on": on,
        "off": off,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with prompts/")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=6, help="of each")
    parser.add_argument("--warm", type=int, default=1500, help="requests before the first round")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds after the warm-up")
    parser.add_argument("--step-ms", type=float, default=5.0, help="pace of the executor")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    busy = os.getloadavg()
    flags = ["--step-ms", str(args.step_ms), "--mean-tokens", str(MEAN_TOKENS)]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        folders = Path(one), Path(other)
        with (
            gateway_process(folders[0], *flags, "--settings", json.dumps(ON)) as with_both,
            gateway_process(folders[1], *flags, "--settings", json.dumps(OFF)) as without,
        ):
            rows = uvloop.run(measure(args, (with_both, without)))
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": machine() | {"load_average": [round(load, 1) for load in busy]},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "engine": f"paced, {args.step_ms} ms a step, answers of {MEAN_TOKENS} tokens on average",
        "rate": args.rate,
        "seconds": args.seconds,
        "rounds": args.rounds,
        **rows,
    }
    print(json.dumps(report, indent=2))
    if not args.dry_run:
        args.result.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
