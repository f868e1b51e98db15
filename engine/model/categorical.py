"""One draw per row from a filtered categorical distribution; it knows no request and no history.

Definition, for a row of logits x, temperature T and uniform u. Tokens are ranked by logit, highest
first, equal logits by lower id; w = exp((x - max x) / T).

1. min_p keeps tokens with w >= min_p (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082);
2. top_k keeps the first k of those (0 or more than the vocabulary: all);
3. top_p keeps the shortest prefix of those whose share of *their* mass reaches top_p (nucleus;
   Holtzman et al. 2019, section 3.1, https://arxiv.org/abs/1904.09751);
4. the token is the first in rank order whose running sum of w exceeds u times the kept mass. Where
   nothing is filtered, the running sum goes by token id instead, which needs no ranking.

Each of 1 to 3 keeps a prefix of the ranking and at least its first token. Rows are ranked no
further than needed: the best few tokens first, and the whole vocabulary only where those do not
settle the row (by value_bins.py on CPU). Nothing here depends on the other rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.model.value_bins import draw_by_bins

BLOCK = 64  # tokens per block: one maximum or partial sum each
NUM_CANDIDATES = 128  # tokens ranked at first


@dataclass(frozen=True, slots=True, eq=False)
class DrawParams:
    """Per-row parameters on the logits' device, each [R] float64."""

    temperature: torch.Tensor  # > 0
    top_k: torch.Tensor  # >= 1; at least the vocabulary size means off
    top_p: torch.Tensor  # 1 or more means off
    min_p: torch.Tensor  # 0 means off
    uniform: torch.Tensor  # in [0, 1)
    any_min_p: bool = True  # False, known on the host, saves a pass over the logits

    def __getitem__(self, rows: slice | torch.Tensor) -> DrawParams:
        """Return the parameters of some rows."""
        return DrawParams(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.uniform[rows],
            self.any_min_p,
        )


def padded_float32(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return a float32 copy [R, P], P the next multiple of `BLOCK`, filled up with -inf."""
    width = -(-vocab_size // BLOCK) * BLOCK
    copy = torch.empty((logits.shape[0], width), dtype=torch.float32, device=logits.device)
    copy[:, :vocab_size].copy_(logits[:, :vocab_size])
    copy[:, vocab_size:] = float("-inf")
    return copy


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """Return the lowest index of each row's maximum, [R] int64; NaN counts as the maximum.

    Block maxima first: on CPU, torch's own argmax is not vectorised and some ten times slower.
    """
    rows, width = logits.shape
    if width % BLOCK or logits.device.type != "cpu" or not logits.is_contiguous():
        return logits.argmax(-1)
    blocks = logits.view(rows, -1, BLOCK)
    best = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(rows), best].argmax(-1)
    return best * BLOCK + inside


def rank_best(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values and ids of each row's `count` best tokens, [R, count], in rank order.

    `logits`: [R, P] float32, P a multiple of `BLOCK`; count is cut to P. Ids are exact but within
    the tie class of the last value, of which `topk` returns any members. The count best tokens lie
    in the count blocks with the best maxima, so only those are searched.
    """
    rows, width = logits.shape
    count = min(count, width)
    if count == width:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values, ids
    if count * BLOCK * 2 < width:
        blocks = logits.view(rows, -1, BLOCK)
        best = blocks.amax(-1).topk(count, sorted=False).indices
        values = blocks.gather(1, best.unsqueeze(-1).expand(-1, -1, BLOCK)).view(rows, -1)
        inside = torch.arange(BLOCK, device=logits.device)
        ids = (best.unsqueeze(-1) * BLOCK + inside).view(rows, -1)
        values, at = values.topk(count, sorted=False)
        ids = ids.gather(1, at)
    else:
        values, ids = logits.topk(count, sorted=False)
    ids, at = ids.sort(dim=-1)
    values, at = values.gather(1, at).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, at)


def draw_unfiltered(logits: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Return one token per row, [R] int64, from the whole distribution; overwrites `logits`.

    Two levels of running sums: over blocks, then inside one block, so that float32 rounding is
    never carried along the vocabulary. Tokens of weight 0 are never drawn.
    """
    rows = logits.shape[0]
    weights = _weights_(logits, logits.amax(-1), params.temperature).view(rows, -1, BLOCK)
    cumulated = weights.sum(-1).to(torch.float64).cumsum(-1)
    target = params.uniform.unsqueeze(-1) * cumulated[:, -1:]
    block = _first_above(cumulated, target, cumulated[:, -1:])
    below = torch.where(block > 0, cumulated.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = weights[torch.arange(rows, device=logits.device), block.squeeze(-1)]
    inner = inner.to(torch.float64).cumsum(-1)
    inside = _first_above(inner, target - below, inner[:, -1:])
    return (block * BLOCK + inside).squeeze(-1)


def draw_filtered_exhaustively(logits: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Return one token per row, [R] int64, whatever the filters keep; may overwrite `logits`."""
    if logits.device.type != "cpu":
        return draw_filtered(logits, params, count=logits.shape[1])[0]
    tokens = [
        draw_by_bins(
            logits[row].numpy(),
            float(params.temperature[row]),
            int(params.top_k[row]),
            float(params.top_p[row]),
            float(params.min_p[row]),
            float(params.uniform[row]),
        )
        for row in range(logits.shape[0])
    ]
    return torch.tensor(tokens, dtype=torch.int64)


def draw_filtered(
    logits: torch.Tensor,
    params: DrawParams,
    *,
    bounded: bool = False,
    count: int = NUM_CANDIDATES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the best `count` tokens: ([R] int64 tokens, [R] bool settled).

    `bounded` says that top_k <= count for every row, so that mass beyond the candidates is of no
    concern. A row is not settled where its kept prefix reaches the value of the last candidate:
    further tokens, or others of that value, may belong to it. May overwrite `logits`.
    """
    values, ids = rank_best(logits, count)
    complete = values.shape[1] == logits.shape[1]
    temperature = params.temperature.unsqueeze(-1)
    weights = torch.exp((values.to(torch.float64) - values[:, :1]) / temperature)
    rank = torch.arange(weights.shape[1], device=logits.device)
    kept = (rank < params.top_k.unsqueeze(-1)) & (weights >= params.min_p.unsqueeze(-1))
    cumulated = (weights * kept).cumsum(-1)
    mass = cumulated[:, -1]
    settled = torch.ones_like(kept[:, -1])
    if not complete and not bounded:
        ended = ~kept[:, -1] | (params.top_k <= weights.shape[1])
        total = _mass_above_min_p(logits, values[:, 0], params)
        mass = torch.where(ended, mass, total)
        # Past the candidates, the mass that a top_k leaves is unknown.
        settled = ended | (params.top_k >= logits.shape[1])
    limit = torch.where(params.top_p < 1.0, params.top_p * mass, torch.inf).unsqueeze(-1)
    before = torch.nn.functional.pad(cumulated[:, :-1], (1, 0))
    last = (kept & (before < limit)).sum(-1, keepdim=True).clamp(min=1) - 1
    if not complete:
        settled &= (values.gather(1, last) > values[:, -1:]).squeeze(-1)
    kept_mass = cumulated.gather(1, last)
    choice = _first_above(cumulated, params.uniform.unsqueeze(-1) * kept_mass, kept_mass)
    return ids.gather(1, choice).squeeze(-1), settled


def _weights_(logits: torch.Tensor, best: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Return exp((logits - best) / temperature), written over `logits` [R, P] float32."""
    inverse = (1.0 / temperature).to(torch.float32).unsqueeze(-1)
    return logits.sub_(best.unsqueeze(-1)).mul_(inverse).exp_()


def _mass_above_min_p(logits: torch.Tensor, best: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Return the summed weight of tokens that min_p keeps, [R] float64; overwrites `logits`."""
    weights = _weights_(logits, best, params.temperature)
    if params.any_min_p:
        weights.masked_fill_(weights < params.min_p.to(torch.float32).unsqueeze(-1), 0.0)
    return weights.view(logits.shape[0], -1, BLOCK).sum(-1).sum(-1, dtype=torch.float64)


def _first_above(
    cumulated: torch.Tensor, target: torch.Tensor, total: torch.Tensor
) -> torch.Tensor:
    """Return the first index whose running sum exceeds `target`, [R, 1].

    Never past the first index that reaches `total`: rounding may lift the target up to it, and
    what follows has weight 0.
    """
    above = (cumulated <= target).sum(-1, keepdim=True)
    cap = (cumulated < total).sum(-1, keepdim=True)
    return torch.minimum(above, cap)
