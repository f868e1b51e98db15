"""Who asks, as the door knows it: a verified key, its tenant, its tier; it verifies nothing."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import datetime

from engine.core.clock import NS_PER_MS
from engine.core.request import Slo, TbtMode
from tenants.values import (
    KeyState,
    KeyWithTenant,
    Route,
    ScopeLimits,
    TenantRecord,
    TierRecord,
)

# What `service_tier` may say, the class served first in front.
PRIORITY, DEFAULT, FLEX = "priority", "default", "flex"
SERVICE_TIERS = (PRIORITY, DEFAULT, FLEX)


def service_tier_name(tier: TierRecord) -> str:
    """Return the OpenAI word for a tier: rank 0 is `priority`, 1 is `default`, all else `flex`."""
    return SERVICE_TIERS[min(tier.rank, len(SERVICE_TIERS) - 1)]


def slo_of(tier: TierRecord, *, stream: bool = True) -> Slo:
    """Return what a tier promises, in the engine's units.

    An answer that is not streamed has no gaps that anyone sees: it is judged by its end alone, as
    the tokens of a stream are judged from the first one, and nothing of it is held back.
    """
    return Slo(
        rank=tier.rank,
        ttft_ns=tier.ttft_ms * NS_PER_MS,
        ttft_ns_per_1k_prompt_tokens=tier.ttft_ms_per_1k_prompt_tokens * NS_PER_MS,
        tbt_ns=tier.tbt_ms * NS_PER_MS,
        tbt_mode=TbtMode(tier.tbt_mode) if stream else TbtMode.STREAM,
        pace_ns=tier.pace_ms * NS_PER_MS if stream else 0,
    )


def cache_salt(secret: bytes, tenant_id: str) -> str:
    """Return the tenant's salt for the prefix cache: HMAC-SHA-256(secret, tenant id)."""
    return hmac.digest(secret, b"tiergate cache salt\0" + tenant_id.encode(), "sha256").hex()


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a verified key. `digest` is how the key is looked up, never shown or logged."""

    found: KeyWithTenant
    digest: str = field(repr=False)
    salt: str = field(repr=False)

    @property
    def key_id(self) -> str:
        """The key's id in the ledger."""
        return self.found.key.id

    @property
    def tenant(self) -> TenantRecord:
        """The tenant; the only source of identity for fairness, billing and caches."""
        return self.found.tenant

    @property
    def tier(self) -> TierRecord:
        """The tier the tenant is entitled to."""
        return self.found.tier

    @property
    def organisation_id(self) -> str:
        """The organisation that pays for the tenant."""
        return self.found.tenant.organisation_id

    @property
    def limits(self) -> tuple[ScopeLimits, ...]:
        """The limits and budgets of the key, its tenant and its organisation, where any are set."""
        return self.found.limits

    def may(self, route: Route) -> bool:
        """True where the key's scopes hold `route`."""
        return self.found.key.may(route)

    def allows(self, model: str) -> bool:
        """True where the key's allow-list holds `model`."""
        return self.found.key.allows(model)

    def opens_door(self, now: datetime) -> bool:
        """True while the key is neither revoked nor expired and its tenant is enabled."""
        return self.found.state(now) is KeyState.ACTIVE
