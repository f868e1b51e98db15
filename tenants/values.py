"""What the ledger hands out and takes in: frozen values, never rows; it knows no database.

Times are aware UTC datetimes, durations milliseconds (`_ms`), tokens integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

# The organisation of tenants that were made before there were any, or without naming one. Its id
# has the form of all ids, with a time of zero.
DEFAULT_ORGANISATION_ID = "00000000000070008000000000000000"
DEFAULT_ORGANISATION = "default"


class Overload(StrEnum):
    """What happens to a request whose SLO cannot be met; closed list."""

    QUEUE = "queue"  # it waits and is late
    REJECT = "reject"  # it is refused with a hint when to come back
    DOWNGRADE = "downgrade"  # it is served, and billed, as the next lower tier


class LimiterAway(StrEnum):
    """What happens to a tier's requests while the store of limits does not answer; closed list."""

    LOCAL = "local"  # each worker grants its share of every limit by itself
    REFUSE = "refuse"  # nothing is served that cannot be counted


class Route(StrEnum):
    """What a key may be used for; closed list, one word for each surface of the API."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    MODELS = "models"


class Scope(StrEnum):
    """Whose limit it is; closed list, the narrowest first."""

    KEY = "key"
    TENANT = "tenant"
    ORGANISATION = "organisation"


class Period(StrEnum):
    """The calendar window of a budget, in UTC; a week begins on Monday; closed list."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Unit(StrEnum):
    """What a budget counts; closed list."""

    TOKENS = "tokens"  # of prompts, cached ones too, and of answers
    NANO = "nano"  # billionths of the currency


class Role(StrEnum):
    """What a user of the admin surface may do; closed list, the most powerful first."""

    OWNER = "owner"  # everything, users too
    OPERATOR = "operator"  # everything but users
    VIEWER = "viewer"  # reads everything
    TENANT_VIEWER = "tenant-viewer"  # reads what is one tenant's


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
    `max_output_tokens` an answer; None leaves it to the engine. `version` counts changes. Prices
    are billionths of the currency for one token; cached prompt tokens have a price of their own.
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
    price_prompt_nano: int = 0
    price_cached_nano: int = 0
    price_output_nano: int = 0
    on_limiter_away: LimiterAway = LimiterAway.LOCAL

    def cost_nano(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Return what a request costs, in billionths; `prompt_tokens` includes `cached_tokens`."""
        return (
            (prompt_tokens - cached_tokens) * self.price_prompt_nano
            + cached_tokens * self.price_cached_nano
            + output_tokens * self.price_output_nano
        )


@dataclass(frozen=True, slots=True)
class TierVersion:
    """A tier as it was from `changed_at` on, until its next version; never changed."""

    tier: TierRecord
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something: `kind` is `user`, `token`, `cli` or `system`; for the audit only."""

    name: str
    kind: str = "system"
    address: str = ""
    request_id: str = ""


SYSTEM = Actor("tiergate")


@dataclass(frozen=True, slots=True)
class OrganisationRecord:
    """Who pays: one or more tenants; its limits and budgets hold for all of them together."""

    id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """Who is served, and in which tier; a tenant is disabled, never deleted."""

    id: str
    name: str
    tier: str
    created_at: datetime
    disabled_at: datetime | None = None
    organisation_id: str = DEFAULT_ORGANISATION_ID


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it may be shown: `prefix` and `last4` of it, never the key nor its digest.

    `models` and `scopes` are allow-lists, None for every model and for every route. A key made by
    rotation has the `chain_id` of the key it follows (`rotated_from`); the first key of a chain has
    its own id there. Limits of a key are those of its chain: a rotation gives no second allowance.
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
    scopes: tuple[Route, ...] | None = None
    created_by: str | None = None
    rotated_from: str | None = None
    chain_id: str = ""

    @property
    def display(self) -> str:
        """The form in which people recognise a key: `tgk_live_...x7Qa`."""
        return f"{self.prefix}...{self.last4}"

    def allows(self, model: str) -> bool:
        """True where the key may be used for `model`."""
        return self.models is None or model in self.models

    def may(self, route: Route) -> bool:
        """True where the key may be used for `route`."""
        return self.scopes is None or route in self.scopes

    def is_live(self, now: datetime) -> bool:
        """True while the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be admitted for one owner of limits; None leaves it open, 0 lets nothing through.

    Those of a minute are sliding windows, those of a day calendar days in UTC.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in a calendar window; `alert_percent` of it spent is worth a warning."""

    period: Period
    unit: Unit
    amount: int
    alert_percent: int | None = None


@dataclass(frozen=True, slots=True)
class ScopeLimits:
    """The limits and budgets of one key (by its chain), tenant or organisation.

    With `model` they hold for what is asked of that model, beside those for all models (`""`).
    """

    scope: Scope
    target_id: str
    limits: Limits = Limits()
    budgets: tuple[Budget, ...] = ()
    model: str = ""


@dataclass(frozen=True, slots=True)
class KeyWithTenant:
    """A key, whose it is and what they were promised: all that the door needs to know.

    `limits` are those of the key, its tenant and its organisation, where any are set.
    """

    key: KeyRecord
    tenant: TenantRecord
    tier: TierRecord
    limits: tuple[ScopeLimits, ...] = ()

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
    `cost_nano` follows from the tokens and the prices of `tier_served` at `tier_version`; version
    0, from before tiers had prices, costs nothing.
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
    organisation_id: str = DEFAULT_ORGANISATION_ID
    tier_version: int = 0
    cost_nano: int = 0


@dataclass(frozen=True, slots=True)
class UserRecord:
    """Someone who may use the admin surface; disabled, never deleted; no digest leaves the ledger.

    `tenant_id` is set for the role `tenant-viewer` and for no other.
    """

    id: str
    name: str
    role: Role
    created_at: datetime
    tenant_id: str | None = None
    oidc_subject: str | None = None
    has_password: bool = False
    disabled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A user who has logged in; `authenticated_at` tells how recent that was."""

    user: UserRecord
    authenticated_at: datetime
    seen_at: datetime
    expires_at: datetime
    address: str = ""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change: who, from where, what, before and after, for which request, with what result.

    `before` and `after` hold no secret. `tenant_id` is whose it is, None for what is everybody's.
    """

    number: int
    at: datetime
    actor: str
    actor_kind: str
    address: str
    action: str
    target: str
    target_id: str
    tenant_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str
    result: str
