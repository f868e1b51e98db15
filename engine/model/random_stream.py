"""Random numbers as a pure function of (seed, counter): it keeps no state and knows no batch.

A row's n-th draw depends on its seed and on n alone, never on its neighbours, on how its prompt was
cut into chunks, or on whether it was preempted in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GAMMA = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: the step of SplitMix64
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of SplitMix64 for each state: 64 well-mixed bits, a bijection.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
    section 5 (mix64variant13); https://prng.di.unimi.it/splitmix64.c
    """
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def uniforms(seeds: Sequence[int], counters: Sequence[int]) -> NDArray[np.float64]:
    """Return one number in [0, 1) per (seed, counter), each a multiple of 2**-53.

    Seeds may be any integers (taken modulo 2**64); counters start at 0. The seed is mixed before
    it becomes a starting point: otherwise seeds that differ by a multiple of SplitMix64's step
    would give the same stream, shifted.
    """
    seed = np.array([value & _MASK for value in seeds], dtype=np.uint64)
    counter = np.array(counters, dtype=np.uint64)
    start = splitmix64(seed + np.uint64(_GAMMA))
    bits = splitmix64(start + (counter + np.uint64(1)) * np.uint64(_GAMMA))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
