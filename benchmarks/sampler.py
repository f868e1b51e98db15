"""Time the sampler on random logits: milliseconds per step for several kinds of batches.

    python -m benchmarks.sampler [--rows 32] [--vocab 151936] [--threads 1] [--native]

Writes benchmarks/results/sampler.json. The logits are Gaussian: "peaked" ones (standard deviation
6) have nuclei of a few dozen tokens, as trained models mostly do; "flat" ones (1) of tens of
thousands, the worst case. Medians of the repeats, the fastest, and the processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from engine.core.batch import Chunk
from engine.core.clock import NS_PER_MS, MonotonicClock, utc_now
from engine.core.request import SamplingParams
from engine.model.sampler import NativeKernels, Sampler

RESULT = Path(__file__).parent / "results" / "sampler.json"
BASE = SamplingParams(max_tokens=1)
HISTORY = (tuple(range(1000, 1512)), tuple(range(2000, 2128)))
CASES: dict[str, SamplingParams] = {
    "greedy": replace(BASE, temperature=0.0),
    "temperature": replace(BASE, temperature=0.8),
    "top_k 50, top_p 0.9": replace(BASE, top_k=50, top_p=0.9),
    "top_p 0.9": replace(BASE, top_p=0.9),
    "min_p 0.05": replace(BASE, min_p=0.05),
    "temperature, penalties on 640 tokens": replace(
        BASE, frequency_penalty=0.5, repetition_penalty=1.1
    ),
    "greedy, 5 logprobs": replace(BASE, temperature=0.0, logprobs=5),
}


def milliseconds(
    sampler: Sampler, logits: torch.Tensor, rows: list[Chunk], repeats: int
) -> dict[str, float]:
    """Return the median and the fastest of `repeats` steps after one that warms up.

    `cpu_ms` is the processor time of one step, all threads together: on a machine that is busy with
    other things it says more than the wall's.
    """
    clock, times = MonotonicClock(), []
    sampler.sample(logits, rows)
    cpu = time.process_time_ns()
    for _ in range(repeats):
        start = clock.now_ns()
        sampler.sample(logits, rows)
        times.append((clock.now_ns() - start) / NS_PER_MS)
    cpu = time.process_time_ns() - cpu
    return {
        "median_ms": round(statistics.median(times), 3),
        "min_ms": round(min(times), 3),
        "cpu_ms": round(cpu / repeats / NS_PER_MS, 3),
    }


def load_kernels() -> NativeKernels:
    from engine.model.kernels.native import load_native

    kernels = load_native()
    assert kernels is not None, "no compiled kernels on this machine"
    return kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--native", action="store_true", help="use the compiled kernels")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sampler = Sampler(args.vocab, load_kernels() if args.native else None)
    results: dict[str, dict[str, float]] = {}
    for shape, scale in (("peaked", 6.0), ("flat", 1.0)):
        generator = torch.Generator().manual_seed(0)
        logits = (torch.randn(args.rows, args.vocab, generator=generator) * scale).bfloat16()
        for name, order in CASES.items():
            history = HISTORY if order.has_penalties else ((), ())
            rows = [
                Chunk(f"r{i}", 0, (1,), (1,), replace(order, seed=i), 128, *history)
                for i in range(args.rows)
            ]
            result = milliseconds(sampler, logits, rows, args.repeats)
            results[f"{shape}: {name}"] = result
            wall, cpu = result["median_ms"], result["cpu_ms"]
            print(f"{shape + ': ' + name:50s} {wall:9.2f} ms, {cpu:.2f} of CPU")
    RESULT.parent.mkdir(exist_ok=True)
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": args.threads,
            "load_average": [round(value, 2) for value in os.getloadavg()],
        },
        "torch": torch.__version__,
        "rows": args.rows,
        "vocab": args.vocab,
        "dtype": "bfloat16",
        "native": args.native,
        "repeats": args.repeats,
        "results": results,
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
