"""What learned lengths are worth to a schedule, between knowing everything and knowing nothing.

    python -m benchmarks.learning.value [--only headline,first-turns,texts]

The headline workload (sharegpt8k lengths, Mistral-7B on an RTX 6000 Ada), ALISE and the hybrid,
each with the truth (`oracle`), with ours from a cold start (`learned`) and taught by 2,000 other
rows first (`learned:2000`), with a constant, and with a liar. Of two constants, 256 is the one that
nobody would argue with, and 1 makes whoever has got least go first: every guess is overrun at once.
What is closed of the gap is

    (constant - ours) / (constant - oracle)

of the mean normalised latency, and of the share of requests on time. A trace knows no text: what
ours goes by there is the conversation's earlier answers and the length of the prompt. So the same
is done with first turns alone, of which nothing is known, and with Alpaca's prompts and their texts
(CC BY-NC 4.0: for evaluation only). Writes benchmarks/results/learning_value.json.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scheduling import points
from engine.sim.point import PointSpec
from engine.sim.tally import Tallies
from engine.sim.trace import load_trace

SHAREGPT = "traces/sharegpt8k_llama2_lengths.csv.gz"
ALPACA = "prompts/alpaca5k_davinci003.jsonl.gz"
WARM = 2000
CONSTANT = "constant:256"
WORK = points.ROOT / "build" / "learning"


@dataclass(frozen=True, slots=True)
class Case:
    """A workload, and which policies run at which rates with which predictors."""

    name: str
    trace: str
    rates: dict[str, Sequence[float]]
    predictors: dict[str, Sequence[str]]
    requests: int


def cases(data: Path, work: Path, requests: int) -> list[Case]:
    """Return what is run."""
    sharegpt = points.data_file(data, SHAREGPT)
    ours = ("oracle", "learned", f"learned:{WARM}", CONSTANT)
    small = ("oracle", "learned", f"learned:{WARM // 2}", CONSTANT)
    return [
        Case(
            "headline",
            str(sharegpt),
            {"alise": (2.0, 2.4), "hybrid": (2.0, 2.2)},
            {"alise": (*ours, "constant:1", "liar"), "hybrid": (*ours, "liar")},
            requests,
        ),
        Case(
            "first-turns",
            str(first_turns(sharegpt, work)),
            {"alise": FIRST_TURN_RATES},
            {"alise": small},
            requests,
        ),
        Case(
            "texts",
            str(alpaca(points.data_file(data, ALPACA), work)),
            {"alise": TEXT_RATES},
            {"alise": (*small, "liar")},
            requests,
        ),
    ]


FIRST_TURN_RATES = (9.0,)
TEXT_RATES = (100.0,)


def first_turns(trace: Path, work: Path) -> Path:
    """Write the rows of a trace that nothing came before, and return the file."""
    path = work / "first_turns.csv"
    rows = [row for row in load_trace(trace) if not row.previous_outputs]
    _write(path, [(r.num_prompt_tokens, r.num_output_tokens, "") for r in rows])
    return path


def alpaca(prompts: Path, work: Path) -> Path:
    """Write prompts with their texts as a trace, and return the file."""
    path = work / "alpaca.csv"
    rows = []
    with gzip.open(prompts, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            text = f"{row['instruction']}\n{row['input']}".strip()
            rows.append((max(1, row["in_tok"]), max(1, row["out_tok"]), text))
    _write(path, rows)
    return path


def _write(path: Path, rows: Sequence[tuple[int, int, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(("input_tokens", "output_tokens", "text"))
        out.writerows(rows)


def label(policy: str, predictor: str) -> str:
    """Return the choice of a policy with a predictor."""
    return f"{policy}[predictor={predictor}]"


def closed(rows: Sequence[dict[str, Any]], policy: str, rate: float) -> list[dict[str, Any]]:
    """Return for each predictor what it closes of the gap between the constant and the truth."""
    at = {row["policy"]: row for row in rows if row["rate"] == rate}
    bottom, top = at.get(label(policy, CONSTANT)), at.get(label(policy, "oracle"))
    if bottom is None or top is None:
        return []

    def share(row: dict[str, Any], *path: str) -> float | None:
        values = []
        for one in (row, bottom, top):
            value: Any = one
            for key in path:
                value = value[key]
            values.append(float(value))
        mine, worst, best = values
        if abs(best - worst) < 0.02 * max(abs(best), abs(worst)):
            return None  # no gap to speak of
        return round((worst - mine) / (worst - best), 3)

    return [
        {
            "policy": name,
            "rate": rate,
            "normalised_latency": share(row, "normalised_ms"),
            "free_attainment": share(row, "free", "attainment"),
            "premium_attainment": share(row, "premium", "attainment"),
        }
        for name, row in at.items()
        if name.startswith(f"{policy}[") and name not in (bottom["policy"], top["policy"])
    ]


def run(case: Case, store: points.Store, seeds: Sequence[int]) -> dict[str, Any]:
    """Run a case and return its table, and what is closed of the gap."""
    base = PointSpec(case.trace, "", 1.0, case.requests)
    rates = {
        label(policy, predictor): case.rates[policy]
        for policy, predictors in case.predictors.items()
        for predictor in predictors
    }
    tallies: Tallies = points.by_policy(store.run(points.jobs_of(base, rates, seeds)), list(rates))
    table = points.rows_of(tallies)
    gaps = [
        gap for policy in case.rates for rate in case.rates[policy]
        for gap in closed(table, policy, rate)
    ]  # fmt: skip
    print(f"{case.name}: {case.requests} requests, {len(seeds)} seeds")
    points.print_grid(tallies)
    points.print_table(
        ("policy", "rate", "normalised ms", "p50 TTFT ms"),
        [(r["policy"], r["rate"], r["normalised_ms"], r["median_ttft_ms"]) for r in table],
    )
    print("closed of the gap between constant and oracle")
    points.print_table(
        ("policy", "rate", "normalised latency", "free", "premium"),
        [tuple(g.values()) for g in gaps],
    )
    keep = ("policy", "rate", "seeds", "premium", "free", "normalised_ms", "median_ttft_ms")
    return {
        "workload": points.head(dataclasses.replace(base, predictor=""), seeds)["run"],
        "closed": gaps,
        "table": [{key: row[key] for key in keep} for row in table],
    }


def main() -> None:
    parser = points.parser(__doc__, requests=1500, seeds=2)
    parser.add_argument("--only", default="headline,first-turns,texts", help="cases to run")
    parser.set_defaults(work=WORK, jobs=1)
    asked = parser.parse_args()
    seeds = range(1, asked.seeds + 1)
    store = points.Store("value", asked)
    wanted = asked.only.split(",")
    path = points.RESULTS / "learning_value.json"
    found: dict[str, Any] = json.loads(path.read_text())["cases"] if path.exists() else {}
    for case in cases(asked.data, asked.work, asked.requests):
        if case.name in wanted:
            found[case.name] = run(case, store, seeds)
            result = {"machine": points.machine(), "engines": store.engines(), "cases": found}
            points.write_result(asked, "learning_value", result)


if __name__ == "__main__":
    main()
