"""From which length on is a context worth carrying? Recompute, raw and int8, side by side.

Built-in model: everything is measured here, each length alone on an idle engine: computing a
context of n tokens again (chunks of 512, as served), and copying it out and back in each format
with the engine's own swap. What the shipped latency profile, taken on a quiet machine, says of the
recompute stands beside it, and the ratios are to that. Besides, copies of a cache with the shape of
a 0.5B model (24 layers, 2 heads of 64, bfloat16) are measured; its weights are not at hand, so
recomputing is taken at the rate that two other cores (Sapphire Rapids, AMX) reached with random
ones, and marked so.
Run: python -m benchmarks.swap.crossover
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.swap.engine_runs import machine
from engine.core.batch import Batch, Chunk, Copy
from engine.core.clock import MonotonicClock
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import load_profile
from engine.model.host_cache import FORMATS, HostCache, HostFormat
from engine.model.host_side import make_swap
from engine.model.kernels.native import load_native
from engine.model.kv_cache import KVCache, KVShape
from engine.model.loader import load_runner
from engine.model.model_runner import ModelRunner

RESULT = Path(__file__).parents[1] / "results" / "swap_crossover.json"
BLOCK = 16
CHUNK = 512
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2000)
HALF_B = KVShape(num_layers=24, num_kv_heads=2, head_dim=64, dtype=torch.bfloat16)
HALF_B_PREFILL = 2100.0  # tokens a second of prompt, 0.5B in bfloat16 on two cores with AMX


def median_ms(times: int, work: Callable[[], None]) -> float:
    """Return the median time of `work` in milliseconds."""
    clock, taken = MonotonicClock(), []
    for _ in range(times):
        began_ns = clock.now_ns()
        work()
        taken.append((clock.now_ns() - began_ns) / 1e6)
    return statistics.median(taken)


def recompute_ms(runner: ModelRunner, length: int, times: int) -> float:
    """Return what computing a context of so many tokens takes, nothing else being served."""
    blocks = tuple(range(1, -(-length // BLOCK) + 1))
    chunks = [
        Chunk("a", at, tuple([7] * min(CHUNK, length - at)), blocks, None)
        for at in range(0, length, CHUNK)
    ]

    def work() -> None:
        for chunk in chunks:
            runner.execute(Batch(0, (chunk,)))

    work()
    return median_ms(times, work)


def profile_ms(model: LatencyModel, length: int) -> float:
    """Return what the shipped profile says that computing such a context takes."""
    chunks = [
        Chunk("a", at, tuple([7] * min(CHUNK, length - at)), (), None)
        for at in range(0, length, CHUNK)
    ]
    return sum(model.step_ns(Batch(0, (chunk,))) for chunk in chunks) / 1e6


def copy_ms(cache: KVCache, form: HostFormat, length: int, times: int) -> tuple[float, float]:
    """Return what carrying a context out and back takes."""
    count = -(-length // BLOCK)
    host = HostCache(cache.shape, count, BLOCK, form)
    host.data.zero_()
    swap = make_swap(cache, host, load_native())
    blocks = tuple(range(1, count + 1))
    copy = Copy("a", blocks, blocks, 1, length)

    def out() -> None:
        swap.begin([copy], [])
        assert swap.wait_any().copied

    def back() -> None:
        swap.begin([], [copy])
        assert swap.wait_any().copied

    out()
    found = median_ms(times, out), median_ms(times, back)
    swap.close()
    return found


def rows_of(
    cache: KVCache,
    stated: Callable[[int], float],
    measured: Callable[[int], float] | None,
    times: int,
) -> list[dict[str, Any]]:
    rows = []
    for length in LENGTHS:
        row: dict[str, Any] = {"tokens": length, "recompute_ms": round(stated(length), 3)}
        if measured is not None:
            row["recompute_measured_ms"] = round(measured(length), 3)
        for name in FORMATS:
            out, back = copy_ms(cache, HostFormat(name, BLOCK), length, times)
            row[f"{name}_out_ms"], row[f"{name}_in_ms"] = round(out, 3), round(back, 3)
            row[f"{name}_times_cheaper"] = round(row["recompute_ms"] / (out + back), 1)
        rows.append(row)
    return rows


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{title}\n")
    print("| context | recompute | measured here | raw out + in | int8 out + in | raw | int8 |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        raw = f"{row['raw_out_ms']:.2f} + {row['raw_in_ms']:.2f} ms"
        int8 = f"{row['int8_out_ms']:.2f} + {row['int8_in_ms']:.2f} ms"
        print(
            f"| {row['tokens']} | {row['recompute_ms']:.2f} ms"
            f" | {row.get('recompute_measured_ms', '')} | {raw} | {int8}"
            f" | {row['raw_times_cheaper']:.0f} x cheaper | {row['int8_times_cheaper']:.0f} x |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    runner = load_runner("builtin", "cpu", kv_cache_bytes=1 << 26, host_kv_bytes=0)
    cache = runner.attention.kv_cache
    model = LatencyModel(load_profile("builtin-cpu"))
    own = rows_of(
        cache,
        lambda n: profile_ms(model, n),
        lambda n: recompute_ms(runner, n, args.times),
        args.times,
    )
    show("Built-in model, measured", own)
    wide = KVCache(HALF_B, LENGTHS[-1] // BLOCK + 1, BLOCK, torch.device("cpu"))
    wide.data.normal_()
    half = rows_of(wide, lambda n: 1e3 * n / HALF_B_PREFILL, None, args.times)
    show(f"0.5B shape: copies measured, recompute at {HALF_B_PREFILL:.0f} tokens/s", half)
    if args.dry_run:
        return
    report = {
        "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "built-in": own,
        "0.5B shape": {
            "recompute_tokens_per_s": HALF_B_PREFILL,
            "measured": "copies",
            "rows": half,
        },
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {RESULT.name}")


if __name__ == "__main__":
    main()
