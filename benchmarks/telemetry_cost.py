"""What telemetry costs: the same traffic at gateways that push nothing, something and everything.

Gateways that differ only in what they push run side by side, each with a paced engine of its own,
and take turns in every round, so a busy neighbour hits all alike: `off` (metrics are kept and
scraped by nobody), `pushed` (metrics and a tenth of the traces, as set out of the box), `all`
(metrics, all traces, log lines). The collector is a process of its own that takes everything.
Two loads: `full`, where the door itself is what limits throughput (nobody runs it like that: it is
the worst case), and `calm`, where the engine does, as it should.
Differences are medians of the rounds' own, beside `off` of the same round. What each part takes of
a processor is measured apart (telemetry_parts), where neighbours disturb less, and put beside what
an answer takes of the door's.
Run: python -m benchmarks.telemetry_cost
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.gateway_under_test import Target, gateway_process
from benchmarks.sse_client import Connection
from benchmarks.telemetry_parts import parts
from engine.core.clock import MonotonicClock, utc_now

RESULT = Path(__file__).parent / "results" / "telemetry_cost.json"
CLOCK = MonotonicClock()
QUESTION = "Explain in a few sentences why a server batches requests, and what that costs."
ARMS: dict[str, dict[str, Any]] = {
    "off": {},
    "pushed": {"otlp_signals": "metrics,traces", "trace_sample": 0.1},
    "all": {"otlp_signals": "metrics,traces,logs", "trace_sample": 1.0},
}
OTLP_INTERVAL_S = 5.0  # three times as often as out of the box


@dataclass(frozen=True, slots=True)
class Load:
    """How one kind of round asks."""

    streams: int
    output_tokens: int
    step_ms: float


LOADS = {"full": Load(48, 64, 1.0), "calm": Load(4, 64, 2.0)}


@dataclass(frozen=True, slots=True)
class Round:
    """One round at one gateway."""

    answers: int
    answers_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    cpu_us_per_answer: float


class Sink(BaseHTTPRequestHandler):
    """A collector that takes everything and keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


def serve_sink() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


@contextlib.contextmanager
def sink_process() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.telemetry_cost", "--sink"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


async def run_round(target: Target, load: Load, seconds: float) -> Round:
    """Ask in a closed loop for so long."""
    connections = [Connection(target) for _ in range(load.streams)]
    for connection in connections:
        await connection.open()
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    door = psutil.Process(target.pid)
    ttft: list[float] = []
    before, began_ns = door.cpu_times(), CLOCK.now_ns()

    async def work(connection: Connection, number: int) -> None:
        await asyncio.sleep(number * 0.0017)
        while CLOCK.now_ns() < began_ns + seconds * 1e9:
            seen = await connection.ask(body)
            assert seen.done, seen
            ttft.append((seen.tokens_ns[0] - seen.sent_ns) / 1e6)

    await asyncio.gather(*[work(one, number) for number, one in enumerate(connections)])
    took_s, after = (CLOCK.now_ns() - began_ns) / 1e9, door.cpu_times()
    for connection in connections:
        await connection.close()
    cpu_s = after.user + after.system - before.user - before.system
    ordered = sorted(ttft)
    return Round(
        answers=len(ttft),
        answers_per_s=len(ttft) / took_s,
        ttft_p50_ms=statistics.median(ordered),
        ttft_p99_ms=ordered[int(0.99 * len(ordered))],
        cpu_us_per_answer=cpu_s / len(ttft) * 1e6,
    )


async def measure(
    targets: dict[tuple[str, str], Target], rounds: int, seconds: float
) -> dict[str, dict[str, list[Round]]]:
    found: dict[str, dict[str, list[Round]]] = {load: {arm: [] for arm in ARMS} for load in LOADS}
    for load in LOADS:
        for arm in ARMS:  # warm everything up
            await run_round(targets[load, arm], LOADS[load], 0.5)
    for number in range(rounds):
        order = [*ARMS][number % len(ARMS) :] + [*ARMS][: number % len(ARMS)]
        for load in LOADS:
            for arm in order:
                found[load][arm].append(await run_round(targets[load, arm], LOADS[load], seconds))
    return found


def summary(rounds: dict[str, list[Round]]) -> dict[str, Any]:
    """Return each gateway's figures, and how they differ from those of `off` round by round."""
    off = rounds["off"]
    shown: dict[str, Any] = {}
    for arm, own in rounds.items():
        shown[arm] = {
            "answers": sum(one.answers for one in own),
            "answers_per_s": round(statistics.median(one.answers_per_s for one in own), 1),
            "ttft_p50_ms": round(statistics.median(one.ttft_p50_ms for one in own), 3),
            "ttft_p99_ms": round(statistics.median(one.ttft_p99_ms for one in own), 2),
            "door_cpu_us_per_answer": round(statistics.median(o.cpu_us_per_answer for o in own)),
        }
        if arm == "off":
            continue
        pairs = list(zip(own, off, strict=True))
        slower = [100 * (1 - one.answers_per_s / base.answers_per_s) for one, base in pairs]
        later = [one.ttft_p50_ms - base.ttft_p50_ms for one, base in pairs]
        dearer = [one.cpu_us_per_answer - base.cpu_us_per_answer for one, base in pairs]
        shown[arm]["beside_off"] = {
            "throughput_lost_percent": spread(slower),
            "ttft_p50_added_ms": spread(later),
            "door_cpu_added_us_per_answer": spread(dearer),
        }
    return shown


def shares(
    costs: dict[str, dict[str, float]], found: dict[str, dict[str, list[Round]]]
) -> dict[str, dict[str, float]]:
    """Return what pushing adds to the processor time that an answer takes of the door."""

    def total(name: str) -> float:
        return sum(costs[name].values())

    tenth = 0.1 * (total("trace, sampled") + total("exemplars")) + 0.9 * total("trace, not sampled")
    every = total("trace, sampled") + total("exemplars")
    line = total("access line")
    added = {"pushed": tenth, "pushed and lines": tenth + line, "all": every + line}
    return {
        load: {
            arm: round(
                100 * cost / statistics.median(o.cpu_us_per_answer for o in rounds["off"]), 2
            )
            for arm, cost in added.items()
        }
        for load, rounds in found.items()
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return the median with its quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round at each gateway")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    parser.add_argument("--sink", action="store_true", help="be the collector")
    args = parser.parse_args()
    if args.sink:
        serve_sink()
    busy, began = os.getloadavg(), time.monotonic()
    with contextlib.ExitStack() as held:
        url = held.enter_context(sink_process())
        targets: dict[tuple[str, str], Target] = {}
        for name, load in LOADS.items():
            for arm, more in ARMS.items():
                push = {"otlp_endpoint": url, "otlp_interval_s": OTLP_INTERVAL_S} if more else {}
                flags = ["--step-ms", str(load.step_ms), "--settings", json.dumps(more | push)]
                folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
                targets[name, arm] = held.enter_context(gateway_process(folder, *flags))
        found = uvloop.run(measure(targets, args.rounds, args.seconds))
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": sys.version.split()[0],
            "load_average_before": [round(load, 1) for load in busy],
        },
        "took_s": round(time.monotonic() - began),
        "rounds": args.rounds,
        "parts_us_per_request": (costs := parts()),
        "share_of_the_doors_cpu_percent": shares(costs, found),
        "loads": {name: vars_of(load) | summary(found[name]) for name, load in LOADS.items()},
    }
    print(json.dumps(report, indent=2))
    if not args.dry_run:
        args.result.parent.mkdir(parents=True, exist_ok=True)
        args.result.write_text(json.dumps(report, indent=2) + "\n")


def vars_of(load: Load) -> dict[str, Any]:
    names = ("streams", "output_tokens", "step_ms")
    return {"load": {name: getattr(load, name) for name in names}}


if __name__ == "__main__":
    main()
