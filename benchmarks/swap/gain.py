"""What parking and priorities are worth on the real engine: four policies under a pool too small.

    python -m benchmarks.swap.gain [--seeds N] [--seconds S] [--dry-run]

The built-in model in its own process as in service, with device blocks for 4,096 tokens and host
blocks for 16 times as many. Requests have the lengths of ../shared/data's ShareGPT trace divided by
four and arrive by a Poisson process, 5 % of them premium. The built-in model's steps are about a
fifth of those of the headline's device, so all promises (and the hybrid's times) are a fifth of the
seeded tiers': premium 100 ms and 20 ms, free 400 ms and 100 ms. Policies follow one another seed by
seed and rate by rate, so whatever disturbs the one disturbs the others. Attainment is judged by the
engine's own records, over all requests offered; every run is simulated too, on a profile that was
measured just before. Writes benchmarks/results/swap_gain.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.scheduling.fidelity import serve, short_rows, silent
from engine.core.clock import NS_PER_S, MonotonicClock, utc_now
from engine.core.latency_profile import dump_profile
from engine.core.stats import RequestStats, Snapshot
from engine.serving.config import EngineConfig
from engine.serving.neighbours import NeighbourMeter
from engine.serving.process import EngineProcess
from engine.serving.profiling import measure
from engine.serving.step_records import make_profile
from engine.sim.point import PointSpec, Scene, run_point
from engine.sim.tiers import DEFAULT_TIERS
from engine.sim.workload import SimRequest, SimTier
from gateway.cli.profile import machine

RESULT = Path(__file__).resolve().parents[1] / "results" / "swap_gain.json"
POLICIES = ("sarathi", "slai", "alise", "hybrid")
RATES = (15.0, 20.0, 25.0, 30.0)
SHRINK, FASTER = 4, 5
DEVICE_TOKENS, HOST_TOKENS = 4096, 65_536
TIMES = {"second_s": 22.0, "pause_s": 20.0, "least_pause_s": 4.0, "oldest_s": 60.0}
CLOCK = MonotonicClock()


def tiers() -> tuple[SimTier, ...]:
    """Return the seeded tiers with every promise as many times shorter as the steps are."""
    return tuple(
        replace(
            tier,
            slo=replace(
                tier.slo,
                ttft_ns=tier.slo.ttft_ns // FASTER,
                ttft_ns_per_1k_prompt_tokens=tier.slo.ttft_ns_per_1k_prompt_tokens // FASTER,
                tbt_ns=tier.slo.tbt_ns // FASTER,
            ),
        )
        for tier in DEFAULT_TIERS
    )


def options(policy: str) -> tuple[tuple[str, float], ...]:
    """Return the hybrid's times on this time scale; the others have none."""
    if policy != "hybrid":
        return ()
    scaled = {name: value / FASTER for name, value in TIMES.items()}
    return (*scaled.items(), ("max_step_ms", 200.0 / FASTER))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: the share of each tier's requests that met their SLO, and what memory cost."""

    premium: float
    free: float
    recompute_share: float
    parks: int
    preemptions: int
    tokens_per_s: float


def is_met(request: SimRequest, stats: RequestStats) -> bool:
    """True where the first token was on time and at most one in a hundred of the others late."""
    slo = request.tier.slo
    due_ns = slo.first_token_due_ns(stats.arrival_ns, stats.num_prompt_tokens)
    on_time = stats.first_token_ns is not None and stats.first_token_ns <= due_ns
    return on_time and 100 * stats.late_tokens <= stats.num_output_tokens - 1


def outcome(
    requests: Sequence[SimRequest],
    told: dict[str, RequestStats],
    before: Snapshot,
    after: Snapshot,
) -> Outcome:
    """Judge one run by its records and by the engine's totals before and after it."""

    def share(tier: str) -> float:
        verdicts = [is_met(r, told[r.id]) for r in requests if r.tier.name == tier]
        return sum(verdicts) / len(verdicts)

    lasted_ns = max(s.finished_ns for s in told.values()) - min(s.arrival_ns for s in told.values())
    computed = after.computed_tokens_total - before.computed_tokens_total
    recomputed = after.recomputed_tokens_total - before.recomputed_tokens_total
    return Outcome(
        premium=share("premium"),
        free=share("free"),
        recompute_share=recomputed / max(1, computed),
        parks=after.parks_total - before.parks_total,
        preemptions=after.preemptions_total - before.preemptions_total,
        tokens_per_s=sum(s.num_output_tokens for s in told.values()) * NS_PER_S / lasted_ns,
    )


class Gain:
    """All runs of all policies, and the same runs simulated."""

    def __init__(self, told: argparse.Namespace, folder: Path) -> None:
        self._told = told
        self._profile = folder / "measured.json"
        self._rows = short_rows(SHRINK)
        self._seen: dict[tuple[str, float], list[tuple[Outcome, dict[str, Any], float]]] = {}

    def run(self) -> dict[str, Any]:
        base = EngineConfig(model="builtin", device="cpu")
        seen = asyncio.run(measure(base, silent, budget_s=self._told.profile_seconds))
        self._profile.write_text(dump_profile(make_profile(seen, "measured", machine(base))))
        per_token = int(seen.facts["kv_bytes_per_token"])
        for seed in range(1, self._told.seeds + 1):
            for rate in RATES:
                for policy in POLICIES:
                    self._one(policy, rate, seed, per_token)
        return {"rows": [self._row(*key) for key in self._seen], "kv_bytes_per_token": per_token}

    def _spec(self, policy: str, rate: float, seed: int) -> PointSpec:
        return PointSpec(
            "",
            policy,
            rate=rate,
            requests=max(40, round(rate * self._told.seconds)),
            seed=seed,
            profile=str(self._profile),
            policy_options=options(policy),
            tiers=tiers(),
            predictor="history",
            num_kv_tokens=DEVICE_TOKENS,
            num_host_kv_tokens=HOST_TOKENS,
        )

    def _one(self, policy: str, rate: float, seed: int, per_token: int) -> None:
        spec = self._spec(policy, rate, seed)
        config = EngineConfig(
            model="builtin",
            device="cpu",
            policy=policy,
            policy_options=options(policy),
            latency_profile=str(self._profile),
            kv_cache_bytes=(DEVICE_TOKENS + 16) * per_token,
            host_kv_bytes=HOST_TOKENS * per_token,
        )
        requests = Scene(spec, self._rows).workload.requests
        found, others = asyncio.run(self._serve(config, requests, f"{policy}-{rate}-{seed}"))
        point = run_point(spec, self._rows).point
        self._seen.setdefault((policy, rate), []).append((found, point, others))
        print(policy, rate, seed, f"others {others:.2f}", found, file=sys.stderr, flush=True)

    async def _serve(
        self, config: EngineConfig, requests: Sequence[SimRequest], tag: str
    ) -> tuple[Outcome, float]:
        engine = EngineProcess(config)
        await engine.start()
        try:
            assert engine.info is not None
            warm = [replace(r, arrival_ns=r.arrival_ns // 2) for r in requests[:40]]
            await serve(engine, warm, f"warm-{tag}")
            before, meter = engine.snapshot, NeighbourMeter((os.getpid(), engine.info.pid))
            told = await serve(engine, requests, tag)
            assert before is not None
            assert engine.snapshot is not None
            return outcome(requests, told, before, engine.snapshot), meter.cores() or 0.0
        finally:
            await engine.close()

    def _row(self, policy: str, rate: float) -> dict[str, Any]:
        runs = self._seen[policy, rate]
        names = Outcome.__dataclass_fields__

        def mean(values: Sequence[float]) -> float:
            return round(statistics.fmean(values), 4)

        points = [point for _, point, _ in runs]
        return {
            "policy": policy,
            "rate": rate,
            "measured": {n: mean([getattr(found, n) for found, _, _ in runs]) for n in names},
            "simulated": {
                "premium": mean([p["tiers"]["premium"]["attainment"] for p in points]),
                "free": mean([p["tiers"]["free"]["attainment"] for p in points]),
                "recompute_share": mean([p["recompute_share"] for p in points]),
                "preemptions": mean([p["preemptions"] for p in points]),
                "tokens_per_s": mean([p["tokens_per_s"] for p in points]),
            },
            "others_cores": [round(others, 2) for _, _, others in runs],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=12.0, help="of arrivals in each run")
    parser.add_argument("--profile-seconds", type=float, default=30.0)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = Gain(told, Path(folder)).run()
    report = {
        "measured": utc_now().date().isoformat(),
        "machine": machine(EngineConfig(model="builtin", device="cpu")),
        "seeds": told.seeds,
        "seconds": told.seconds,
        "device_tokens": DEVICE_TOKENS,
        "host_tokens": HOST_TOKENS,
        **found,
    }
    for row in report["rows"]:
        print(json.dumps(row))
    if not told.dry_run:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
