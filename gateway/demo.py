"""Two tenants to try things with, one per seeded tier; their keys are kept in a file of the owner.

A key is shown once by the ledger, so a second start could not tell it again: the demo's keys are
the only ones that are also kept in clear, readable by the owner alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from engine.core.clock import utc_now
from gateway.ledger import Ledger
from gateway.private_file import write_private
from tenants.errors import NotFound
from tenants.values import KeyState, TenantRecord

DEMO_TIERS = ("premium", "free")


def demo_keys_file(data_dir: Path) -> Path:
    """Return where the demo's keys are kept."""
    return data_dir / "demo-keys.json"


async def ensure_demo(ledger: Ledger, data_dir: Path) -> dict[str, str]:
    """Return a usable key per demo tier, making tenants and keys where they are missing.

    Returns {} and changes nothing where the ledger has tenants, but not the demo's: somebody's
    real gateway gets no strangers. Raises errors of `tenants.errors` and OSError.
    """
    path = demo_keys_file(data_dir)
    kept = _read(path)
    if kept and all([await _opens(ledger, kept.get(tier, "")) for tier in DEMO_TIERS]):
        return {tier: kept[tier] for tier in DEMO_TIERS}
    tenants = [await _demo_tenant(ledger, tier) for tier in DEMO_TIERS]
    if not any(tenants) and await ledger.repository.list_tenants():
        return {}
    keys: dict[str, str] = {}
    for tier, tenant in zip(DEMO_TIERS, tenants, strict=True):
        if tenant is None:
            tenant = await ledger.repository.create_tenant(f"demo-{tier}", tier, utc_now())
        issued = await ledger.repository.create_key(tenant.id, utc_now(), "demo")
        keys[tier] = issued.plaintext
    write_private(path, json.dumps(keys, indent=2) + "\n")
    return keys


async def _demo_tenant(ledger: Ledger, tier: str) -> TenantRecord | None:
    try:
        return await ledger.repository.get_tenant(f"demo-{tier}")
    except NotFound:
        return None


async def _opens(ledger: Ledger, key: str) -> bool:
    found = await ledger.repository.find_key(key)
    return found is not None and found.state(utc_now()) is KeyState.ACTIVE


def _read(path: Path) -> dict[str, str]:
    """Return the kept keys; a missing or damaged file is as good as none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in kept.items()} if isinstance(kept, dict) else {}
