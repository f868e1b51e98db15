"""How well does the engine know what its next step takes, while the load changes its kind?

    python -m benchmarks.learning.step_time [--cycles 4] [--seconds 3] [--dry-run]

The built-in model serves decodes, prompts, both, bursts, one user and long contexts in turn, a few
seconds each; every step is noted. Then each model is run over the very same steps, predicting each
before it learns of it: the shipped profile as it is, the single factor that the engine learnt until
now, a factor for each regime, the prices without levels, the engine's online model, and XGBoost.
Beside them stands what none can beat: the scatter of equal steps, and the profile's form with the
best prices found afterwards. Errors are |predicted / measured - 1|.

From wrong profiles the models begin anew at many places of the recording; counted are the errors of
the 100 steps after the first 200. The same in the simulator, where the device is exactly its
profile and the scheduler believes another one (needs the public traces).

Let nothing else run meanwhile: `neighbour_cores` says how many cores others kept busy, and their
work is in every model's errors; where that cannot be had, `--threads 1 --realtime` gives the engine
a core of its own. `--keep FILE` writes the recording, `--kept FILE` compares on one.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.moving_mix import Recording, Step, keep, kept, record
from benchmarks.learning.step_models import (
    MODELS,
    StepModel,
    fitted_afterwards,
    replay,
    scatter,
)
from engine.core.clock import utc_now
from engine.core.latency_profile import LatencyProfile, dump_profile, load_profile
from engine.core.stats import RequestStats, StepStats
from engine.core.step_features import PRICES
from engine.serving.config import EngineConfig
from engine.sim.point import PointSpec, Scene
from engine.sim.records import Journal
from engine.sim.simulator import Simulator
from engine.sim.summary import summarize
from engine.sim.trace import load_trace
from gateway.cli.profile import machine

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "learning_step_time.json"
TRACE = ROOT.parent / "shared" / "data" / "traces" / "sharegpt8k_llama2_lengths.csv.gz"
PROFILE, DEVICE = "builtin-cpu", "mistral-7b-rtx6000ada"
STARTS, WARM, JUDGED = 25, 200, 100
STEP_PRICES = tuple(name for name in PRICES if name != "mixed_kv_factor")
PER_TOKEN = ("token_ns", "tile_ns", "knee_token_ns", "row_ns")
PER_CONTEXT = ("decode_kv_ns", "pair_ns", "prompt_kv_ns")
Maker = Callable[[LatencyProfile], StepModel]


def wrong_profiles(right: LatencyProfile) -> dict[str, LatencyProfile]:
    """Return profiles that are not this one, from off by a factor to another device's."""

    def scaled(by: float, names: Sequence[str]) -> LatencyProfile:
        return dataclasses.replace(right, **{name: by * getattr(right, name) for name in names})

    others = (PROFILE, DEVICE, "llama31-8b-rtx4090", "llama31-8b-h100", "opt-13b-v100")
    return {
        "right": right,
        "every price x 3": scaled(3.0, STEP_PRICES),
        "every price x 0.3": scaled(0.3, STEP_PRICES),
        "base x 3": scaled(3.0, ("base_ns",)),
        "base x 0.1": scaled(0.1, ("base_ns",)),
        "per token x 3": scaled(3.0, PER_TOKEN),
        "per token x 0.3": scaled(0.3, PER_TOKEN),
        "per context x 5": scaled(5.0, PER_CONTEXT),
    } | {name: load_profile(name) for name in others if name != right.name}


def summary(errors: Sequence[float]) -> dict[str, float]:
    """Return median, p90, p99 and mean of absolute errors; `bias` is the median with its sign."""
    ordered = sorted(map(abs, errors))

    def quantile(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)

    return {
        "steps": len(ordered),
        "median": quantile(0.5),
        "p90": quantile(0.9),
        "p99": quantile(0.99),
        "mean": round(statistics.fmean(ordered), 4),
        "bias": round(statistics.median(errors), 4),
    }


def compared(steps: Sequence[Step], makers: dict[str, Maker]) -> dict[str, Any]:
    """Run every model over the steps; also apart: each phase, and prompts that follow decodes."""
    profile = load_profile(PROFILE)
    after = [
        bool(step.held.num_prefills) and not steps[max(0, i - 1)].held.num_prefills
        for i, step in enumerate(steps)
    ]
    total_ns = sum(step.ns for step in steps)
    found: dict[str, Any] = {}
    for name, maker in makers.items():
        errors, cost_us = replay(maker(profile), steps)
        told_ns = sum((1 + e) * step.ns for e, step in zip(errors, steps, strict=True))
        phases = dict.fromkeys(step.phase for step in steps)
        found[name] = {
            **summary(errors),
            "sum_told_over_measured": round(told_ns / total_ns, 4),
            "us_a_step": round(cost_us, 1),
            "first_prompt_after_decodes": summary(
                [e for e, is_one in zip(errors, after, strict=True) if is_one]
            ),
            "phases": {
                phase: summary([e for e, s in zip(errors, steps, strict=True) if s.phase == phase])
                for phase in phases
            },
        }
        say(f"{name}: {json.dumps({k: v for k, v in found[name].items() if k != 'phases'})}")
    return found


def floors(steps: Sequence[Step]) -> dict[str, Any]:
    """Return what no model can beat: see the top."""
    profile = load_profile(PROFILE)
    windows = dict.fromkeys(step.window for step in steps)
    by_window = [[step for step in steps if step.window == window] for window in windows]
    return {
        "scatter_of_equal_steps": summary(scatter(steps)),
        "best_prices_afterwards": summary(fitted_afterwards(profile, steps)),
        "best_prices_of_each_window": summary(
            [e for some in by_window for e in fitted_afterwards(profile, some)]
        ),
    }


def from_wrong(steps: Sequence[Step], makers: dict[str, Maker]) -> dict[str, Any]:
    """Begin with wrong profiles at many places: the medians of the steps that are judged."""
    last = len(steps) - WARM - JUDGED
    starts = [last * i // STARTS for i in range(STARTS)]
    found: dict[str, Any] = {}
    for wrong, profile in wrong_profiles(load_profile(PROFILE)).items():
        found[wrong] = {}
        for name, maker in makers.items():
            medians = []
            for start in starts:
                errors, _ = replay(maker(profile), steps[start : start + WARM + JUDGED])
                medians.append(statistics.median(map(abs, errors[WARM:])))
            found[wrong][name] = {
                "median": round(statistics.median(medians), 4),
                "worst": round(max(medians), 4),
                "within_10_percent": sum(m < 0.10 for m in medians) / len(medians),
            }
        say(f"from {wrong}: {json.dumps(found[wrong])}")
    return found


class StepLog:
    """An observer that keeps how far each step's prediction was off."""

    def __init__(self) -> None:
        self.errors: list[float] = []

    def on_step(self, stats: StepStats) -> None:
        if stats.predicted_ns:
            self.errors.append(stats.predicted_ns / stats.elapsed_ns - 1)

    def on_finish(self, stats: RequestStats) -> None:
        pass


def simulated(folder: Path, requests: int) -> dict[str, Any]:
    """The hybrid on a simulated device, its scheduler believing wrong profiles."""
    if not TRACE.is_file():
        return {}
    rows = load_trace(str(TRACE))
    found: dict[str, Any] = {}
    for name, believed in wrong_profiles(load_profile(DEVICE)).items():
        path = folder / "believed.json"
        path.write_text(dump_profile(believed), encoding="utf-8")
        spec = PointSpec(str(TRACE), "hybrid", 2.0, requests, 1, DEVICE, believed_profile=str(path))
        scene, log = Scene(spec, rows), StepLog()
        asked = scene.workload.requests
        journal = Journal(tier.name for tier in spec.tiers)
        simulator = Simulator(scene.core(log), scene.executor(), scene.orders(), journal, [])
        outcome = simulator.run(asked, scene.aborts(), None)
        point = summarize(
            spec.policy,
            spec.rate,
            spec.seed,
            spec.tiers,
            journal.records(asked),
            journal.lateness,
            outcome.ended_ns,
        )
        found[name] = {
            "attainment": {t: round(f["attainment"], 4) for t, f in point["tiers"].items()},
            "first_200": summary(log.errors[:WARM]),
            "next_100": summary(log.errors[WARM : WARM + JUDGED]),
            "all": summary(log.errors),
        }
        say(f"simulated, from {name}: {json.dumps(found[name])}")
    return found


def live_fields(recording: Recording) -> dict[str, Any]:
    """Return what the engine itself exported at the end of each window, by phase: medians."""
    phases = dict.fromkeys(phase for phase, _, _ in recording.live_errors)
    return {
        phase: {
            "error_p50": round(
                statistics.median(p50 for p, p50, _ in recording.live_errors if p == phase), 4
            ),
            "error_p99": round(
                statistics.median(p99 for p, _, p99 in recording.live_errors if p == phase), 4
            ),
        }
        for phase in phases
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def makers_here() -> dict[str, Maker]:
    """Return the models that can be made here: XGBoost may not be installed."""
    try:
        import xgboost  # noqa: F401
    except ImportError:
        say("xgboost is not installed: left out")
        return {name: maker for name, maker in MODELS.items() if name != "xgboost"}
    return dict(MODELS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=4, help="times that every phase comes")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policy", default="hybrid")
    parser.add_argument("--threads", type=int, default=None, help="of the engine; default: all")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="the engine's threads before all others (as root; leave a core with --threads)",
    )
    parser.add_argument("--nice", type=int, default=0, help="of the engine")
    parser.add_argument("--requests", type=int, default=1200, help="of a simulated run")
    parser.add_argument("--keep", type=Path, help="write the recording here")
    parser.add_argument("--kept", type=Path, help="compare on this recording, start no engine")
    parser.add_argument("--only-record", action="store_true", help="compare nothing")
    parser.add_argument("--dry-run", action="store_true", help="print, write no result")
    return parser.parse_args()


def main() -> None:
    told = arguments()
    config = EngineConfig(
        model="builtin", device="cpu", policy=told.policy, threads=told.threads, nice=told.nice
    )
    with tempfile.TemporaryDirectory() as folder:
        if told.kept is not None:
            recording = kept(told.kept)
        else:
            lines = Path(folder) / "steps.jsonl"
            recording = asyncio.run(
                record(
                    config,
                    lines,
                    cycles=told.cycles,
                    seconds=told.seconds,
                    seed=told.seed,
                    realtime=told.realtime,
                )
            )
        if told.keep is not None:
            keep(recording, told.keep)
        say(f"{len(recording.steps)} steps in {recording.seconds:.0f} s, others busy on")
        say(f"{recording.neighbours} cores; exported: {json.dumps(live_fields(recording))}")
        if told.only_record:
            return
        makers = makers_here()
        few = {name: makers[name] for name in ("profile", "one factor", "regime factors", "online")}
        report = {
            "measured": utc_now().date().isoformat(),
            "machine": machine(config),
            "policy": told.policy,
            "threads": told.threads,
            "realtime": told.realtime,
            "steps": len(recording.steps),
            "seconds": round(recording.seconds, 1),
            "neighbour_cores": recording.neighbours,
            "floors": floors(recording.steps),
            "models": compared(recording.steps, makers),
            "exported_by_the_engine": live_fields(recording),
            "from_wrong_profiles": from_wrong(recording.steps, few),
            "simulated": simulated(Path(folder), told.requests),
        }
    print(json.dumps(report["floors"], indent=1))
    if not told.dry_run:
        RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
