"""Does a paced client see an even stream while its request is away from the device?

A gateway and its engine as `tiergate serve` runs them, the built-in model, the hybrid policy, and a
KV cache for a fraction of what is asked for: bursts of requests come, and to start them the engine
parks others in host memory and brings them back. Clients in a process of their own note when each
token arrives. The same bursts are played twice, with the tier's pace and without it; the engine's
own records say who was parked, how often and for how long. Reported are the gaps between tokens of
those answers alone that were parked at least once, seen by their clients; and, to tell how much of
it is the machine's, the gaps of a plain timer of that length in the client's process meanwhile.
Run: python -m benchmarks.pacing
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.gateway_under_test import Target, gateway_process
from benchmarks.sse_client import Connection, Seen
from engine.core.clock import MonotonicClock, utc_now

RESULT = Path(__file__).parent / "results" / "pacing.json"
TIER = "free"
KV_BYTES_PER_TOKEN = 2048  # of the built-in model
WORDS = ("river", "stone", "cloud", "light", "paper", "window", "garden", "winter", "engine")


@dataclass(frozen=True, slots=True)
class Load:
    """Bursts of requests; all answers have the same length."""

    bursts: int
    streams: int  # a burst
    every_s: float
    prompt_words: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        """Context of a whole burst at its end, about."""
        return self.streams * (self.prompt_words + self.output_tokens)


def prompt(number: int, words: int) -> str:
    """A text of its own for every request, so that no prefix is shared."""
    return " ".join(WORDS[(number * 7 + i * (number + 3)) % len(WORDS)] for i in range(words))


async def tick(every_ms: int, ticks_ns: list[int]) -> None:
    """Note when a timer fires that should fire at even times."""
    clock = MonotonicClock()
    next_ns = clock.now_ns()
    while True:
        next_ns += every_ms * 1_000_000
        await asyncio.sleep(max(0, next_ns - clock.now_ns()) / 1e9)
        ticks_ns.append(clock.now_ns())


async def play(target: Target, load: Load, tick_ms: int) -> tuple[list[Seen], list[int]]:
    """Send all bursts on their schedule, read every answer to its end; also the timer's times."""
    ticks_ns: list[int] = []
    ticking = asyncio.create_task(tick(tick_ms, ticks_ns))

    async def one(number: int, at_s: float) -> Seen:
        await asyncio.sleep(at_s)
        connection = Connection(target, TIER)
        await connection.open()
        body = {
            "messages": [{"role": "user", "content": prompt(number, load.prompt_words)}],
            "max_tokens": load.output_tokens,
            "temperature": 1,
            "seed": number,
            "ignore_eos": True,
        }
        seen = await connection.ask(body)
        await connection.close()
        assert seen.done, seen
        return seen

    numbers = range(load.bursts * load.streams)
    answers = await asyncio.gather(
        *[one(n, (n // load.streams) * load.every_s + (n % load.streams) * 0.02) for n in numbers]
    )
    ticking.cancel()
    return answers, ticks_ns


def quantiles(gaps_ns: list[int]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(gaps_ns)
    shares = {"p01": 0.01, "p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6, 2)
        for name, share in shares.items()
    }


def gaps_of(answers: list[Seen]) -> list[int]:
    return [b - a for seen in answers for a, b in itertools.pairwise(seen.tokens_ns)]


def run(args: argparse.Namespace, load: Load, pace_ms: int) -> dict[str, Any]:
    """Play the load against a gateway of its own; return what was seen."""
    engine = {
        "policy": args.policy,
        "policy_options": args.options,
        "kv_cache_bytes": int(args.kv_share * load.tokens) * KV_BYTES_PER_TOKEN,
        "host_kv_bytes": 4 * load.tokens * KV_BYTES_PER_TOKEN,
        "host_kv_format": args.host_format,
        "prefix_caching": False,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ends = folder / "ends.jsonl"
        tier = [TIER, f"pace_ms={pace_ms}", f"tbt_ms={args.tbt_ms}", f"tbt_mode={args.mode}"]
        flags = ["--engine", json.dumps(engine), "--ends", str(ends)]
        with gateway_process(folder, *flags, "--tier", *tier) as target:
            door = psutil.Process(target.pid)
            before = door.cpu_times()
            answers, ticks_ns = uvloop.run(play(target, load, args.pace_ms))
            after = door.cpu_times()
        records = [json.loads(line) for line in ends.read_text().splitlines()]
    by_id = {record["request_id"]: record for record in records}
    parked = [seen for seen in answers if by_id[seen.id]["parks"] > 0]
    parked_records = [by_id[seen.id] for seen in parked]
    made_s = [(r["last_token_ns"] - r["first_token_ns"]) / 1e9 for r in parked_records]
    seen_s = [(seen.tokens_ns[-1] - seen.tokens_ns[0]) / 1e9 for seen in parked]
    row = {
        "pace_ms": pace_ms,
        "answers": len(answers),
        "parked_answers": len(parked),
        "parks": sum(r["parks"] for r in records),
        "parked_s": round(sum(r["parked_ns"] for r in records) / 1e9, 1),
        "longest_parked_s": round(max(r["parked_ns"] for r in records) / 1e9, 1),
        "recomputes": sum(r["preemptions"] for r in records),
        "late_tokens_engine": sum(r["late_tokens"] for r in records),
        "gaps": len(gaps_of(parked)),
        "gap_ms_of_parked": quantiles(gaps_of(parked)) if parked else None,
        "gap_ms_of_all": quantiles(gaps_of(answers)),
        "gap_ms_of_timer": quantiles([b - a for a, b in itertools.pairwise(ticks_ns)]),
        "door_cpu_s": round(after.user + after.system - before.user - before.system, 1),
        "answer_made_s": round(sum(made_s) / max(len(made_s), 1), 1),
        "answer_seen_s": round(sum(seen_s) / max(len(seen_s), 1), 1),
    }
    print(json.dumps(row, indent=2), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pace-ms", type=int, default=50)
    parser.add_argument("--tbt-ms", type=int, default=100)
    parser.add_argument("--mode", choices=("gap", "stream"), default="gap")
    parser.add_argument("--policy", default="hybrid")
    parser.add_argument("--options", type=json.loads, default=[], help='[["pause_s", 20], ...]')
    parser.add_argument("--host-format", choices=("raw", "int8"), default="raw")
    parser.add_argument("--bursts", type=int, default=4)
    parser.add_argument("--streams", type=int, default=12, help="of a burst")
    parser.add_argument("--every-s", type=float, default=15.0)
    parser.add_argument("--prompt-words", type=int, default=200)
    parser.add_argument("--output-tokens", type=int, default=700)
    parser.add_argument("--kv-share", type=float, default=0.3, help="of one burst's contexts")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    load = Load(args.bursts, args.streams, args.every_s, args.prompt_words, args.output_tokens)
    busy = os.getloadavg()
    rows = [run(args, load, pace_ms) for pace_ms in (args.pace_ms, 0)]
    p99 = (rows[0]["gap_ms_of_parked"] or {}).get("p99")
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": sys.version.split()[0],
            "load_average": [round(load, 1) for load in busy],
        },
        "engine": f"built-in model, {args.policy}, host {args.host_format}",
        "tier": {"tbt_ms": args.tbt_ms, "tbt_mode": args.mode},
        "load": {name: getattr(load, name) for name in Load.__slots__},
        "kv_share_of_a_burst": args.kv_share,
        "rows": rows,
        "p99_off_pace": None if p99 is None else round(p99 / args.pace_ms - 1, 4),
    }
    print(f"P99 of parked answers off the pace: {report['p99_off_pace']}")
    if not args.dry_run:
        args.result.parent.mkdir(parents=True, exist_ok=True)
        args.result.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
