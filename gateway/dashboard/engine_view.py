"""What the engine's page shows of one look, and the squares of its block map; it asks nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Any

from engine.core.load import EngineLoad
from gateway.admission_view import admission_fields
from gateway.dashboard.filters import NONE, count, share
from gateway.dashboard.pulse import Look, Pulse

if TYPE_CHECKING:
    from gateway.services import Services

COLUMNS = 40
MOST_CELLS = 400
SIZE, GAP = 10, 2


@dataclass(frozen=True, slots=True)
class Kind:
    """Blocks of one kind: `css` colours them."""

    name: str
    css: str
    blocks: int


@dataclass(frozen=True, slots=True)
class BlockMap:
    """Squares of `per_cell` blocks each, kind after kind; sizes in the drawing's own unit."""

    kinds: tuple[Kind, ...]
    cells: tuple[tuple[int, int, str], ...]  # x, y, css
    per_cell: int
    width: int
    height: int


def values(pulse: Pulse, look: Look, services: Services) -> Mapping[str, Any]:
    """Return what the template is given."""
    engine = look.state["engine"]
    snapshot = services.host.engine.snapshot
    load = None if snapshot is None else snapshot.load
    device = host = None
    if engine is not None:
        memory = engine["memory"]
        device = block_map(_device(memory, load, look.tiers))
        if memory["host_blocks"]:
            parked = Kind("parked contexts", "c-parked", memory["host_held"])
            device_free = Kind("free", "c-free", memory["host_free"])
            host = block_map((parked, device_free))
    admission = admission_fields(services)
    return {
        "look": look,
        "state": look.state,
        "info": look.state["info"],
        "engine": engine,
        "sentences": pulse.sentences(look),
        "admission": admission,
        "lengths": lengths_of(admission["lengths"]),
        "device": device,
        "host": host,
    }


def lengths_of(readings: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return how well lengths are foreseen, by what people call it; empty without a predictor."""
    if not readings:
        return []
    error = readings.get("log_error")
    found = [
        ("Typically off by", NONE if error is None else f"a factor of {exp(error):.2f}"),
        ("Below the high guess", f"{share(readings.get('high_coverage'))} (90 % is meant)"),
        ("Pairs in the right order", share(readings.get("order_accuracy"))),
        ("Learned from", f"{count(readings.get('learned'))} answers"),
        ("Models, tenants", f"{count(readings.get('models'))}, {count(readings.get('scopes'))}"),
        ("Fits, failed", f"{count(readings.get('fits'))}, {count(readings.get('failed_fits'))}"),
        ("Changes of traffic", count(readings.get("drifts"))),
    ]
    if readings.get("is_learning") == 0:
        found.append(("State", "learning has died: guesses grow old"))
    return found


def _device(
    memory: Mapping[str, Any], load: EngineLoad | None, tiers: tuple[str, ...]
) -> tuple[Kind, ...]:
    """Return who holds the device's blocks: contexts that decode by tier, and all others."""
    left, kinds = memory["held"], []
    for one in () if load is None else load.classes:
        # The load may be a little older than the counts.
        blocks = min(left, -(-one.decode_tokens // memory["block_tokens"]))
        rank = tiers.index(one.tier) if one.tier in tiers else len(tiers)
        kinds.append(Kind(f"{one.tier}, decoding", f"c-tier-{min(rank, 5)}", blocks))
        left -= blocks
    kinds.append(Kind("prompts under way, and prefixes kept", "c-other", left))
    coming = min(memory["coming"], memory["free"])
    kinds.append(Kind("coming free", "c-coming", coming))
    kinds.append(Kind("free", "c-free", memory["free"] - coming))
    return tuple(kinds)


def block_map(kinds: tuple[Kind, ...]) -> BlockMap:
    """Return the squares: as many blocks each that there are at most `MOST_CELLS`."""
    total = sum(kind.blocks for kind in kinds)
    per_cell = max(1, -(-total // MOST_CELLS))
    cells: list[tuple[int, int, str]] = []
    passed = 0
    for kind in kinds:
        passed += kind.blocks
        # A kind begins where the one before it ends; what is less than half a square has none.
        while len(cells) < round(passed / per_cell):
            row, column = divmod(len(cells), COLUMNS)
            cells.append((column * (SIZE + GAP), row * (SIZE + GAP), kind.css))
    rows = max(1, -(-len(cells) // COLUMNS))
    pitch = SIZE + GAP
    return BlockMap(kinds, tuple(cells), per_cell, COLUMNS * pitch - GAP, rows * pitch - GAP)
