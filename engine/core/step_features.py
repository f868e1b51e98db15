"""What a step holds, as the numbers that a latency profile's prices are multiplied with.

It knows the form of a profile (see engine/core/latency_profile.py) and no price, time or request.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.core.latency_profile import LatencyProfile

# Names of a profile's step prices in the order of `features`. `mixed_kv_factor` stands for an extra
# price of a cached token that a decode reads beside a prompt: decode_kv_ns * (factor - 1).
PRICES = (
    "base_ns",
    "token_ns",
    "tile_ns",
    "knee_token_ns",
    "decode_kv_ns",
    "mixed_kv_factor",
    "pair_ns",
    "prompt_kv_ns",
    "prompt_ns",
    "row_ns",
)


IDLED = (1.0, 1.0, 0.5)  # the first steps after nobody was there


class Held(NamedTuple):
    """What a step holds (see `StepCost`), as a value that outlives its planning."""

    num_tokens: float
    num_rows: float
    num_prefills: float
    kv_tokens: float
    pairs: float
    prompt_kv: float
    fresh: float = 0.0


def features(held: Held, knee: int | None, tile_tokens: int | None) -> list[float]:
    """Return what each of PRICES is multiplied with; None for a form without knee, or tiles."""
    num_tokens, num_rows, num_prefills, kv_tokens, pairs, prompt_kv, _ = held
    return [
        1.0,
        float(num_tokens),
        float(-(-num_tokens // tile_tokens)) if tile_tokens else 0.0,
        float(num_tokens - knee) if knee is not None and num_tokens > knee else 0.0,
        float(kv_tokens),
        float(kv_tokens) if num_prefills else 0.0,
        float(pairs),
        float(prompt_kv),
        1.0 if num_prefills else 0.0,
        float(num_rows),
    ]


def freshness(steps_since_idle: int, *, follows_prompt: bool) -> float:
    """Return how much a step finds its caches filled with something else, 0 where not at all.

    The engine idled a few steps ago, or the step before held a prompt. On a CPU each costs about a
    quarter of a small step, which no profile has a price for.
    """
    idled = IDLED[steps_since_idle] if steps_since_idle < len(IDLED) else 0.0
    return idled + follows_prompt


def prices_of(profile: LatencyProfile) -> tuple[float, ...]:
    """Return a profile's step prices in nanoseconds, in the order of PRICES."""
    p = profile
    return (
        float(p.base_ns),
        float(p.token_ns),
        float(p.tile_ns),
        float(p.knee_token_ns),
        float(p.decode_kv_ns),
        p.decode_kv_ns * (p.mixed_kv_factor - 1.0),
        float(p.pair_ns),
        float(p.prompt_kv_ns),
        float(p.prompt_ns),
        float(p.row_ns),
    )


def knee_of(profile: LatencyProfile) -> int | None:
    """Return from how many tokens on a step gets dearer; None where the profile has no knee."""
    has_knee = profile.knee_tokens > 0 or profile.knee_token_ns > 0
    return profile.knee_tokens if has_knee else None


def tile_of(profile: LatencyProfile) -> int | None:
    """Return how many tokens a tile has; None where the profile has no tiles."""
    return profile.tile_tokens if profile.tile_ns > 0 else None
