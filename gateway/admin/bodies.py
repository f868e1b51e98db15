"""What the admin API takes as bodies; pydantic checks form and bounds, the ledger its own rules."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    ConfigDict,
    Field,
    StringConstraints,
)

from gateway.passwords import MAX_LENGTH, MIN_LENGTH
from gateway.schemas import InputModel
from tenants.limits import MOST_AMOUNT
from tenants.repository.key_changes import MAX_MODEL_NAME, MAX_MODELS_PER_KEY
from tenants.repository.tiers import MOST_TIERS
from tenants.values import Period, Role, Route, Unit

MOST_OVERLAP_S = 90 * 86_400


def _in_calendar(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("it is not within the calendar") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_calendar)]
# No control characters: one database takes no NUL, and no log wants the others.
Plain = StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")
Name = Annotated[str, Plain]
Secret = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LENGTH)]
NewSecret = Annotated[str, StringConstraints(min_length=MIN_LENGTH, max_length=MAX_LENGTH)]
Amount = Annotated[int, Field(ge=0, le=MOST_AMOUNT)]
Models = Annotated[
    list[Annotated[str, Plain, StringConstraints(max_length=MAX_MODEL_NAME)]],
    Field(min_length=1, max_length=MAX_MODELS_PER_KEY),
]
Scopes = Annotated[list[Route], Field(min_length=1, max_length=32)]


class AdminBody(InputModel):
    """The rules every body shares."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were sent, None among them: it may mean something."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class LoginBody(AdminBody):
    """Who logs in."""

    user: Name
    password: Secret


class OwnPasswordBody(AdminBody):
    """Another password of one's own."""

    old: Secret
    new: NewSecret


class OrganisationBody(AdminBody):
    """A new organisation."""

    name: Name


class TenantBody(AdminBody):
    """A new tenant."""

    name: Name
    tier: Name
    organisation: Name = "default"


class TenantChange(AdminBody):
    """What changes of a tenant; what is not sent stays."""

    tier: Name | None = None
    organisation: Name | None = None
    disabled: bool | None = None


class LimitValues(AdminBody):
    """Limits; null takes one away, what is not sent stays."""

    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    input_tokens_per_minute: Amount | None = None
    output_tokens_per_minute: Amount | None = None
    requests_per_day: Amount | None = None
    tokens_per_day: Amount | None = None
    concurrent_requests: Amount | None = None


class BudgetValue(AdminBody):
    """A budget; an amount of null takes it away. `nano` are billionths of the currency."""

    period: Period
    unit: Unit
    amount: Amount | None
    alert_percent: int | None = Field(None, ge=1, le=100)


Budgets = Annotated[list[BudgetValue], Field(min_length=1, max_length=6)]


class KeyBody(AdminBody):
    """A new key."""

    name: Name = "default"
    environment: Literal["live", "test"] = "live"
    expires_at: Moment | None = None
    models: Models | None = None
    scopes: Scopes | None = None
    limits: LimitValues | None = None
    budgets: Budgets | None = None


class KeyChange(AdminBody):
    """What changes of a key; null opens a list or an end, what is not sent stays."""

    name: Name | None = None
    expires_at: Moment | None = None
    models: Models | None = None
    scopes: Scopes | None = None


class RotationBody(AdminBody):
    """How long the old key lives on."""

    overlap_s: int = Field(ge=0, le=MOST_OVERLAP_S)


class RevocationBody(AdminBody):
    """The code that was shown with the keys to close."""

    code: Annotated[str, StringConstraints(min_length=1, max_length=64)]


class LimitsChange(AdminBody):
    """Limits of one target, for all models or for one."""

    limits: LimitValues
    model: Name | None = None


class BudgetsChange(AdminBody):
    """Budgets of one target, for all models or for one."""

    budgets: Budgets
    model: Name | None = None


class TierValues(AdminBody):
    """Fields of a tier; what is not sent stays."""

    rank: int | None = Field(None, ge=0, le=1000)
    ttft_ms: int | None = Field(None, ge=1)
    ttft_ms_per_1k_prompt_tokens: int | None = Field(None, ge=0)
    tbt_ms: int | None = Field(None, ge=1)
    tbt_mode: Literal["gap", "stream"] | None = None
    pace_ms: int | None = Field(None, ge=0)
    objective: float | None = Field(None, gt=0, le=1)
    weight: float | None = Field(None, gt=0)
    max_queue: int | None = Field(None, ge=1)
    max_output_tokens: int | None = Field(None, ge=1)
    on_overload: Literal["queue", "reject", "downgrade"] | None = None
    on_limiter_away: Literal["local", "refuse"] | None = None
    price_prompt_nano: int | None = Field(None, ge=0)
    price_cached_nano: int | None = Field(None, ge=0)
    price_output_nano: int | None = Field(None, ge=0)

    @property
    def as_text(self) -> dict[str, str]:
        """The fields that were sent, as the ledger takes them; null leaves it to the engine."""
        fields = {name: value for name, value in self.given.items() if name in FIELDS_OF_TIERS}
        return {name: "none" if v is None else str(v) for name, v in fields.items()}


FIELDS_OF_TIERS = frozenset(TierValues.model_fields)


class TierBody(TierValues):
    """A new tier; it needs rank, ttft_ms and tbt_ms."""

    name: Name


class TierInSet(TierValues):
    """A tier among several; with `version` it is refused where the tier is at another one."""

    version: int | None = Field(None, ge=1)


class TierSet(AdminBody):
    """Several tiers, set together or not at all; `check`: only say what would change."""

    tiers: Annotated[dict[Name, TierInSet], Field(min_length=1, max_length=MOST_TIERS)]
    check: bool = False


class UserBody(AdminBody):
    """A new user, with a password, an OIDC subject, or both."""

    name: Name
    role: Role
    tenant: Name | None = None
    password: NewSecret | None = None
    oidc_subject: Name | None = None


class UserChange(AdminBody):
    """What changes of a user; `tenant` goes with the role tenant-viewer."""

    role: Role | None = None
    tenant: Name | None = None
    disabled: bool | None = None


class PasswordBody(AdminBody):
    """Another password for a user."""

    password: NewSecret
