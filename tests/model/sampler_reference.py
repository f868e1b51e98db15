"""A slow, obvious sampler: row by row, full sort, plain Python; what the fast one must equal."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from engine.core.batch import Chunk
from engine.core.request import SamplingParams


def splitmix64(state: int) -> int:
    mask = (1 << 64) - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def uniform(seed: int, counter: int) -> float:
    start = splitmix64(seed + 0x9E3779B97F4A7C15)
    return (splitmix64(start + (counter + 1) * 0x9E3779B97F4A7C15) >> 11) / 2**53


def changed_logits(row: np.ndarray, chunk: Chunk) -> np.ndarray:
    """Bias, bans, repetition, frequency, presence; one token at a time, in float32."""
    sampling = chunk.sampling
    assert sampling is not None
    scores = row.astype(np.float32).copy()
    one = np.float32
    for token, bias in sampling.logit_bias:
        if 0 <= token < len(scores):
            scores[token] += one(bias)
    if chunk.output_index < sampling.min_tokens:
        for token in sampling.stop_token_ids:
            if 0 <= token < len(scores):
                scores[token] = -np.inf
    for token in set(chunk.prompt_ids) | set(chunk.output_ids):
        penalty = one(sampling.repetition_penalty)
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token, count in Counter(chunk.output_ids).items():
        scores[token] += one(-(sampling.frequency_penalty * count + sampling.presence_penalty))
    return scores


def kept_tokens(scores: np.ndarray, sampling: SamplingParams) -> list[tuple[int, float]]:
    """Return the tokens that the filters keep, with their weights, in the order of the draw."""
    best = float(scores.max())
    weight = [math.exp((float(x) - best) / sampling.temperature) for x in scores]
    ranked = sorted(range(len(scores)), key=lambda token: (-float(scores[token]), token))
    kept = [t for t in ranked if weight[t] >= sampling.min_p] if sampling.min_p > 0 else ranked
    if sampling.top_k > 0:
        kept = kept[: sampling.top_k]
    if sampling.top_p < 1.0:
        mass, before, nucleus = math.fsum(weight[t] for t in kept), 0.0, []
        for token in kept:
            if nucleus and before >= sampling.top_p * mass:
                break
            nucleus.append(token)
            before += weight[token]
        kept = nucleus
    cuts = 0 < sampling.top_k < len(scores)
    if not cuts and sampling.top_p >= 1.0 and sampling.min_p <= 0.0:
        kept = sorted(kept)  # nothing is filtered: the draw goes by token id
    return [(token, weight[token]) for token in kept]


def draw(row: np.ndarray, chunk: Chunk) -> int:
    """Return the token of one row of raw logits."""
    sampling = chunk.sampling
    assert sampling is not None
    scores = changed_logits(row, chunk)
    if sampling.temperature == 0:
        return int(scores.argmax())
    return draw_at(scores, sampling, uniform(sampling.seed, chunk.output_index))


def draw_at(scores: np.ndarray, sampling: SamplingParams, at: float) -> int:
    """Return the token in which `at`, a share of the kept weight, falls."""
    kept = kept_tokens(scores, sampling)
    target = at * math.fsum(w for _, w in kept)
    running = 0.0
    for token, weight in kept:
        running += weight
        if running > target:
            return token
    return kept[-1][0]


def logprobs(row: np.ndarray) -> np.ndarray:
    """Return the natural log of the softmax of the raw logits, float64."""
    x = row.astype(np.float64)
    best = x.max()
    return x - best - math.log(np.exp(x - best).sum())
