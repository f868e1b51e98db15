"""`tiergate predict-eval`: how well lengths can be foreseen; the work is engine.learning's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gateway.cli.options import flag
from gateway.cli.output import CommandError, note

if TYPE_CHECKING:
    from engine.learning.evaluation import Evaluation, Score

DEFAULT_TRAIN_SHARE = 0.8


def predict_eval(
    data: Annotated[
        str,
        flag(
            "data",
            "Prompts or turns with answer lengths: JSON lines or CSV, plain or .gz.",
            "FILE",
            "TIERGATE_PREDICT_DATA",
        ),
    ],
    model_column: Annotated[
        str | None,
        flag(
            "model-column",
            "Whose lengths, where the file has several models'; default: the one with most.",
            "NAME",
            "TIERGATE_PREDICT_MODEL_COLUMN",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        flag(
            "prompts",
            "File with the texts, by `id`, where --data has lengths only.",
            "FILE",
            "TIERGATE_PREDICT_PROMPTS",
        ),
    ] = None,
    train_share: Annotated[
        float,
        flag(
            "train-share",
            "Part of the conversations, or of the prompts, that is learned from.",
            "X",
            "TIERGATE_PREDICT_TRAIN_SHARE",
        ),
    ] = DEFAULT_TRAIN_SHARE,
    seed: Annotated[
        int, flag("seed", "Seed of the division and of the fit.", "S", "TIERGATE_PREDICT_SEED")
    ] = 1,
    json_out: Annotated[
        str | None,
        flag("json", "Write the scores as JSON; - for stdout.", "FILE", "TIERGATE_PREDICT_JSON"),
    ] = None,
) -> None:
    """Score the length predictor on a file: learn from a part of it, predict the rest.

    Printed beside plain predictors that saw the same rows: the share of pairs of answers that are
    put in the right order (ties half), Kendall's tau, the mean error in tokens, how many answers
    end below the predicted 90th percentile, and the time of one prediction. Nothing is kept.

    \b
    Examples:
      tiergate predict-eval --data finished.jsonl
      tiergate predict-eval --data finished.jsonl --train-share 0.5 --seed 3 --json scores.json
      tiergate predict-eval --data lengths.csv.gz --prompts prompts.jsonl.gz --model-column gpt4

    Columns that are read, and what the scores mean: docs/learning.md.
    """
    import json

    from engine.sim.safe_output import check_apart, new_file

    if not 0.0 < train_share < 1.0:
        raise CommandError(f"--train-share: must be above 0 and below 1, not {train_share:g}")
    if not 0 <= seed < 2**31:
        raise CommandError(f"--seed: must be from 0 to {2**31 - 1}, not {seed}")
    with _refusals(), ExitStack() as outputs:
        from engine.learning.evaluation import as_json, evaluate
        from engine.learning.records import load_records

        check_apart(data, prompts, json_out)
        target = None
        if json_out not in (None, "-"):
            target = outputs.enter_context(new_file(Path(json_out)))
        found = load_records(data, model_column, prompts)
        if model_column is None and found.column:
            note(f"lengths of {found.column}; others: --model-column NAME")
        result = evaluate(found.records, train_share, seed)
        fields = {**as_json(result), "seed": seed, "train_share": train_share}
        fields["data"] = Path(data).name
        fields["model_column"] = found.column
        text = json.dumps(_plain(fields), indent=2, allow_nan=False) + "\n"
        if target is not None:
            target.write_text(text, encoding="utf-8")
    if json_out == "-":
        print(text, end="")
    else:
        show(result)


def show(result: Evaluation) -> None:
    """Print the scores as a table, a line for each predictor."""
    from gateway.cli.sim_output import console

    out = console()
    out.print(f"learned from {result.n_train} answers, tested on {result.n_test} others")
    _table("all turns" if result.later_turns else "", {"ours": result.ours, **result.baselines})
    if result.later_turns:
        out.print(f"{result.n_later_turns} of them with earlier answers in their conversation")
        _table("later turns", result.later_turns)
    out.print(
        f"{100 * result.p90_coverage:.1f} % end below the predicted p90; a prediction takes "
        f"{result.predict_ms:.2f} ms (p99 {result.predict_ms_p99:.2f} ms), the model "
        f"{result.model_bytes / 1e6:.1f} MB, learning took {result.fit_s:.1f} s"
    )


def _table(title: str, scores: Mapping[str, Score]) -> None:
    from gateway.cli.sim_output import console, table

    made = table(title or "predictor", "pairs in order", "Kendall's tau", "mean error")
    for name, score in scores.items():
        made.add_row(
            name,
            _number(100 * score.pairwise_order_accuracy, ".1f", " %"),
            _number(score.kendall_tau, ".3f"),
            _number(score.mae_tokens, ".1f", " tokens"),
        )
    console().print(made)


def _number(value: float, form: str, unit: str = "") -> str:
    return "-" if value != value else f"{value:{form}}{unit}"


def _plain(value: object) -> object:
    """Return a value as JSON has it: null for what is not a number."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and value != value else value


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what cannot be evaluated into one line for the operator."""
    from engine.sim.safe_output import OutputError

    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"{error.name} is not installed: `pip install 'tiergate[engine]'`"
        ) from error
    except (ValueError, OutputError) as error:
        raise CommandError(str(error)) from error
