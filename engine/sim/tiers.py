"""The tiers of simulated traffic: the two seeded ones, and any from a JSON file; times in ms.

It knows what a tier promises (scheduling notes, section 1) and nothing of who keeps the promise.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from engine.core.clock import NS_PER_MS
from engine.core.request import Slo, TbtMode
from engine.sim.workload import SimTier

DEFAULT_TIERS = (
    SimTier("premium", Slo(), share=0.05, objective=0.99),
    SimTier(
        "free",
        Slo(
            rank=1,
            ttft_ns=2000 * NS_PER_MS,
            ttft_ns_per_1k_prompt_tokens=1000 * NS_PER_MS,
            tbt_ns=500 * NS_PER_MS,
        ),
        share=0.95,
        objective=0.95,
    ),
)

REQUIRED = ("name", "rank", "ttft_ms", "tbt_ms", "objective", "share")
OPTIONAL: dict[str, Any] = {
    "ttft_ms_per_1k_prompt_tokens": 0,
    "tbt_mode": "gap",
    "weight": 1.0,
}
MOST_MS = 1e9


class TierError(ValueError):
    """The file is no list of tiers, or a promise is impossible; names file, field and row."""


def load_tiers(path: str | Path) -> tuple[SimTier, ...]:
    """Return the tiers of a JSON file, shares summing to 1; raises TierError. Rows count from 1."""
    name = str(path)
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TierError(f"tiers {name}: {error.strerror or error}") from error
    except ValueError as error:
        raise TierError(f"tiers {name}: not JSON: {error}") from error
    return parse_tiers(f"tiers {name}", rows)


def parse_tiers(where: str, rows: object) -> tuple[SimTier, ...]:
    """Return the tiers that a list of JSON objects describes; raises TierError."""
    if not isinstance(rows, list) or not rows:
        raise TierError(f"{where}: must be a JSON list of at least one tier")
    tiers = [_tier(f"{where}: row {number}", row) for number, row in enumerate(rows, 1)]
    names = [tier.name for tier in tiers]
    for number, tier_name in enumerate(names, 1):
        if tier_name in names[: number - 1]:
            raise TierError(f"{where}: row {number}: name {tier_name!r} was used before")
    total = sum(tier.share for tier in tiers)
    return tuple([_with_share(tier, tier.share / total) for tier in tiers])


def _with_share(tier: SimTier, share: float) -> SimTier:
    return SimTier(tier.name, tier.slo, share, tier.objective, tier.weight)


def _tier(where: str, row: object) -> SimTier:
    if not isinstance(row, dict):
        raise TierError(f"{where}: must be an object with fields")
    unknown = sorted(set(row) - set(REQUIRED) - set(OPTIONAL))
    if unknown:
        raise TierError(f"{where}: unknown field {unknown[0]!r}")
    for field in REQUIRED:
        if field not in row:
            raise TierError(f"{where}: field {field} is missing")
    fields = {**OPTIONAL, **row}
    name = fields["name"]
    if not isinstance(name, str) or not name.strip() or len(name) > 100:
        raise TierError(f"{where}: name must be a text of 1 to 100 characters")
    rank = fields["rank"]
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= 1000:
        raise TierError(f"{where}: rank must be a whole number from 0 to 1000, not {rank!r}")
    mode = fields["tbt_mode"]
    if mode not in (TbtMode.GAP.value, TbtMode.STREAM.value):
        raise TierError(f"{where}: tbt_mode must be gap or stream, not {mode!r}")
    per_1k = _number(where, fields, "ttft_ms_per_1k_prompt_tokens", MOST_MS, may_be_zero=True)
    slo = Slo(
        rank=rank,
        ttft_ns=int(_number(where, fields, "ttft_ms", MOST_MS) * NS_PER_MS),
        ttft_ns_per_1k_prompt_tokens=int(per_1k * NS_PER_MS),
        tbt_ns=int(_number(where, fields, "tbt_ms", MOST_MS) * NS_PER_MS),
        tbt_mode=TbtMode(mode),
    )
    return SimTier(
        name,
        slo,
        share=_number(where, fields, "share", 1e9),
        objective=_number(where, fields, "objective", 1.0),
        weight=_number(where, fields, "weight", 1e9),
    )


def _number(
    where: str, fields: dict[str, Any], field: str, most: float, *, may_be_zero: bool = False
) -> float:
    value = fields[field]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    least = 0.0 if may_be_zero else math.ulp(0.0)
    if not is_number or not least <= value <= most:
        low = "at least 0" if may_be_zero else "above 0"
        raise TierError(f"{where}: {field} must be {low} and at most {most:g}, not {value!r}")
    return float(value)
