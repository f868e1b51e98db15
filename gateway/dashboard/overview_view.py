"""What the overview shows of one look; it asks nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gateway.dashboard.points import summaries
from gateway.dashboard.pulse import Look, Pulse

if TYPE_CHECKING:
    from gateway.services import Services

TTFT, TBT = 2, 3  # columns of dots
NUM_SAMPLES = 12  # in a table, one every five seconds


def values(pulse: Pulse, look: Look, services: Services) -> Mapping[str, Any]:
    """Return what the template is given."""
    latest = look.latest
    return {
        "look": look,
        "state": look.state,
        "engine": look.state["engine"],
        "sentences": pulse.sentences(look),
        "ttft": summaries(latest, look.tiers, TTFT),
        "tbt": summaries(latest, look.tiers, TBT),
        "samples": look.samples[::-5][:NUM_SAMPLES],
        "queue_columns": [(tier, f".{tier}") for tier in look.tiers],
        "info": look.state["info"],
        "max_queue": services.settings.max_queue,
    }
