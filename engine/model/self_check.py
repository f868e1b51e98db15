"""Does a paged model say what transformers says? One small packed run, compared when it is loaded.

Two sequences run in chunks, side by side, over blocks that lie in no order: what a family keeps
outside the cache, or a kernel gets wrong, shows here and not in a user's answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.core.batch import Batch, Chunk
from engine.core.request import SamplingParams
from engine.model.attention import PagedAttention
from engine.model.hf_model import HFModel, PagedModel, kv_shape_of
from engine.model.kv_cache import KVCache
from engine.model.step_input import StepInputBuilder

# Relative rms error of the logits. In 16 bits two right answers differ by 1 to 3 %, a wrong one by
# its own size.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
# Per step: (sequence, first, last) of each chunk; decodes first, as in every batch.
_SCHEDULE = (
    ((0, 0, 17), (1, 0, 5)),
    ((0, 17, 18), (1, 5, 20)),
    ((1, 20, 21), (0, 18, 34)),
    ((0, 34, 35), (1, 21, 22)),
    ((0, 35, 40), (1, 22, 27)),
)
_LENGTHS = (40, 27)
_SEED = 20180  # any number: it only makes two runs check the same tokens

MakeAttention = Callable[[KVCache], PagedAttention]


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What transformers computes for the check's sequences, in float32."""

    prompts: tuple[tuple[int, ...], ...]
    logits: tuple[torch.Tensor, ...]  # per prompt [tokens, vocab_size]


def expected_of(model: HFModel) -> Expected:
    """Return transformers' own logits for the check's sequences."""
    draw = random.Random(_SEED)
    longest = model.max_model_len
    prompts = tuple(
        tuple(draw.randrange(model.vocab_size) for _ in range(min(length, longest)))
        for length in _LENGTHS
    )
    logits = tuple(model.reference_logits(list(prompt)).float() for prompt in prompts)
    return Expected(prompts, logits)


@torch.inference_mode()
def relative_error(
    model: PagedModel, expected: Expected, make_attention: MakeAttention, block_size: int
) -> float:
    """Return the packed run's relative rms error; NaN or infinite if the model's numbers are.

    Leaves the model bound to a small cache that is gone afterwards: bind it to its own next.
    """
    blocks_each = [-(-len(prompt) // block_size) for prompt in expected.prompts]
    cache = KVCache(kv_shape_of(model.needs), sum(blocks_each), block_size, model.device)
    cache.data.fill_(float("nan"))  # a block that is read before it is written must show
    model.bind(make_attention(cache))
    ids = list(range(1, sum(blocks_each) + 1))
    random.Random(_SEED).shuffle(ids)
    tables = (tuple(ids[: blocks_each[0]]), tuple(ids[blocks_each[0] :]))
    builder = StepInputBuilder(block_size, model.device)
    wrong = right = 0.0
    for number, planned in enumerate(_SCHEDULE):
        cut = [(s, a, min(b, len(expected.prompts[s]))) for s, a, b in planned]
        work = [(s, a, b) for s, a, b in cut if a < b]
        if not work:
            break
        chunks = tuple(
            Chunk(str(s), a, expected.prompts[s][a:b], tables[s], SamplingParams(max_tokens=1))
            for s, a, b in work
        )
        logits = model.step(builder.build(Batch(number, chunks))).float()
        want = torch.stack([expected.logits[s][b - 1] for s, _, b in work])
        width = min(logits.shape[1], want.shape[1])
        difference = logits[:, :width] - want[:, :width]
        wrong += float(difference.square().sum())
        right += float(want.square().sum())
    return float((wrong / max(right, 1e-30)) ** 0.5)


def passes(error: float, dtype: torch.dtype) -> bool:
    """True if a relative error is what rounding explains; NaN never passes."""
    return error <= TOLERANCE[dtype]
