"""How fast lengths are learned, what a change of traffic costs, and what a guess costs meanwhile.

    python -m benchmarks.learning.online [--seeds 3] [--only curves,changes,cost,memory]

`curves`: a replay from a cold start. Every guess is judged by an answer it could not know, and the
share of pairs in the right order is told window by window, with that of running numbers alone
(`cold`: prior, tenant, conversation). `changes`: after 800 requests the traffic is another one;
beside the learner that lived through it stands one that never saw anything but the new traffic
(`alone`). `cost`: time of a guess while nothing else is done, and while fits go on in the
background, by the clock and in CPU time (which busy neighbours do not change), with how late a
thread that sleeps 2 ms wakes up, as every stream of a gateway would.
`memory`: what the process grows by when everything is full. The prompts of Alpaca and AlpacaEval
are CC BY-NC 4.0: for evaluation only. Writes benchmarks/results/learning_online.json.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from benchmarks.scheduling import points
from engine.core.request import LengthEstimate
from engine.learning.cold import first_guess
from engine.learning.history import LengthHistory
from engine.learning.predictor import LearnedPredictor
from engine.learning.question import Question, bounded
from engine.sim.trace import load_trace

EVERY = 8
WINDOW = 100
BEFORE, AFTER = 800, 640
RECOVERED = 0.02  # of order accuracy below the one that never saw the old traffic
ALL_CASES = "curves,changes,cost,memory"

Example = tuple[Question, int]


# What is asked


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def example(text: str, num_prompt: int, length: int, most: int, *said: int) -> Example:
    return Question("tenant", bounded(text), max(1, num_prompt), most, said), max(1, length)


def alpaca(data: Path) -> list[Example]:
    rows = lines(points.data_file(data, "prompts/alpaca5k_davinci003.jsonl.gz"))
    return [
        example(f"{r['instruction']}\n{r['input']}".strip(), r["in_tok"], r["out_tok"], 2048)
        for r in rows
    ]


def arena(data: Path, model: str = "gpt-4-0314") -> list[Example]:
    rows = lines(points.data_file(data, "prompts/arena_prompts.jsonl.gz"))
    return [
        example(r["prompt"], r["in_tok"], r["out_tok"][model], 4096)
        for r in rows
        if model in r["out_tok"]
    ]


def alpacaeval(data: Path, model: str) -> list[Example]:
    import csv

    prompts = {
        str(row["id"]): row["prompt"]
        for row in lines(points.data_file(data, "prompts/alpacaeval805_prompts.jsonl.gz"))
    }
    path = points.data_file(data, "prompts/alpacaeval805_out_tokens.csv.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [
            example(prompts[row["id"]], int(row["in_tok"]), int(row[model]), 4096)
            for row in csv.DictReader(file)
            if row[model] and row["id"] in prompts
        ]


def sharegpt(data: Path) -> list[Example]:
    rows = load_trace(points.data_file(data, "traces/sharegpt8k_llama2_lengths.csv.gz"))
    made = []
    for r in rows:
        one = example("", r.num_prompt_tokens, r.num_output_tokens, 1025, *r.previous_outputs)
        asked = r.asked_tokens or (r.num_prompt_tokens,)
        made.append((dataclasses.replace(one[0], asked_tokens=asked), one[1]))
    return made


# Replays


def order(guesses: Sequence[float], lengths: Sequence[int]) -> float:
    """Return the share of pairs in the right order; equal guesses count as half."""
    said, true = np.array(guesses), np.array(lengths)
    signs = np.sign(said[:, None] - said) * np.sign(true[:, None] - true)
    return float((signs[true[:, None] != true].mean() + 1) / 2)


def replay(predictor: LearnedPredictor, examples: Iterable[Example]) -> list[LengthEstimate]:
    """Ask and answer one after another; return the guesses."""
    guesses = []
    for number, (question, length) in enumerate(examples):
        guesses.append(predictor.predict(str(number), question))
        predictor.observe(str(number), length, is_whole=length < question.max_tokens)
    return guesses


def cold_replay(examples: Iterable[Example]) -> list[float]:
    """Return the guesses of running numbers alone."""
    history, guesses = LengthHistory(), []
    for question, length in examples:
        guess = first_guess(question.previous_outputs, history.reading(question.hour))
        guesses.append(guess.log)
        history.add(float(np.log1p(length)), question.hour)
    return guesses


def windows(examples: Sequence[Example], guesses: Sequence[float]) -> list[float]:
    lengths = [length for _, length in examples]
    return [
        order(guesses[start : start + WINDOW], lengths[start : start + WINDOW])
        for start in range(0, len(examples) - WINDOW + 1, WINDOW)
    ]


def shuffled(examples: Sequence[Example], seed: int, count: int) -> list[Example]:
    chosen = list(examples)
    random.Random(f"{seed}/online").shuffle(chosen)
    return chosen[:count]


def mean_of(runs: Sequence[Sequence[float]]) -> list[float]:
    return [round(statistics.fmean(cell), 4) for cell in zip(*runs, strict=True)]


def curve(examples: Sequence[Example], seeds: Sequence[int], count: int) -> dict[str, Any]:
    """Return order accuracy window by window from a cold start."""
    ours, cold, covered, fits = [], [], [], []
    for seed in seeds:
        chosen = shuffled(examples, seed, count)
        predictor = LearnedPredictor(every=EVERY)
        guesses = replay(predictor, chosen)
        ours.append(windows(chosen, [guess.middle for guess in guesses]))
        cold.append(windows(chosen, cold_replay(chosen)))
        pairs = list(zip(guesses, chosen, strict=True))[count // 5 :]
        covered.append(sum(length <= guess.high for guess, (_, length) in pairs) / len(pairs))
        fits.append(predictor.stats().fits)
    found = {
        "finished": [WINDOW * (i + 1) for i in range(len(ours[0]))],
        "order_accuracy": mean_of(ours),
        "order_accuracy_cold": mean_of(cold),
        "p90_coverage": round(statistics.fmean(covered), 4),
        "fits": statistics.fmean(fits),
        "seeds": len(seeds),
    }
    points.print_table(
        ("finished", "ours", "running numbers"),
        list(zip(found["finished"], *[found[k] for k in list(found)[1:3]], strict=True)),
    )
    return found


def change(
    before: Sequence[Example], after: Sequence[Example], seeds: Sequence[int]
) -> dict[str, Any]:
    """Return order accuracy after a change of traffic, and of who never saw the old one."""
    ours, alone, old, drifts = [], [], [], []
    count = min(AFTER, len(after)) // WINDOW * WINDOW
    for seed in seeds:
        first, then = shuffled(before, seed, BEFORE), shuffled(after, seed + 100, count)
        predictor = LearnedPredictor(every=EVERY)
        guesses = [g.middle for g in replay(predictor, [*first, *then])]
        old.append(windows(first, guesses[:BEFORE])[-2:])
        ours.append(windows(then, guesses[BEFORE:]))
        fresh = replay(LearnedPredictor(every=EVERY), then)
        alone.append(windows(then, [g.middle for g in fresh]))
        drifts.append(predictor.stats().drifts)
    mean_ours, mean_alone = mean_of(ours), mean_of(alone)
    good = [a >= b - RECOVERED for a, b in zip(mean_ours, mean_alone, strict=True)]
    recovered = next((WINDOW * i for i in range(len(good)) if all(good[i:])), None)
    found = {
        "order_accuracy_before": round(statistics.fmean(mean_of(old)), 4),
        "finished_since": [WINDOW * (i + 1) for i in range(len(mean_ours))],
        "order_accuracy": mean_ours,
        "order_accuracy_alone": mean_alone,
        "recovered_within": recovered,
        "drifts_found": drifts,
        "seeds": len(seeds),
    }
    points.print_table(
        ("since change", "ours", "alone"),
        list(zip(found["finished_since"], mean_ours, mean_alone, strict=True)),
    )
    print(f"recovered within {recovered}, drifts found {drifts}")
    return found


# Costs


def quantiles_ms(times: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return {"p50": round(p50, 3), "p99": round(p99, 3), "max": round(max(times) * 1000, 2)}


def cost(examples: Sequence[Example], seconds: float) -> dict[str, Any]:
    """Return what a guess takes and how late a sleeper wakes, idle and while fits go on."""
    predictor = LearnedPredictor("cost")
    teacher = LearnedPredictor(every=1 << 30)
    teacher.teach((q, n) for q, n in examples[:2000])
    predictor._learner.scopes = teacher._learner.scopes
    predictor.start()
    found: dict[str, Any] = {"rows": predictor.stats().rows}
    try:
        for name in ("idle", "while fitting"):
            if name != "idle":
                replay_some(predictor, examples, 600)
                wait_until(lambda: predictor.stats().is_fitting)
            found[name] = measure(predictor, examples[2000:], seconds, name != "idle")
            points.print_table(
                (name, "p50", "p99", "max"),
                [(key, *row.values()) for key, row in found[name].items() if key != "guesses"],
            )
    finally:
        predictor.close()
    return found


def replay_some(predictor: LearnedPredictor, examples: Sequence[Example], count: int) -> None:
    for number, (question, length) in enumerate(examples[:count]):
        predictor.predict(f"more{number}", question)
        predictor.observe(f"more{number}", length, is_whole=True)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def measure(
    predictor: LearnedPredictor, examples: Sequence[Example], seconds: float, only_fitting: bool
) -> dict[str, Any]:
    guesses, computed, late = [], [], []
    end, number = time.perf_counter() + seconds, 0
    while (before := time.perf_counter()) < end:
        time.sleep(0.002)
        began = time.perf_counter()
        late.append(began - before - 0.002)
        question, length = examples[number % len(examples)]
        cpu = time.thread_time()
        predictor.predict(f"m{number}", question)
        computed.append(time.thread_time() - cpu)
        guesses.append(time.perf_counter() - began)
        predictor.observe(f"m{number}", length, is_whole=True)
        number += 1
        if only_fitting and number % 50 == 0 and not predictor._background.is_fitting:  # type: ignore[union-attr]
            break
    return {
        "predict_ms": quantiles_ms(guesses),
        "predict_cpu_ms": quantiles_ms(computed),
        "wakes_late_ms": quantiles_ms(late),
        "guesses": len(guesses),
    }


def memory(examples: Sequence[Example]) -> dict[str, Any]:
    """Return what the process grows by: all rows, many tenants, models, open questions."""

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 1e6

    replay(LearnedPredictor(every=32), examples[:64])  # libraries loaded, tables made
    before = resident()
    predictor = LearnedPredictor(every=1 << 30)
    rng = random.Random(0)
    for tenant in range(1200):
        count = 10 if tenant < 1194 else 2000
        for number in range(count):
            question, length = rng.choice(examples)
            question = dataclasses.replace(question, tenant=f"t{tenant}")
            predictor.predict(f"{tenant}/{number}", question)
            predictor.observe(f"{tenant}/{number}", length, is_whole=True)
        batch, predictor._batch = predictor._batch, []
        predictor._learner.learn(batch)
    rows = resident()
    for _, scope in predictor._learner.scopes:
        if scope.is_due and len(scope.rows) > 1000:
            fit_elsewhere(predictor, scope)
    models = resident()
    for number in range(8192):
        question, _ = rng.choice(examples)
        predictor.predict(f"open{number}", question)
    stats = predictor.stats()
    found = {
        "rows": stats.rows,
        "tenants": stats.scopes,
        "models": stats.models,
        "open_questions": stats.open_questions,
        "rows_mb": round(rows - before, 1),
        "models_mb": round(models - rows, 1),
        "all_mb": round(resident() - before, 1),
    }
    print(found)
    return found


def fit_elsewhere(predictor: LearnedPredictor, scope: Any) -> None:
    """Fit as in service, in a process: what a fit needs for a moment is not this one's."""
    from engine.learning.fit_process import FitProcess
    from engine.learning.learner import DueFit

    due = DueFit(scope, scope.to_fit())
    fit = FitProcess(due.rows, 0)
    while (model := fit.poll(0)) is None:
        time.sleep(0.1)
    predictor._learner.install(due, model)


def main() -> None:
    parser = points.parser(__doc__, requests=1500, seeds=3)
    parser.add_argument("--only", default=ALL_CASES)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each timing")
    asked = parser.parse_args()
    wanted, seeds, data = asked.only.split(","), range(1, asked.seeds + 1), asked.data
    path = points.RESULTS / "learning_online.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result["machine"] = points.machine() | {
        "numpy": np.__version__, "xgboost": xgboost.__version__
    }  # fmt: skip
    if "curves" in wanted:
        result["curves"] = {}
        for name, examples in (("alpaca", alpaca(data)), ("sharegpt8k", sharegpt(data))):
            print(f"cold start, {name}")
            result["curves"][name] = curve(examples, seeds, asked.requests)
    if "changes" in wanted:
        result["changes"] = {}
        for name, before, after in (
            ("sharegpt8k to alpaca", sharegpt(data), alpaca(data)),
            ("alpaca to arena", alpaca(data), arena(data)),
            (
                "alpaca to alpacaeval (Mistral-7B)",
                alpaca(data),
                alpacaeval(data, "Mistral-7B-Instruct-v0.2"),
            ),
        ):
            print(f"change of traffic, {name}")
            result["changes"][name] = change(before, after, seeds)
    if "cost" in wanted:
        result["cost"] = cost(shuffled(alpaca(data), 1, 4000), asked.seconds)
    if "memory" in wanted:
        result["memory"] = memory(shuffled(alpaca(data), 1, 4000))
    points.write_result(asked, "learning_online", result)


if __name__ == "__main__":
    main()
