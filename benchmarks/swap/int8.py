"""What int8 host copies save and what they change: bytes, greedy agreement, logits, by model.

Agreement is counted twice, after the first park only. Teacher-forced: both runs are given the
undisturbed answer token by token, and their greedy choices are compared at every position: this is
the share of tokens that parking changes. Free-running: each goes on with its own choices; behind a
first difference nearly every position differs, so one change counts many times. Each answer is
parked once, at a random moment, or every 16 tokens; then nearly all of its context was rounded.

Tiny models have random weights, as transformers initialises them, and "wide": drawn so wide that
nearly every token depends on all of the past and many are nearly tied, a worst case. For 16-bit
models the last rows say how much of it the arithmetic does by itself.
Run: python -m benchmarks.swap.int8
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.swap.engine_runs import machine, prompts_of
from engine.model.attention import PagedAttention, TorchAttention, select_attention
from engine.model.hf_model import HFModel, PagedModel, kv_shape_of
from engine.model.host_cache import HostFormat
from engine.model.kernels.native import load_native
from engine.model.kv_cache import KVCache
from engine.model.loader import load_runner
from engine.model.self_check import MakeAttention
from tests.model.int8_run import BLOCK, Decoding, Disturb, Divergence, divergence
from tests.model.tiny_models import VOCAB, random_model, tiny_config

RESULT = Path(__file__).parents[1] / "results" / "swap_int8.json"
FAMILIES = ("llama", "qwen2", "opt")
GROUPS = (16, 8)
BATCH = 32
EVERY = 16


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One model and what it is asked."""

    name: str
    model: PagedModel
    prompts: Sequence[Sequence[int]]
    num_new: int
    make_attention: MakeAttention = TorchAttention


def tiny(family: str, seed: int, count: int, *, wide: bool) -> Subject:
    draw = random.Random(seed)
    config = tiny_config(family)
    torch.manual_seed(seed)
    made = random_model(config, seed) if wide else AutoModelForCausalLM.from_config(config)
    lengths = [draw.randint(20, 100) for _ in range(count)]
    prompts = [[draw.randrange(3, VOCAB) for _ in range(length)] for length in lengths]
    name = f"tiny random {family}" + (", wide weights" if wide else "")
    return Subject(name, HFModel(made.eval()), prompts, 96)


def builtin(dtype: str, count: int, seed: int) -> Subject:
    runner = load_runner("builtin", "cpu", dtype, kv_cache_bytes=1 << 26, host_kv_bytes=0)
    native, model = load_native(), runner.model

    def fastest(cache: KVCache) -> PagedAttention:
        return select_attention(cache, model.needs, native)

    prompts = prompts_of(runner.info.model_path, count, random.Random(seed))
    return Subject(f"built-in, {dtype}", model, prompts, 160, fastest)


def last_place(blocks: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 numbers with the last bit of a random half of them turned over."""
    bits = blocks.view(torch.int16)
    return (bits ^ torch.randint_like(bits, 2)).view(torch.bfloat16)


def measured(
    make: Callable[[int], Subject],
    seeds: int,
    form: HostFormat,
    every: int | None,
    disturb: Disturb | None = None,
) -> tuple[Subject, list[Divergence]]:
    native, found = load_native(), []
    for seed in range(seeds):
        subject = make(seed)
        for first in range(0, len(subject.prompts), BATCH):
            batch = subject.prompts[first : first + BATCH]
            found.append(
                divergence(
                    subject.model,
                    batch,
                    subject.num_new,
                    form,
                    every=every,
                    seed=seed,
                    native=native,
                    make_attention=subject.make_attention,
                    disturb=disturb,
                )
            )
    return subject, found


def row_of(
    subject: Subject, form: HostFormat, every: int | None, found: Sequence[Divergence]
) -> dict[str, Any]:
    shape = kv_shape_of(subject.model.needs)
    host = form.block_bytes(shape, BLOCK) / BLOCK
    positions = sum(d.positions for d in found)
    return {
        "model": subject.name,
        "parked": "once" if every is None else f"every {every} tokens",
        "group": form.group,
        "bytes_per_token": shape.bytes_per_token,
        "host_bytes_per_token": host,
        "times_smaller": round(shape.bytes_per_token / host, 3),
        "parks": sum(d.parks for d in found),
        "positions": positions,
        "agreement": round(sum(d.agreeing for d in found) / positions, 4),
        "logit_error": round(sum(d.logit_error for d in found) / len(found), 5),
        "free_running_agreement": round(sum(d.free_agreeing for d in found) / positions, 4),
        "answers": sum(d.answers for d in found),
        "answers_alike": sum(d.answers_alike for d in found),
    }


def rows(seeds: int, count: int) -> Iterator[dict[str, Any]]:
    def of(family: str, wide: bool) -> Callable[[int], Subject]:
        return lambda seed: tiny(family, seed, count, wide=wide)

    def model(dtype: str) -> Callable[[int], Subject]:
        return lambda seed: builtin(dtype, count, seed)

    subjects = [model("float32"), model("bfloat16")]
    subjects += [of(family, wide) for wide in (False, True) for family in FAMILIES]
    for make in subjects:
        for group in GROUPS:
            for every in (None, EVERY):
                form = HostFormat("int8", group)
                yield row_of(*_with(form, every, *measured(make, seeds, form, every)))


def _with(
    form: HostFormat, every: int | None, subject: Subject, found: list[Divergence]
) -> tuple[Subject, HostFormat, int | None, list[Divergence]]:
    return subject, form, every, found


@torch.inference_mode()
def arithmetic(count: int) -> dict[str, Any]:
    """Return how often bfloat16 and float32 disagree by themselves, nothing being parked."""
    whole, half = builtin("float32", count, 0), builtin("bfloat16", count, 0)
    positions = agreeing = 0
    wrong = right = 0.0
    for first in range(0, count, BATCH):
        batch = whole.prompts[first : first + BATCH]
        longest = max(map(len, batch)) + whole.num_new
        runs = [
            Decoding(s.model, batch, longest, HostFormat(), load_native(), s.make_attention)
            for s in (whole, half)
        ]
        tokens: Sequence[Sequence[int]] = batch
        for _ in range(whole.num_new):
            exact, rounded = (run.feed(tokens) for run in runs)
            chosen = exact.argmax(-1)
            positions += len(batch)
            agreeing += int((chosen == rounded.argmax(-1)).sum())
            wrong += float((exact - rounded).square().sum())
            right += float((exact - exact.mean(-1, keepdim=True)).square().sum())
            tokens = chosen[:, None].tolist()
    return {
        "what": "built-in model, bfloat16 arithmetic against float32, nothing parked",
        "positions": positions,
        "agreement": round(agreeing / positions, 4),
        "logit_error": round((wrong / right) ** 0.5, 5),
    }


def least_change(seeds: int, count: int) -> dict[str, Any]:
    """Return what the smallest change that bfloat16 knows does to the built-in model's answers."""

    def make(seed: int) -> Subject:
        return builtin("bfloat16", count, seed)

    subject, found = measured(make, seeds, HostFormat(), None, last_place)
    row = row_of(subject, HostFormat(), None, found)
    what = "built-in model, bfloat16, parked raw once, the last bit of half the numbers turned over"
    return {"what": what, **{name: row[name] for name in ("positions", "agreement", "logit_error")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=64, help="for each seed")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    print("| model | parked | group | times smaller | agreement | logit error | free-running | ")
    print("|---|---|---|---|---|---|---|")
    found = []
    for row in rows(args.seeds, args.answers):
        found.append(row)
        print(
            f"| {row['model']} | {row['parked']} | {row['group']} | {row['times_smaller']:.2f}"
            f" | {row['agreement']:.2%} of {row['positions']} | {row['logit_error']:.2%}"
            f" | {row['free_running_agreement']:.1%},"
            f" {row['answers_alike']} of {row['answers']} answers |",
            flush=True,
        )
    floor = arithmetic(args.answers)
    least = least_change(args.seeds, args.answers)
    print(f"{least['what']}: {least['agreement']:.2%}, {least['logit_error']:.2%}")
    print(f"{floor['what']}: {floor['agreement']:.2%}, {floor['logit_error']:.2%}")
    if args.dry_run:
        return
    report = {
        "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "counted": "after the first park; agreement is teacher-forced (see the script's text)",
        "rows": found,
        "arithmetic": floor,
        "least_change": least,
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {RESULT.name}")


if __name__ == "__main__":
    main()
