"""What the ledger hands out and takes in: frozen values, never rows; it knows no database.

Times are aware UTC datetimes, durations milliseconds (`_ms`), tokens integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Overload(StrEnum):
    """What happens to a request whose SLO cannot be met; closed list."""

    QUEUE = "queue"  # it waits and is late
    REJECT = "reject"  # it is refused with a hint when to come back
    DOWNGRADE = "downgrade"  # it is served, and billed, as the next lower tier


class KeyState(StrEnum):
    """Whether a key opens the door; closed list."""

    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"
    TENANT_DISABLED = "tenant_disabled"


@dataclass(frozen=True, slots=True)
class TierRecord:
    """What a tier promises. `rank` 0 is served first; `tbt_mode` is `gap` or `stream`.

    The first token is due `ttft_ms + ttft_ms_per_1k_prompt_tokens * prompt / 1000` after arrival.
    `pace_ms` > 0: tokens are released no faster than that. `objective` is the share of requests
    that must meet both targets. `max_queue` bounds how many of this tier may wait, and
    `max_output_tokens` an answer; None leaves it to the engine. `version` counts changes.
    """

    name: str
    rank: int
    ttft_ms: int
    ttft_ms_per_1k_prompt_tokens: int
    tbt_ms: int
    tbt_mode: str
    pace_ms: int
    objective: float
    weight: float
    max_queue: int | None
    max_output_tokens: int | None
    on_overload: Overload
    version: int


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """Who is served, and in which tier; a tenant is disabled, never deleted."""

    id: str
    name: str
    tier: str
    created_at: datetime
    disabled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it may be shown: `prefix` and `last4` of it, never the key nor its digest.

    `models` is the allow-list, None for every model.
    """

    id: str
    tenant_id: str
    name: str
    prefix: str
    last4: str
    models: tuple[str, ...] | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    @property
    def display(self) -> str:
        """The form in which people recognise a key: `tgk_live_...x7Qa`."""
        return f"{self.prefix}...{self.last4}"

    def allows(self, model: str) -> bool:
        """True where the key may be used for `model`."""
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class KeyWithTenant:
    """A key, whose it is and what they were promised: all that the door needs to know."""

    key: KeyRecord
    tenant: TenantRecord
    tier: TierRecord

    def state(self, now: datetime) -> KeyState:
        """Return whether the key opens the door at `now`."""
        if self.key.revoked_at is not None:
            return KeyState.REVOKED
        if self.key.expires_at is not None and self.key.expires_at <= now:
            return KeyState.EXPIRED
        if self.tenant.disabled_at is not None:
            return KeyState.TENANT_DISABLED
        return KeyState.ACTIVE


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key, in clear for the only time."""

    plaintext: str
    record: KeyRecord

    def __repr__(self) -> str:
        """Show the record only: a secret must not get into a log by way of a value's repr."""
        return f"IssuedKey(plaintext='***', record={self.record!r})"


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One request as it is billed and judged; keyed by `request_id`, so writing twice is harmless.

    `tier_requested` is the tier the key stands for, `tier_served` the one it got and is billed at.
    `prompt_tokens` includes `cached_tokens`; `output_tokens` are those delivered. `ttft_ms` is
    None where no token came, `slo_met` None where the request is not judged (the client left).
    """

    request_id: str
    tenant_id: str
    key_id: str
    tier_requested: str
    tier_served: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str
    stream: bool
    arrival: datetime
    total_ms: float
    ttft_ms: float | None = None
    late_tokens: int = 0
    preemptions: int = 0
    slo_met: bool | None = None
