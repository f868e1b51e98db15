"""Packed, chunked, preempted answers against transformers' own, family by family, as one table.

Tiny models with random weights, 64 greedy requests each, run through the real EngineCore and
ModelRunner at random chunk and block sizes in a pool that holds about a tenth of them. In float32
every token has to equal `generate`; the logits at every drawn position are compared with
transformers' full forward over the same text. In bfloat16 tokens may differ where two are nearly
equal, so the error of both against float32 arithmetic on the same 16-bit weights is shown.
Run: python -m benchmarks.correctness
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.core.batch import Batch
from engine.core.stats import Snapshot
from engine.model.attention import PagedAttention, TorchAttention, select_attention
from engine.model.hf_model import HFModel, PagedModel, kv_shape_of
from engine.model.kernels.native import load_native
from engine.model.kv_cache import KVCache
from engine.model.lean_model import LeanModel
from engine.model.linear import optimise
from engine.model.model_runner import ModelRunner
from engine.model.step_input import StepInput
from tests.model.engine_run import Setting, generate, make_runner, random_setting, random_work, run
from tests.model.tiny_models import FAMILIES, VOCAB, random_model, tiny_config

RESULT = Path(__file__).parent / "results" / "correctness.json"
NUM_REQUESTS = 64
MAX_NEW = 24

Work = Sequence[tuple[tuple[int, ...], int]]
MakeAttention = Callable[[KVCache], PagedAttention]


@dataclass(frozen=True, slots=True)
class Row:
    """One family on one runner, summed over its settings."""

    family: str
    runner: str
    attention: str
    requests: int
    tokens: int
    mismatches: int
    max_diff_float32: float  # largest difference of any logit, over all drawn positions
    rms_bfloat16: float  # ours against float32 arithmetic, relative
    rms_bfloat16_transformers: float  # transformers' own bfloat16 against the same
    preemptions: int
    prefix_hit_tokens: int


class Watcher:
    """A model's step function that keeps the logits of every position at which a token is drawn."""

    def __init__(self, model: PagedModel) -> None:
        self._model = model
        self._last: torch.Tensor | None = None
        self.seen: dict[tuple[int, int], torch.Tensor] = {}  # (request, position) -> [vocab]

    def step(self, inp: StepInput) -> torch.Tensor:
        self._last = self._model.step(inp)
        return self._last

    def watch(self, batch: Batch) -> None:
        assert self._last is not None
        drawn = [chunk for chunk in batch.chunks if chunk.sampling is not None]
        for chunk, row in zip(drawn, self._last, strict=True):
            self.seen[int(chunk.request_id), chunk.end - 1] = row.float().clone()


def watched_run(
    model: PagedModel, setting: Setting, work: Work, make_attention: MakeAttention
) -> tuple[list[list[int]], Snapshot, dict[tuple[int, int], torch.Tensor]]:
    plain, watcher = make_runner(model, setting, make_attention), Watcher(model)
    runner = ModelRunner(
        model, plain.attention, plain._sampler, plain.capacity, plain.info, step=watcher.step
    )
    answers, snapshot = run(runner, work, setting.seed, watcher.watch)
    return answers, snapshot, watcher.seen


def differences(
    seen: dict[tuple[int, int], torch.Tensor],
    work: Work,
    answers: Sequence[Sequence[int]],
    model: HFModel,
) -> tuple[float, float]:
    """Return the largest and the relative rms difference from the model's full forward."""
    largest = wrong = right = 0.0
    for number, (prompt, _) in enumerate(work):
        logits = model.reference_logits([*prompt, *answers[number]]).float()
        for position in range(len(prompt) - 1, len(prompt) + len(answers[number]) - 1):
            difference = seen[number, position] - logits[position]
            largest = max(largest, float(difference.abs().max()))
            wrong += float(difference.square().sum())
            right += float(logits[position].square().sum())
    return largest, (wrong / right) ** 0.5


def plain_logits(
    model: HFModel, work: Work, answers: Sequence[Sequence[int]]
) -> dict[tuple[int, int], torch.Tensor]:
    """Return transformers' own logits in the form of a watched run."""
    seen = {}
    for number, (prompt, _) in enumerate(work):
        logits = model.reference_logits([*prompt, *answers[number]]).float()
        seen.update({(number, position): row for position, row in enumerate(logits)})
    return seen


def variants(module: Any) -> Iterator[tuple[str, PagedModel, MakeAttention]]:
    """Yield every way to run the model: runner's name, model, attention. `module` is kept whole."""
    model = HFModel(module)
    yield "generic", model, TorchAttention
    native, needs = load_native(), model.needs
    if native is None:
        return

    def fastest(cache: KVCache) -> PagedAttention:
        return select_attention(cache, needs, native)

    swapped = HFModel(copy.deepcopy(module))
    optimise(swapped.module, native)
    yield "swapped", swapped, fastest
    spent = HFModel(copy.deepcopy(module))
    if LeanModel.supports(spent):
        yield "lean", LeanModel(spent, native), fastest


def measure(family: str, num_settings: int, seed: int) -> Iterator[Row]:
    full = random_model(tiny_config(family), seed)
    half = random_model(tiny_config(family), seed, torch.bfloat16)
    truth = HFModel(copy.deepcopy(half).float())
    plan = []
    draw = random.Random(zlib.crc32(f"{family} {seed}".encode()))
    for _ in range(num_settings):
        work = random_work(draw, VOCAB, NUM_REQUESTS, MAX_NEW)
        sizes = [len(prompt) + new for prompt, new in work]
        plan.append((work, random_setting(draw, max(sizes), sum(sizes)), generate(full, work)))
    reference, reference16 = HFModel(copy.deepcopy(full)), HFModel(copy.deepcopy(half))
    pairs = zip(variants(full), variants(half), strict=True)
    for (name, model, attention), (_, model16, attention16) in pairs:
        tokens = mismatches = preemptions = hits = 0
        largest, ours, theirs, used = 0.0, 0.0, 0.0, ""
        for work, setting, expected in plan:
            answers, snapshot, seen = watched_run(model, setting, work, attention)
            tokens += sum(map(len, expected))
            mismatches += sum(
                a != e
                for got, want in zip(answers, expected, strict=True)
                for a, e in zip(got, want, strict=True)
            )
            preemptions += snapshot.preemptions_total
            hits += snapshot.cached_tokens_total
            largest = max(largest, differences(seen, work, answers, reference)[0])
            answers, _, seen = watched_run(model16, setting, work, attention16)
            ours = max(ours, differences(seen, work, answers, truth)[1])
            plain = plain_logits(reference16, work, answers)
            theirs = max(theirs, differences(plain, work, answers, truth)[1])
            used = attention(
                KVCache(kv_shape_of(model.needs), 1, setting.block_size, model.device)
            ).name
        yield Row(
            family=family,
            runner=name,
            attention=used,
            requests=NUM_REQUESTS * num_settings,
            tokens=tokens,
            mismatches=mismatches,
            max_diff_float32=largest,
            rms_bfloat16=ours,
            rms_bfloat16_transformers=theirs,
            preemptions=preemptions,
            prefix_hit_tokens=hits,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--settings", type=int, default=3, help="random settings per family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    head = "family          runner   attention  requests  tokens  wrong  max diff f32"
    print(head + "  rms bf16  (HF)    preempted  prefix tokens")
    rows = []
    for family in args.families:
        for row in measure(family, args.settings, args.seed):
            rows.append(row)
            print(
                f"{row.family:15} {row.runner:8} {row.attention:10} {row.requests:8}"
                f" {row.tokens:7} {row.mismatches:6} {row.max_diff_float32:13.1e}"
                f" {row.rms_bfloat16:9.4f} ({row.rms_bfloat16_transformers:.4f})"
                f" {row.preemptions:10} {row.prefix_hit_tokens:14}",
                flush=True,
            )
    if not args.dry_run:
        report = {
            "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "seed": args.seed,
            "settings": args.settings,
            "rows": [asdict(row) for row in rows],
        }
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
