"""The constants and switches of the hybrid as one checked value; it decides nothing."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HybridOptions:
    """Constants of the hybrid, and its ablations: a switch turned to 0 takes one idea out.

    `step_share` of the tightest TBT, or of `max_step_ms` if that is less, is a step's time.
    `pace_low` and `pace_high` are shares of device blocks in use: up to the first decodes wait
    until they are due, from the second on all run. `reserve` of the blocks is kept for the first
    class, `growth` for decodes. `second_s` after its arrival a prompt that missed is due again; it
    counts `second_weight` times as dear as others. `decode_weight` of its predicted decoding
    belongs to what a prompt costs. `ageing` is how many times its own length a lost prompt may be
    overtaken. One start in `oldest_every` goes to the oldest of the lost once it waited for
    `oldest_s`. Pauses last at most `pause_s` and at least `least_pause_s`; parked ones come back
    early below `back_use` of the blocks.
    """

    step_share: float = 0.94
    max_step_ms: float = 200.0
    pace_low: float = 0.5
    pace_high: float = 0.8
    reserve: float = 0.02
    growth: float = 0.01
    second_s: float = 22.0
    second_weight: float = 2.0
    decode_weight: float = 0.5
    ageing: float = 20.0
    oldest_every: float = 100.0
    oldest_s: float = 60.0
    pause_s: float = 20.0
    least_pause_s: float = 4.0
    back_use: float = 0.75
    link_share: float = 0.8
    # Switches
    time_budget: float = 1.0
    defer: float = 1.0
    memory_pace: float = 1.0
    deadlines: float = 1.0
    triage: float = 1.0
    displace: float = 1.0
    park: float = 1.0
    predict: float = 1.0
    guard: float = 1.0
    fair_seats: float = 1.0

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"hybrid: {spec.name} must be a number of at least 0")
        if not 0 < self.step_share <= 1 or self.max_step_ms <= 0:
            raise ValueError("hybrid: step_share must be above 0, at most 1; max_step_ms above 0")
        if self.pace_low > self.pace_high or self.reserve + self.growth > 0.5:
            raise ValueError(
                "hybrid: pace_low must not exceed pace_high, nor reserve and growth half the pool"
            )
