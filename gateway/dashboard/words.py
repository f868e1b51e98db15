"""The words in which pages speak of states, limits and scopes: never colour alone; it asks nothing.

`kind` is `good`, `warn`, `bad` or `off`; what a page does with it is its own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from tenants.slo import Budget
from tenants.values import KeyRecord, Period, Route, TenantRecord, Unit, UserRecord

# With less than a quarter of its error budget left a promise is at risk.
AT_RISK = 0.25


@dataclass(frozen=True, slots=True)
class State:
    """A state in words."""

    word: str
    kind: str


LIMIT_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "requests_per_minute": "Requests per minute",
        "tokens_per_minute": "Tokens per minute",
        "input_tokens_per_minute": "Prompt tokens per minute",
        "output_tokens_per_minute": "Output tokens per minute",
        "requests_per_day": "Requests per day (UTC)",
        "tokens_per_day": "Tokens per day (UTC)",
        "concurrent_requests": "Requests at once",
    }
)
SCOPE_LABELS: Mapping[Route, str] = MappingProxyType(
    {
        Route.CHAT: "Chat completions",
        Route.COMPLETIONS: "Completions",
        Route.RESPONSES: "Responses",
        Route.MESSAGES: "Messages (Anthropic)",
        Route.EMBEDDINGS: "Embeddings",
        Route.MODELS: "List of models",
    }
)
PERIOD_LABELS: Mapping[Period, str] = MappingProxyType(
    {
        Period.DAY: "a day (UTC)",
        Period.WEEK: "a week (from Monday, UTC)",
        Period.MONTH: "a calendar month (UTC)",
    }
)
UNIT_LABELS: Mapping[Unit, str] = MappingProxyType({Unit.TOKENS: "Tokens", Unit.NANO: "Money"})
# How long an old key lives on beside its successor.
OVERLAPS: Mapping[str, str] = MappingProxyType(
    {
        "0": "not at all: it ends now",
        "3600": "1 hour",
        "86400": "1 day",
        "604800": "7 days",
        "2592000": "30 days",
    }
)


def state_of_key(key: KeyRecord, tenant: TenantRecord | None, now: datetime) -> State:
    """Return whether a key opens the door, and how long yet."""
    if key.revoked_at is not None:
        return State("revoked", "bad")
    if key.expires_at is not None and key.expires_at <= now:
        return State("expired", "off")
    if tenant is not None and tenant.disabled_at is not None:
        return State("tenant disabled", "warn")
    if key.expires_at is not None:
        return State("active, ends", "good")
    return State("active", "good")


def state_of_tenant(tenant: TenantRecord) -> State:
    """Return whether a tenant is served."""
    return State("enabled", "good") if tenant.disabled_at is None else State("disabled", "bad")


def state_of_user(user: UserRecord) -> State:
    """Return whether a user may log in."""
    if user.disabled_at is not None:
        return State("shut out", "bad")
    ways = [
        way
        for way, is_there in (("password", user.has_password), ("OIDC", bool(user.oidc_subject)))
        if is_there
    ]
    if not ways:
        return State("has no way to log in", "warn")
    return State(f"logs in by {' or '.join(ways)}", "good")


def standing(budget: Budget) -> State:
    """Return how an objective stands, in words."""
    if budget.is_met is None:
        return State("no requests", "off")
    if not budget.is_met:
        return State("missed", "bad")
    left = budget.left
    return State("at risk", "warn") if left is not None and left < AT_RISK else State("met", "good")
