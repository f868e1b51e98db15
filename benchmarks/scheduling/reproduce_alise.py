"""ALISE against vLLM 0.x: how much more it serves at the same mean normalised latency.

    python -m benchmarks.scheduling.reproduce_alise

The paper (https://arxiv.org/abs/2410.23537): up to 1.8x on Alpaca and 2.1x on ShareGPT at the same
latency constraint; neither the constraint nor the curves could be had. Here both policies run over
one grid of rates (shares of what vLLM gets done when all come at once), and the rates are read off
where the mean of (end - arrival) / output tokens crosses a level. Levels are multiples of vLLM's
own latency at the lightest load: 1.5x is where it has just left its flat part, 10x is deep in its
queue; the ratio is reported for all of them. Everyone is served to the end and counted.

Lengths: Alpaca's answers by text-davinci-003, and first turns of ShareGPT that fit OPT's context of
2,048; profile opt-13b-v100 (800 KiB per KV token, 5,120 tokens of it), which is scaled from data
sheets, see its `fit`. ALISE is our reconstruction: `alise` with a predictor off by a log-normal
factor (sigma 0.4) and with the truth; `whole` runs prompts as vLLM 0.x does. The abstract also
says that ALISE compresses intermediate tensors with quantization; what, and where, could not be
had. `pool x1.6` is ALISE where that holds the KV cache on the device as well: INT8 with scales for
groups of 16 tokens keeps 1.6 times as many tokens in the same bytes, at no cost in time.
Writes benchmarks/results/scheduling_reproduce_alise.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from benchmarks.scheduling import points
from benchmarks.scheduling.made_traces import alpaca, first_turns, write_trace
from engine.core.latency_profile import load_profile
from engine.sim.point import PointSpec
from engine.sim.statistics import mean
from engine.sim.tally import Tallies

PROFILE, CONTEXT = "opt-13b-v100", 2048
BASELINE = "vllm0"
WIDE = "alise, pool x1.6"
WIDER = 1.6
LABELS = (BASELINE, "alise", "alise[predictor=oracle]", "alise[whole=1]", WIDE)
USUAL = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25)  # shares of what vLLM gets done
MORE = {
    "alpaca": (0.3, 0.7, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.1, 2.5),
    "sharegpt first turns": (0.3, 0.7, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.1),
}
LEVELS = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
GOALS = {"alpaca": 1.8, "sharegpt first turns": 2.1}


def curve(tallies: Tallies, label: str) -> list[tuple[float, float]]:
    """Return (rate, mean normalised latency in ms), the mean over seeds."""
    return [
        (rate, mean([t.normalised_mean_ms for t in tallies.cell(label, rate)]))
        for rate in tallies.rates
        if tallies.cell(label, rate)
    ]


def rate_at(line: Sequence[tuple[float, float]], level: float) -> float | None:
    """Return where the curve first rises through a level, straight between logarithms."""
    for (rate, low), (next_rate, high) in pairwise(line):
        if low <= level < high:
            share = math.log(level / low) / math.log(high / low)
            crossing: float = rate * (next_rate / rate) ** share
            return crossing
    return None


def _ratio(level: dict[str, Any], label: str) -> object:
    least = level["ratios_at_least"].get(label)
    return f">{least}" if least else level["ratios"][label]


def study(asked: Any, store: points.Store, name: str, trace: str) -> dict[str, Any]:
    """Run and print one corpus; returns its part of the result."""
    seeds = range(1, asked.seeds + 1)
    base = PointSpec(trace, BASELINE, 1.0, asked.requests, profile=PROFILE)
    saturation = points.service_rate(store, base, BASELINE)
    chosen = {
        label: [
            round(share * saturation, 4) for share in (USUAL if label == BASELINE else MORE[name])
        ]
        for label in LABELS
    }
    compressed = replace(base, num_kv_tokens=int(WIDER * load_profile(PROFILE).num_kv_tokens))
    jobs = points.jobs_of(base, {k: v for k, v in chosen.items() if k != WIDE}, seeds)
    jobs += [
        replace(job, label=WIDE)
        for job in points.jobs_of(compressed, {"alise": chosen[WIDE]}, seeds)
    ]
    tallies = points.by_policy(store.run(jobs), LABELS)
    curves = {label: curve(tallies, label) for label in LABELS}
    light = curves[BASELINE][0][1]
    print(f"{name}: {BASELINE} serves {saturation:.3f} requests/s when all come at once")
    points.print_table(
        ("rate", *LABELS),
        [(rate, *[dict(curves[label]).get(rate) for label in LABELS]) for rate in tallies.rates],
    )
    levels: list[dict[str, Any]] = []
    for level in LEVELS:
        at = {label: rate_at(curves[label], level * light) for label in LABELS}
        usual = at[BASELINE]
        ratios = {
            label: round(rate / usual, 3) if rate is not None and usual else None
            for label, rate in at.items()
        }
        # A curve that stays below the level: at least as far as it was run.
        least = {
            label: round(curves[label][-1][0] / usual, 3)
            for label, rate in at.items()
            if usual and rate is None and curves[label][-1][1] < level * light
        }
        levels.append(
            {
                "ratios_at_least": least,
                "of_light": level,
                "normalised_ms": round(level * light, 1),
                "rates": {label: points.rounded(rate, 4) for label, rate in at.items()},
                "ratios": ratios,
            }
        )
    print(f"served at equal latency, against {BASELINE} (goal {GOALS[name]})")
    points.print_table(
        ("of light", "ms a token", *LABELS[1:]),
        [
            (
                x["of_light"],
                x["normalised_ms"],
                *[_ratio(x, label) for label in LABELS[1:]],
            )
            for x in levels
        ],
    )
    return {
        **points.head(base, seeds)["run"],
        "goal": GOALS[name],
        "saturation": round(saturation, 4),
        "levels": levels,
        "table": points.rows_of(tallies),
    }


def main() -> None:
    asked = points.parser(__doc__, requests=1500, seeds=2).parse_args()
    prompts = points.data_file(asked.data, "prompts/alpaca5k_davinci003.jsonl.gz")
    turns = points.data_file(asked.data, "traces/sharegpt8k_llama2_lengths.csv.gz")
    traces = {
        "alpaca": write_trace(asked.work / "alpaca.csv.gz", alpaca(prompts)),
        "sharegpt first turns": write_trace(
            asked.work / "first_turns.csv.gz", first_turns(turns, CONTEXT)
        ),
    }
    store = points.Store("reproduce-alise", asked)
    studies = {name: study(asked, store, name, trace) for name, trace in traces.items()}
    result = {
        "machine": points.machine(),
        "engines": store.engines(),
        "corpora": studies,
    }
    points.write_result(asked, "scheduling_reproduce_alise", result)


if __name__ == "__main__":
    main()
