"""Tokens per second of the built-in model at 1, 8, 32 and 64 streams, through the engine's process.

    python -m benchmarks.builtin_streams

Each stream asks with 32 prompt tokens and takes 256 tokens, greedy, end tokens ignored, prefix
cache off; scheduler, sampler and process boundary are as in service. A figure is the median of the
repeats. Writes benchmarks/results/builtin_streams.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
from pathlib import Path
from typing import Any

import torch

from engine.core.clock import MonotonicClock, utc_now
from engine.core.request import RequestOrder, SamplingParams
from engine.serving.client import TokenStream
from engine.serving.config import EngineConfig
from engine.serving.process import EngineProcess

RESULT = Path(__file__).parent / "results" / "builtin_streams.json"
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 256
CLOCK = MonotonicClock()


async def read(stream: TokenStream) -> int:
    """Return how many tokens the stream brought."""
    count = 0
    while events := await stream.next_events():
        count += sum(event.token_id is not None for event in events)
    return count


async def one_run(engine: EngineProcess, streams: int, label: str, rng: random.Random) -> float:
    """Return tokens per second of `streams` requests that start together."""
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0)
    began_ns = CLOCK.now_ns()
    orders = [
        RequestOrder(
            f"{label}-{i}",
            tuple(rng.randrange(10, 2000) for _ in range(PROMPT_TOKENS)),
            params,
            CLOCK.now_ns(),
        )
        for i in range(streams)
    ]
    counts = await asyncio.gather(*(read(engine.submit(order)) for order in orders))
    assert counts == [OUTPUT_TOKENS] * streams
    return sum(counts) / ((CLOCK.now_ns() - began_ns) / 1e9)


async def measure(dtype: str, repeats: int) -> dict[str, Any]:
    """Return the figures of one number format."""
    engine = EngineProcess(EngineConfig(model="builtin", device="cpu", dtype=dtype, nice=0))
    await engine.start()
    try:
        assert engine.info is not None
        rng = random.Random(0)
        await one_run(engine, 8, "warm", rng)
        rows = {}
        for streams in (1, 8, 32, 64):
            runs = [
                round(await one_run(engine, streams, f"s{streams}-{i}", rng), 1)
                for i in range(repeats)
            ]
            rows[str(streams)] = {"tokens_per_s": statistics.median(runs), "runs": runs}
        return {"runner": engine.info.runner, "dtype": engine.info.dtype, "streams": rows}
    finally:
        await engine.close()


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", action="append", choices=("bfloat16", "float32"))
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    found = {
        "measured": utc_now().date().isoformat(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "results": [
            asyncio.run(measure(dtype, chosen.repeats))
            for dtype in chosen.dtype or ["bfloat16", "float32"]
        ],
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    for result in found["results"]:
        for streams, row in result["streams"].items():
            print(result["dtype"], result["runner"], streams, row["tokens_per_s"], "tokens/s")


if __name__ == "__main__":
    main()
