"""Log-probabilities under the model's own distribution; it knows nothing of how tokens are drawn.

Natural logarithm of the softmax of the raw logits: temperature 1, before bias, penalties and
filters, as the OpenAI API reports them.
"""

from __future__ import annotations

import torch

from engine.core.batch import TopLogprob
from engine.model.categorical import padded_float32, rank_best

MAX_TOP_LOGPROBS = 20  # alternatives reported per token at most, the OpenAI API's limit
_NUM_RANKED = 64  # more than reported, so that equal logits come out by lower id


def packed_logprobs(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> torch.Tensor:
    """Return [L, 1 + 2 * num_top] float64: the chosen token's logprob, the top ones, their ids.

    `logits`: [L, V], any float dtype; `tokens`: [L] int64. One tensor, so that it leaves the device
    in one transfer; ids are exact in float64. `num_top` is at most the vocabulary's size.
    """
    scores = padded_float32(logits, logits.shape[1])
    logprobs = torch.log_softmax(scores, -1)
    chosen = logprobs.gather(1, tokens.unsqueeze(-1)).double()
    if num_top == 0:
        return chosen
    # Ranked by logit: log_softmax may round different logits to equal values.
    ids = rank_best(scores, _NUM_RANKED)[1][:, :num_top]
    return torch.cat([chosen, logprobs.gather(1, ids).double(), ids.double()], dim=-1)


def unpack_top(row: list[float], wanted: int) -> tuple[TopLogprob, ...]:
    """Return the best `wanted` alternatives of one packed row, most probable first."""
    num_top = len(row) // 2
    values, ids = row[1 : 1 + num_top], row[1 + num_top :]
    return tuple(
        TopLogprob(int(token_id), value)
        for token_id, value in zip(ids[:wanted], values[:wanted], strict=True)
    )
