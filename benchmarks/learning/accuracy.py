"""How well are answer lengths foreseen, on Alpaca, open chat and conversations, and beside what?

Every figure is the mean over several seeded divisions into training (80 %) and test (20 %), with
its standard deviation over them: test sets of 48 to 800 answers carry an error of some points.
Whole conversations and equal prompts are on one side. Order accuracy, tau and coverage are defined
in engine/learning/metrics.py. A section's figures are written as it ends; `--only` runs some again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.text_vectors import TextVectors, encoder, token_embeddings
from benchmarks.scheduling.points import DATA, RESULTS, data_file, machine
from engine.core.clock import cpu_time_ns
from engine.learning.baselines import BASELINES, Baseline, embedding_ridge
from engine.learning.evaluation import Evaluation, divide, evaluate, fit, timed
from engine.learning.features import featurise
from engine.learning.metrics import pair_counts
from engine.learning.records import load_records
from engine.learning.scale import LengthScale

ROOT = Path(__file__).resolve().parents[2]
RESULT = RESULTS / "learning_accuracy.json"
BUILTIN = ROOT / "engine" / "model" / "builtin" / "weights"
TRAIN_SHARE = 0.8
ALPACA = "prompts/alpaca5k_davinci003.jsonl.gz"
EVAL_LENGTHS = "prompts/alpacaeval805_out_tokens.csv.gz"
EVAL_PROMPTS = "prompts/alpacaeval805_prompts.jsonl.gz"
ARENA = "prompts/arena_prompts.jsonl.gz"
TALKS = ("traces/hh_multiturn_lengths.csv.gz", "traces/sharegpt8k_llama2_lengths.csv.gz")
NAMED = ("Mistral-7B-Instruct-v0.2", "llama-2-7b-chat-hf", "vicuna-7b", "gpt4_1106_preview")
FEWEST_ANSWERS = 100  # a model with fewer lengths in a file is not scored


def main() -> None:
    """Run the sections asked for and write the result."""
    arguments = _arguments()
    others = {"token embeddings": token_embeddings(arguments.embeddings)}
    if arguments.encoder is not None:
        others["encoder"] = encoder(arguments.encoder)
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "alpaca": lambda: alpaca(arguments, others),
        "open_chat": lambda: open_chat(arguments, others),
        "every_model": lambda: every_model(arguments),
        "arena": lambda: arena(arguments, others),
        "conversations": lambda: conversations(arguments),
        "conversation_ceilings": lambda: talk_ceilings(arguments),
        "time": lambda: times(arguments),
    }
    chosen = arguments.only.split(",") if arguments.only else list(sections)
    for name in chosen:
        if name not in sections:
            sys.exit(f"--only: {name} is none of {', '.join(sections)}")
        print(f"== {name}", flush=True)
        found = sections[name]()
        if not arguments.dry_run:
            _keep(name, found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with traces/ and prompts/")
    parser.add_argument("--seeds", type=int, default=5, help="divisions of each file")
    parser.add_argument("--only", default="", metavar="SECTIONS", help="alpaca,open_chat,...")
    parser.add_argument(
        "--embeddings", type=Path, default=BUILTIN, help="folder of a model's token embeddings"
    )
    parser.add_argument(
        "--encoder", type=Path, default=None, help="folder of a BERT-like encoder; default: none"
    )
    parser.add_argument("--dry-run", action="store_true", help="print, write no result")
    return parser.parse_args()


def alpaca(arguments: argparse.Namespace, others: Mapping[str, TextVectors]) -> dict[str, Any]:
    """Score Alpaca's instructions, answered by one model."""
    return {"davinci003": score(arguments, ALPACA, None, None, arguments.seeds, others)}


def open_chat(arguments: argparse.Namespace, others: Mapping[str, TextVectors]) -> dict[str, Any]:
    """Score AlpacaEval's prompts for a few models, each learned from its own answers alone."""
    ceilings = _ceilings(*_eval_table(arguments.data))
    return {
        model: {
            **score(arguments, EVAL_LENGTHS, model, EVAL_PROMPTS, arguments.seeds, others),
            "ceilings": ceilings[model],
        }
        for model in NAMED
    }


def every_model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score AlpacaEval's prompts for every model, one division each."""
    models, lengths = _eval_table(arguments.data)
    plain = {"ridge": BASELINES["ridge"]}
    found = {}
    for place, model in enumerate(models):
        if np.isfinite(lengths[:, place]).sum() < FEWEST_ANSWERS:
            continue
        records = load_records(
            arguments.data / EVAL_LENGTHS, model, arguments.data / EVAL_PROMPTS
        ).records
        found[model] = evaluate(records, TRAIN_SHARE, place + 1, plain)
    ours = [one.ours.pairwise_order_accuracy for one in found.values()]
    ridge = [one.baselines["ridge"].pairwise_order_accuracy for one in found.values()]
    covered = [one.p90_coverage for one in found.values()]
    result = {
        "models": len(found),
        "ours": _spread(ours),
        "ridge": _spread(ridge),
        "share_of_models_at_0.68": float(np.mean(np.array(ours) >= 0.68)),
        "share_of_models_at_0.68_ridge": float(np.mean(np.array(ridge) >= 0.68)),
        "share_of_models_above_the_ridge": float(np.mean(np.array(ours) > np.array(ridge))),
        "p90_coverage": _spread(covered),
        "order_accuracy": {
            model: [
                one.ours.pairwise_order_accuracy,
                one.baselines["ridge"].pairwise_order_accuracy,
            ]
            for model, one in found.items()
        },
    }
    print({key: value for key, value in result.items() if key != "order_accuracy"}, flush=True)
    return result


def arena(arguments: argparse.Namespace, others: Mapping[str, TextVectors]) -> dict[str, Any]:
    """Score the Arena's prompts for each of its models, from its own answers alone."""
    rows = _lines(data_file(arguments.data, ARENA))
    models = sorted({model for row in rows for model in row["out_tok"]})
    lengths = np.array([[row["out_tok"].get(model, np.nan) for model in models] for row in rows])
    ceilings = _ceilings(models, lengths)
    few = {"token embeddings": others["token embeddings"]}
    return {
        model: {
            **score(
                arguments, ARENA, model, None, arguments.seeds,
                others if model.startswith("gpt-4") else few,
            ),
            "ceilings": ceilings[model],
        }
        for model in models
    }  # fmt: skip


def conversations(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score conversations, of which only lengths are known, divided by conversation."""
    plain = {"constant": BASELINES["constant"], "prompt length": BASELINES["prompt length"]}
    return {
        Path(name).name: score(arguments, name, None, None, min(3, arguments.seeds), {}, plain)
        for name in TALKS
    }


def talk_ceilings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what earlier answers can tell of the next, were a conversation's turns exchangeable.

    With normal scores that correlate by r between consecutive answers, k earlier answers foretell
    the next with a correlation of sqrt(k r^2 / (1 + (k - 1) r)); a correlation c orders a share
    1/2 + asin(c) / pi of pairs. No number of earlier answers gets beyond c = sqrt(r).
    """
    found = {}
    for name in TALKS:
        records = load_records(data_file(arguments.data, name)).records
        logs = np.log1p([record.length for record in records]).astype(np.float32)
        scores = LengthScale.of(logs).score(logs)
        last: dict[str, float] = {}
        pairs, before = [], []
        for record, score_now in zip(records, scores.tolist(), strict=True):
            if record.group in last:
                pairs.append((last[record.group], score_now))
                before.append(len(record.question.previous_outputs))
            last[record.group] = score_now
        r = float(np.corrcoef(np.array(pairs).T)[0, 1])
        turns = np.array(before, np.float64)
        told = np.sqrt(turns * r * r / (1 + (turns - 1) * r))
        found[Path(name).name] = {
            "correlation_of_consecutive_answers": round(r, 4),
            "later_turns_expected": round(float((0.5 + np.arcsin(told) / np.pi).mean()), 4),
            "later_turns_limit": round(float(0.5 + np.arcsin(np.sqrt(r)) / np.pi), 4),
        }
    print(found, flush=True)
    return found


def times(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time single predictions, prompt reading included, of models fitted to the largest sets.

    On the wall and as processor time: beside busy neighbours the wall's p99 is the time slice that
    somebody else had.
    """
    found = {}
    for name in (ALPACA, TALKS[1]):
        records = load_records(data_file(arguments.data, name)).records
        train, test = divide(records, TRAIN_SHARE, 1)
        model = fit(train, 1)
        timed(model, test[:200])
        spent = timed(model, test)
        worked = []
        for record in test[: len(spent)]:
            began_ns = cpu_time_ns()
            model.predict(featurise(record.question))
            worked.append((cpu_time_ns() - began_ns) / 1e6)
        sizes = model.sizes()
        found[Path(name).name] = {
            "predictions": len(spent),
            "p50_ms": float(np.median(spent)),
            "p99_ms": float(np.percentile(spent, 99)),
            "cpu_p50_ms": float(np.median(worked)),
            "cpu_p99_ms": float(np.percentile(worked, 99)),
            "cores_wanted_by_others": os.getloadavg()[0],
            "model_bytes": sum(sizes.values()),
            "state_bytes": len(model.to_bytes()),
            "n_train": len(train),
        }
        print(name, found[Path(name).name], flush=True)
    return found


def score(
    arguments: argparse.Namespace,
    name: str,
    column: str | None,
    prompts: str | None,
    seeds: int,
    others: Mapping[str, TextVectors],
    plain: Mapping[str, Baseline] = BASELINES,
) -> dict[str, Any]:
    """Return the means over the divisions of one file, for ours and all others."""
    path = data_file(arguments.data, name)
    joined = None if prompts is None else data_file(arguments.data, prompts)
    records = load_records(path, column, joined).records
    baselines = {**plain, **{other: embedding_ridge(embed) for other, embed in others.items()}}
    found = [evaluate(records, TRAIN_SHARE, seed, baselines) for seed in range(1, seeds + 1)]
    result = summary(found)
    for other, embed in others.items():
        result["vectors"] = {
            **result.get("vectors", {}),
            other: {"what": embed.what, "p50_ms": float(np.median(embed.spent_ms))},
        }
    ours = result["ours"]["pairwise_order_accuracy"]
    print(
        f"{column or name}: ours {ours['mean']:.3f} +- {ours['sd']:.3f}, "
        + ", ".join(
            f"{other} {scores['pairwise_order_accuracy']['mean']:.3f}"
            for other, scores in result["baselines"].items()
        )
        + f"; p90 {result['p90_coverage']['mean']:.3f}"
        + "".join(
            f"; later turns {one} {scores['pairwise_order_accuracy']['mean']:.3f}"
            for one, scores in result.get("later_turns", {}).items()
        ),
        flush=True,
    )
    return result


def summary(found: Sequence[Evaluation]) -> dict[str, Any]:
    """Return means and spreads over divisions."""
    result: dict[str, Any] = {
        "divisions": len(found),
        "n_train": round(float(np.mean([one.n_train for one in found]))),
        "n_test": round(float(np.mean([one.n_test for one in found]))),
        "ours": _scores([asdict(one.ours) for one in found]),
        "p90_coverage": _spread([one.p90_coverage for one in found]),
        "baselines": {
            name: _scores([asdict(one.baselines[name]) for one in found])
            for name in found[0].baselines
        },
    }
    if found[0].later_turns:
        later = [one.later_turns for one in found if one.later_turns]
        result["n_later_turns"] = round(float(np.mean([one.n_later_turns for one in found])))
        result["later_turns"] = {
            name: _scores([asdict(one[name]) for one in later]) for name in later[0]
        }
    return result


def _scores(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {key: _spread([one[key] for one in scores]) for key in scores[0]}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return {"mean": None, "sd": None, "least": None, "most": None}
    return {
        "mean": round(float(known.mean()), 4),
        "sd": round(float(known.std()), 4),
        "least": round(float(known.min()), 4),
        "most": round(float(known.max()), 4),
    }


def _ceilings(models: Sequence[str], lengths: Any) -> dict[str, dict[str, float | None]]:
    """Return how well other models' answers to the very same prompts order each model's.

    Nobody who sees only the prompt can be expected to do better than all other models together.
    """
    logs = np.log1p(lengths)
    scores = (logs - np.nanmean(logs, axis=0)) / np.nanstd(logs, axis=0)
    known = np.isfinite(scores)
    found = {}
    for place, model in enumerate(models):
        rest = np.where(known, scores, 0.0).sum(1) - np.where(known[:, place], scores[:, place], 0)
        count = known.sum(1) - known[:, place]
        rows = known[:, place] & (count > 0)
        together = pair_counts(lengths[rows, place], rest[rows] / count[rows])
        single = []
        for other in range(0, len(models), max(1, len(models) // 24)):
            both = known[:, place] & known[:, other]
            if other != place and both.sum() >= FEWEST_ANSWERS:
                pairs = pair_counts(lengths[both, place], lengths[both, other])
                single.append(pairs.order_accuracy)
        found[model] = {
            "all_other_models": round(together.order_accuracy, 4),
            "median_other_model": round(float(np.median(single)), 4) if single else None,
        }
    return found


def _eval_table(folder: Path) -> tuple[list[str], Any]:
    """Return AlpacaEval's models and lengths, (prompts, models), NaN where there is no answer."""
    with gzip.open(data_file(folder, EVAL_LENGTHS), "rt", encoding="utf-8", newline="") as file:
        head, *rows = list(csv.reader(file))
    table = [[float(cell) if cell else np.nan for cell in row[2:]] for row in rows]
    return head[2:], np.array(table)


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _keep(name: str, found: dict[str, Any]) -> None:
    """Put a section into the result, beside those of earlier runs."""
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    sections = {**before.get("sections", {}), name: found}
    made = {
        "what": (__doc__ or "").splitlines()[0],
        "definitions": "pairs whose true lengths differ; a tie in prediction counts half; tau-b",
        "train_share": TRAIN_SHARE,
        "machine": machine(),
        "sections": sections,
    }
    RESULT.write_text(json.dumps(made, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
