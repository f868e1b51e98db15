"""The fields of a tier as a form has them: names, units, hints, and to and fro; it asks nobody.

People type the objective in per cent; all else is as the ledger keeps it. What was typed is held
against the version that the form was made from, so that only what somebody really changed is sent:
what others changed meanwhile is not undone unseen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gateway.dashboard.forms import Form
from tenants.values import LimiterAway, Overload, TierRecord

_PERCENT = re.compile(r"[0-9]{1,3}(\.[0-9]{1,10})?")


@dataclass(frozen=True, slots=True)
class Field:
    """One field; `choices` are (value, text) pairs where it is a choice."""

    name: str
    label: str
    hint: str = ""
    unit: str = ""
    required: bool = True
    choices: tuple[tuple[str, str], ...] = ()
    is_decimal: bool = False


PROMISES = (
    Field("ttft_ms", "First token within", "For a prompt of any length.", "ms"),
    Field(
        "ttft_ms_per_1k_prompt_tokens",
        "More per 1,000 prompt tokens",
        "A long prompt takes longer to read.",
        "ms",
    ),
    Field("tbt_ms", "Each later token within", "One in a hundred of an answer may be late.", "ms"),
    Field(
        "tbt_mode",
        "Counted from",
        "Streams may save up time; gaps may not.",
        choices=(
            ("gap", "the token before it"),
            ("stream", "its place in an even stream"),
        ),
    ),
    Field(
        "objective",
        "Share that must meet both",
        "The rest is the error budget.",
        "%",
        is_decimal=True,
    ),
)
SERVICE = (
    Field("rank", "Rank", "0 is served first."),
    Field(
        "on_overload",
        "When a promise cannot be kept",
        "As far as it can be foreseen.",
        choices=(
            (Overload.QUEUE.value, "it waits, and is late"),
            (Overload.REJECT.value, "it is refused, with a hint when to come back"),
            (Overload.DOWNGRADE.value, "it is served and billed as the next lower tier"),
        ),
    ),
    Field(
        "on_limiter_away",
        "While the store of limits is away",
        "docs/limits.md says what that means.",
        choices=(
            (LimiterAway.LOCAL.value, "each worker counts by itself"),
            (LimiterAway.REFUSE.value, "nothing is served that cannot be counted"),
        ),
    ),
    Field("weight", "Weight", "Its part among tiers of one rank.", is_decimal=True),
    Field("pace_ms", "Pace", "Tokens leave no faster than this; 0: at once.", "ms"),
    Field("max_queue", "Most that may wait", "Empty: as many as the gateway takes.", "", False),
    Field("max_output_tokens", "Longest answer", "Empty: as the model allows.", "tokens", False),
)
PRICES = (
    Field(
        "price_prompt_nano", "A prompt token", "1,000 is 1.00 for a million tokens.", "billionths"
    ),
    Field("price_cached_nano", "A cached prompt token", "Out of the prefix cache.", "billionths"),
    Field("price_output_nano", "An output token", "As delivered to the client.", "billionths"),
)
FIELDS = (*PROMISES, *SERVICE, *PRICES)
NAMES = tuple(field.name for field in FIELDS)
LABELS: Mapping[str, str] = {field.name: field.label for field in FIELDS}


def typed(tier: TierRecord) -> dict[str, str]:
    """Return a tier as a form shows it."""
    return {name: text_of(tier, name) for name in NAMES}


def text_of(tier: TierRecord, name: str) -> str:
    """Return one field as it is typed."""
    value = getattr(tier, name)
    if value is None:
        return ""
    if name == "objective":
        return percent(value)
    return f"{Decimal(str(value)).normalize():f}" if isinstance(value, float) else str(value)


def percent(objective: float) -> str:
    """Return a share as it is typed in per cent, with all digits that it has."""
    return f"{(Decimal(str(objective)) * 100).normalize():f}"


def wanted(form: Form, base: TierRecord | None) -> dict[str, Any]:
    """Return the fields that differ from `base`; faults are said at their fields.

    None as a value leaves a bound to the gateway or the model.
    """
    before = {} if base is None else typed(base)
    found: dict[str, Any] = {}
    for field in FIELDS:
        if base is not None and form[field.name] == before[field.name]:
            continue
        if not form[field.name] and field.required:
            if base is not None or field.name in ("rank", "ttft_ms", "tbt_ms"):
                form.wrong(field.name, "This is needed.")
            continue
        value = _value(form, field)
        if field.name not in form.errors:
            found[field.name] = value
    return found


def _value(form: Form, field: Field) -> Any:
    if field.choices:
        return form[field.name]
    if field.name == "objective":
        text = form["objective"]
        if not _PERCENT.fullmatch(text) or Decimal(text) > 100:
            form.wrong("objective", "This must be a share in per cent, such as 95 or 99.5.")
            return None
        return float(Decimal(text) / 100)
    return form.decimal(field.name) if field.is_decimal else form.number(field.name)


def place_fault(form: Form, message: str) -> None:
    """Say a rule of the ledger at the field it begins with, else at the whole form."""
    first = message.split(" ", 1)[0].lower()
    form.wrong(first if first in NAMES else "", message)


def both_changed(form: Form, base: TierRecord, now: TierRecord) -> dict[str, str]:
    """Merge what somebody typed over `base` with what the tier is by now.

    Fields that were not touched become what they are now. Of those that were, it returns what
    others have set meanwhile, as text by name: they are to be looked at again.
    """
    clashes = {}
    for name in NAMES:
        was, is_now = text_of(base, name), text_of(now, name)
        if form[name] == was:
            form.values[name] = is_now
        elif is_now not in (was, form[name]):
            clashes[name] = is_now
    return clashes
