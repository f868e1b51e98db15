"""transformers as a peer: `generate` on static, left-padded batches, or `generate_batch`."""

from __future__ import annotations

import time
from typing import Any

import peer_io
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig


@torch.inference_mode()
def static_batches(
    model: Any, prompts: list[list[int]], max_new: list[int], size: int
) -> list[int]:
    """Every batch runs until its longest answer is there; only what was asked for counts."""
    counts: list[int] = []
    for first in range(0, len(prompts), size):
        part, wanted = prompts[first : first + size], max_new[first : first + size]
        longest = max(map(len, part))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part])
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(wanted),
            min_new_tokens=max(wanted),
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        counts += [min(new, out.shape[1] - longest) for new in wanted]
    return counts


def continuous(model: Any, prompts: list[list[int]], max_new: list[int]) -> list[int]:
    """generate_batch knows one length for all: the requests go in groups of equal length."""
    counts = [0] * len(prompts)
    for length in sorted(set(max_new)):
        numbers = [i for i, new in enumerate(max_new) if new == length]
        config = GenerationConfig(
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            num_blocks=512,
            max_batch_tokens=512,
        )
        outputs = model.generate_batch(
            inputs=[prompts[i] for i in numbers], generation_config=config, progress_bar=False
        )
        for i, output in zip(numbers, outputs.values(), strict=True):
            counts[i] = len(output.generated_tokens)
    return counts


def main() -> None:
    told = peer_io.settings()
    transformers.logging.set_verbosity_error()
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        told["model"], dtype=getattr(torch, told["dtype"]), attn_implementation="sdpa"
    ).eval()

    def generate(prompts: list[list[int]], max_new: list[int]) -> list[int]:
        if told["continuous"]:
            return continuous(model, prompts, max_new)
        return static_batches(model, prompts, max_new, told["max_running"])

    peer_io.serve(f"transformers {transformers.__version__}", time.perf_counter() - began, generate)


if __name__ == "__main__":
    main()
