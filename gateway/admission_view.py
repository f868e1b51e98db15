"""What an operator reads of forecasts, refusals, hints and learned lengths; it keeps nothing.

Every field is documented in docs/http.md. There is no tenant in it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.core.clock import NS_PER_MS
from engine.core.load import EngineLoad
from gateway.services import Services


def admission_fields(services: Services) -> dict[str, Any]:
    """Return what is expected, and how expectations have been borne out."""
    settings, gate = services.settings, services.gate
    scores, ledger = gate.forecasts.scores.read(), gate.forecasts.ledger
    waiting = services.admission.waiting_by_tier()
    now = services.host.engine.snapshot
    load = None if now is None else now.load
    return {
        "mode": settings.admission,
        "factor": settings.admission_factor,
        "tiers": {
            tier.name: {
                "on_overload": tier.on_overload.value,
                "waiting": waiting.get(tier.name, 0),
                "forecasts": None
                if (score := scores.get(tier.name)) is None
                else {
                    "num": score.num,
                    "median_error": round(score.median_error, 4),
                    "p90_error": round(score.high_error, 4),
                    "of_target": round(score.of_target, 4),
                    "covered": round(score.covered, 4),
                    "foretold": round(score.foretold, 4),
                },
            }
            for tier in services.tiers.current
        },
        "refusals": dataclasses.asdict(ledger) | {"false_share": round(ledger.false_share, 4)},
        "hints": dataclasses.asdict(gate.hints.score),
        "lengths": _rounded(services.lengths.readings()) or None,
        "load": None if load is None else load_fields(load, services.clock.now_ns()),
    }


def load_fields(load: EngineLoad, now_ns: int) -> dict[str, Any]:
    """Return the load that forecasts are made from."""
    return {
        "age_ms": max(0, now_ns - load.at_ns) // NS_PER_MS,
        "order": load.plan.order.value,
        "prompt_tokens_per_s": round(load.prompt_rate, 1),
        "step_ms": round(load.step_ns / NS_PER_MS, 3),
        "free_blocks": load.free_blocks,
        "future_peak_tokens": load.future_peak_tokens,
        "classes": [
            {
                "tier": one.tier,
                "waiting": one.num_open,
                "prompt_tokens": one.open_tokens,
                "lost": one.lost,
                "decodes": one.decodes,
                "parked": one.parked,
            }
            for one in load.classes
        ],
    }


def _rounded(readings: dict[str, float | None]) -> dict[str, float | None]:
    return {name: round(v, 4) if isinstance(v, float) else v for name, v in readings.items()}
