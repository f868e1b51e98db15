"""Does parking change an answer? Every request of a starved engine against an unconstrained one.

The same requests are answered by the built-in model with room for everyone, and then with a KV pool
a tenth of what they held at once: by the hybrid policy, which parks whom it likes; by one that
parks everyone each few tokens; and without any host memory, where whoever loses its blocks is
computed again. Half of the answers are greedy, half drawn at temperature 0.8 with a seed; a third
of the prompts begin alike, and the prefix cache is on. In float32 nothing may differ. In bfloat16
the arithmetic depends on who else is in the batch, so a few answers may, parked or not: the run
without a host says how many.
Run: python -m benchmarks.swap.exactness
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.swap.engine_runs import Order, Outcome, machine, prompts_of, serve
from engine.core.latency_model import LatencyModel
from engine.core.latency_profile import load_profile
from engine.core.policies import make_policy
from engine.core.policy import SchedulingPolicy
from engine.core.request import SamplingParams, Slo
from engine.model.loader import load_runner
from engine.model.model_runner import ModelRunner
from tests.model.parking_run import ForcedParks

RESULT = Path(__file__).parents[1] / "results" / "swap_exactness.json"
MS = 1_000_000
TIERS = {
    "premium": Slo(0, 100 * MS, 100 * MS, 40 * MS),
    "free": Slo(1, 4000 * MS, 1000 * MS, 400 * MS),
}
BLOCK = 16
EVERY = 16  # tokens between forced parks


def orders_of(model_path: str, count: int, seed: int) -> list[Order]:
    """Return the requests; they all come at once until `spread` says otherwise."""
    draw = random.Random(seed)
    orders = []
    for number, prompt in enumerate(prompts_of(model_path, count, draw)):
        temperature = 0.8 if number % 2 else 0.0
        sampling = SamplingParams(draw.randint(16, 128), seed=number, temperature=temperature)
        tier = "premium" if draw.random() < 0.2 else "free"
        orders.append(Order(prompt, sampling, tier, TIERS[tier], 0.0))
    return orders


def spread(orders: Sequence[Order], seconds: float, seed: int) -> list[Order]:
    """Return the same requests, coming evenly at random over that time."""
    draw = random.Random(seed)
    return [replace(order, at_s=draw.uniform(0, seconds)) for order in orders]


def load(dtype: str, num_blocks: int | None, host_blocks: int) -> ModelRunner:
    """Return the built-in model with pools of so many blocks; None: as many as may be of use."""
    runner = load_runner("builtin", "cpu", dtype, host_kv_bytes=0)
    block_bytes = runner.attention.kv_cache.shape.bytes_per_token * BLOCK
    if num_blocks is None:
        return runner
    return load_runner(
        "builtin",
        "cpu",
        dtype,
        kv_cache_bytes=(num_blocks + 1) * block_bytes,
        host_kv_bytes=(host_blocks + 1) * block_bytes if host_blocks else 0,
    )


def compare(name: str, want: Outcome, got: Outcome, orders: Sequence[Order]) -> dict[str, Any]:
    """Return what differs, and how often contexts were carried."""
    differing = [
        n for n, (a, b) in enumerate(zip(want.answers, got.answers, strict=True)) if a != b
    ]
    last = got.last
    row = {
        "run": name,
        "requests": len(orders),
        "tokens": sum(map(len, got.answers)),
        "answers_differing": len(differing),
        "greedy_answers_differing": sum(orders[n].sampling.temperature == 0 for n in differing),
        "kv_blocks": last.num_blocks,
        "host_blocks": last.num_host_blocks,
        "parks": last.parks_total,
        "requests_parked": sum(end.parks > 0 for end in got.ends),
        "most_parks_of_one": max(end.parks for end in got.ends),
        "tokens_copied_out": last.copied_out_tokens_total,
        "tokens_copied_in": last.copied_in_tokens_total,
        "lost_copies": last.lost_copies_total,
        "preemptions": last.preemptions_total,
        "recomputed_share": round(last.recomputed_tokens_total / last.computed_tokens_total, 4),
        "prefix_hit_tokens": last.cached_tokens_total,
        "seconds": round(got.seconds, 1),
    }
    print(json.dumps(row), flush=True)
    return row


def starved(
    policy: SchedulingPolicy,
    model: LatencyModel,
    runner: ModelRunner,
    orders: Sequence[Order],
) -> Outcome:
    def shown(done: int) -> None:
        print(f"{policy.name}: {done} of {len(orders)}", file=sys.stderr)

    outcome = serve(runner, orders, policy, model, shown)
    runner.close()
    return outcome


def measured(dtype: str, requests: int, seed: int) -> dict[str, Any]:
    """Return what four runs of the same requests gave."""
    profile = load_profile("builtin-cpu")
    whole = load(dtype, None, 0)
    orders = orders_of(whole.info.model_path, requests, seed)
    want = serve(whole, orders, make_policy("fcfs", (), LatencyModel(profile)), None)
    demand = want.most_blocks
    longest = max(len(o.prompt) + o.sampling.max_tokens for o in orders)
    num_blocks = max(demand // 10, -(-longest // BLOCK) + 1)
    print(f"{demand} blocks held at once, {want.seconds:.0f} s; now with {num_blocks}", flush=True)
    coming = spread(orders, 0.9 * want.seconds, seed)
    rows = [compare("unconstrained", want, want, orders)]

    model = LatencyModel(profile)
    runs: list[tuple[str, SchedulingPolicy, int]] = [
        ("hybrid", make_policy("hybrid", (), model), 2 * demand),
        (
            f"parked each {EVERY} tokens",
            ForcedParks(random.Random(seed), 512, every=EVERY),
            2 * demand,
        ),
        ("computed again, no host", make_policy("fcfs", (), model), 0),
    ]
    for name, policy, host_blocks in runs:
        found = starved(policy, model, load(dtype, num_blocks, host_blocks), coming)
        rows.append(compare(name, want, found, orders))
    return {
        "model": f"built-in, {dtype}, lean runner, raw host copies",
        "demand_blocks": demand,
        "pool_share_of_demand": round(num_blocks / demand, 3),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1200, help="a quarter in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "float32": measured("float32", args.requests, args.seed),
        "bfloat16": measured("bfloat16", args.requests // 4, args.seed),
    }
    if not args.dry_run:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")
        print(f"wrote {RESULT.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
