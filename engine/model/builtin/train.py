"""Knows how the built-in model is trained from a seed; the text and the tokenizer come from beside.

    python -m engine.model.builtin.train --seed 0 --out DIR

The number of steps is fixed, not the time, so the same seed on the same machine gives the same
weights. A run that was cut off goes on from ``DIR/checkpoint.pt``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.core.clock import MonotonicClock
from engine.model.builtin import builtin_path
from engine.model.builtin.corpus.build import training
from engine.model.builtin.corpus.sample import Sample
from engine.model.builtin.vocabulary import VOCABULARY_SIZE, encode, train_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights besides the text: sizes, steps and learning rates."""

    steps: int = 3000
    samples_per_step: int = 96
    tokens_per_pass: int = 2048
    # The full rate learns the words quickly but is too coarse for sums and copying; the rate rises
    # once more when a later phase of the corpus brings new work. Between points: straight lines.
    rate_points: tuple[tuple[int, float], ...] = (
        (-1, 0.0), (59, 1.0), (599, 1.0), (600, 0.25), (1050, 0.25), (1799, 0.0716667),
        (1800, 0.15), (2400, 0.0), (2401, 0.12), (3000, 0.0),
    )  # fmt: skip
    muon_rate: float = 0.02
    adam_rate: float = 0.003
    tokenizer_samples: int = 60_000
    checkpoint_every: int = 200


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A fresh Llama of 3.3 million parameters, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def passes(rows: list[tuple[list[int], int]], most_tokens: int) -> Iterator[list[int]]:
    """Indices of the rows in groups of like length, each group at most ``most_tokens`` padded."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    group: list[int] = []
    for i in order:
        if group and len(rows[i][0]) * (len(group) + 1) > most_tokens:
            yield group
            group = []
        group.append(i)
    yield group


def answer_loss(
    model: LlamaForCausalLM, rows: list[tuple[list[int], int]], pad: int
) -> torch.Tensor:
    """Cross entropy of the answers, summed over the rows; a row of n tokens counts sqrt(n) times.

    The root keeps the long texts, half of all tokens, from drowning the one-word answers. Rows are
    padded on the right, where causal attention never looks, so no mask is needed.
    """
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in rows])
    weight = torch.zeros(ids.shape)
    for i, (row, start) in enumerate(rows):
        weight[i, start : len(row)] = (len(row) - start) ** -0.5
    hidden = model.model(ids, use_cache=False).last_hidden_state
    learnt = weight[:, 1:] > 0
    logits = F.linear(hidden[:, :-1][learnt], model.lm_head.weight)
    losses = F.cross_entropy(logits.float(), ids[:, 1:][learnt], reduction="none")
    return (losses * weight[:, 1:][learnt]).sum()


def optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_share(step: int, recipe: Recipe) -> float:
    """Share of the full learning rate at a step, on the lines between the points of the recipe."""
    for (x0, y0), (x1, y1) in itertools.pairwise(recipe.rate_points):
        if x0 <= step <= x1:
            return y0 + (y1 - y0) * (step - x0) / (x1 - x0)
    return 0.0


class Progress:
    """How far a run is: steps, tokens, seconds and the smoothed loss, over all its restarts."""

    def __init__(self, steps: int) -> None:
        self.step = 0
        self._steps = steps
        self._tokens = 0
        self._loss = 0.0
        self._before_s = 0.0
        self._clock = MonotonicClock()
        self._started_ns = self._clock.now_ns()

    def advance(self, loss: float, tokens: int) -> None:
        """Count one finished step."""
        self._loss = loss if self.step == 0 else 0.98 * self._loss + 0.02 * loss
        self.step += 1
        self._tokens += tokens

    def restore(self, figures: dict[str, float]) -> None:
        """Go on from the figures of an interrupted run."""
        self.step, self._tokens = int(figures["steps"]), int(figures["tokens"])
        self._loss, self._before_s = figures["loss"], figures["seconds"]

    def figures(self) -> dict[str, float]:
        """Steps, tokens (prompts and answers), wall seconds, and the smoothed loss."""
        seconds = self._before_s + (self._clock.now_ns() - self._started_ns) / 1e9
        return {
            "steps": self.step,
            "tokens": self._tokens,
            "seconds": round(seconds, 1),
            "loss": round(self._loss, 5),
        }

    def line(self) -> str:
        """One line for the terminal: loss, tokens per second, minutes left."""
        seconds = max(self.figures()["seconds"], 1e-3)
        left_min = seconds / self.step * (self._steps - self.step) / 60
        return (
            f"step {self.step}/{self._steps}  loss {self._loss:.4f}  "
            f"{self._tokens / seconds:.0f} tok/s  {left_min:.0f} min left "
        )


def save_checkpoint(
    path: Path, model: nn.Module, optims: list[torch.optim.Optimizer], progress: Progress
) -> None:
    """Write all a run needs to go on; the old checkpoint stays until the new one is whole."""
    state = {
        "figures": progress.figures(),
        "model": model.state_dict(),
        "optimizers": [optim.state_dict() for optim in optims],
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load_checkpoint(
    path: Path, model: nn.Module, optims: list[torch.optim.Optimizer]
) -> dict[str, float]:
    """Restore model and optimizers; the figures of the interrupted run."""
    state = torch.load(path)
    model.load_state_dict(state["model"])
    for optim, saved in zip(optims, state["optimizers"], strict=True):
        optim.load_state_dict(saved)
    figures: dict[str, float] = state["figures"]
    return figures


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model in bfloat16 with its tokenizer, loadable by ``from_pretrained``."""
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored = stored.to(torch.bfloat16)
    stored.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=512,
    )
    stored.save_pretrained(out)
    tokenizer.save_pretrained(out)


def train(seed: int, out: Path, recipe: Recipe, resume: bool = True) -> None:
    """Train, write checkpoints to ``out`` on the way, and the finished model to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(itertools.islice(training(seed), recipe.tokenizer_samples))
    model = build_model(tokenizer, seed)
    optims = optimizers(model, recipe)
    full_rates = [group["lr"] for optim in optims for group in optim.param_groups]
    checkpoint = out / "checkpoint.pt"
    progress = Progress(recipe.steps)
    if resume and checkpoint.exists():
        progress.restore(load_checkpoint(checkpoint, model, optims))
    stream = itertools.islice(training(seed), progress.step * recipe.samples_per_step, None)
    while progress.step < recipe.steps:
        samples = list(itertools.islice(stream, recipe.samples_per_step))
        loss, tokens = train_step(model, tokenizer, samples, recipe)
        share = rate_share(progress.step, recipe)
        # Looked up again each time: loading a checkpoint replaces the groups of an optimizer.
        groups = [group for optim in optims for group in optim.param_groups]
        for group, full in zip(groups, full_rates, strict=True):
            group["lr"] = full * share
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        progress.advance(loss, tokens)
        sys.stderr.write(f"\r{progress.line()}")
        if progress.step % recipe.checkpoint_every == 0:
            save_checkpoint(checkpoint, model, optims, progress)
            save(model, tokenizer, out / "latest")
            sys.stderr.write("\n")
    save(model, tokenizer, out)
    figures = {"seed": seed, "threads": torch.get_num_threads(), **progress.figures()}
    (out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    shutil.rmtree(out / "latest", ignore_errors=True)
    sys.stderr.write(f"\nwritten to {out}\n")


def train_step(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    samples: list[Sample],
    recipe: Recipe,
) -> tuple[float, int]:
    """Gradients of one step, gathered over passes of like length; mean loss and token count."""
    rows = encode(tokenizer, samples)
    total_weight = sum((len(ids) - start) ** 0.5 for ids, start in rows)
    total = 0.0
    for group in passes(rows, recipe.tokens_per_pass):
        picked = [rows[i] for i in group]
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(model, picked, int(tokenizer.pad_token_id or 0)) / total_weight
        loss.backward()
        total += loss.item()
    return total, sum(len(ids) for ids, _ in rows)


def main() -> None:
    """Command line: the defaults are the recipe of the shipped weights."""
    parser = argparse.ArgumentParser(description="Train the built-in model of Tiergate.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=builtin_path())
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="ignore a checkpoint in DIR")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    train(chosen.seed, chosen.out, Recipe(steps=chosen.steps), resume=not chosen.fresh)


if __name__ == "__main__":
    main()
