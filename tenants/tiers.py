"""What a tier may promise, and how an operator says it: `field=value`; it knows no database."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tenants.errors import InvalidValue
from tenants.values import LimiterAway, Overload, TierRecord

MOST_MS = 24 * 3600 * 1000
MOST = 2**31 - 1
# One unit of the currency for a token: the cost of the longest request still fits 63 bits.
MOST_PRICE_NANO = 10**9
PRICES = ("price_prompt_nano", "price_cached_nano", "price_output_nano")
_NONE = "none"


def _whole(text: str) -> int:
    digits = text.removeprefix("-")  # whether it may be below zero is for its bounds to say
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise ValueError("a whole number")
    return int(text)


def _whole_or_none(text: str) -> int | None:
    return None if text.lower() == _NONE else _whole(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number")
    return value


def _overload(text: str) -> Overload:
    try:
        return Overload(text)
    except ValueError:
        raise ValueError("queue, reject or downgrade") from None


def _limiter_away(text: str) -> LimiterAway:
    try:
        return LimiterAway(text)
    except ValueError:
        raise ValueError("local or refuse") from None


# Fields an operator may set, and how each is read.
FIELDS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "rank": _whole,
        "ttft_ms": _whole,
        "ttft_ms_per_1k_prompt_tokens": _whole,
        "tbt_ms": _whole,
        "tbt_mode": str,
        "pace_ms": _whole,
        "objective": _number,
        "weight": _number,
        "max_queue": _whole_or_none,
        "max_output_tokens": _whole_or_none,
        "on_overload": _overload,
        "on_limiter_away": _limiter_away,
        "price_prompt_nano": _whole,
        "price_cached_nano": _whole,
        "price_output_nano": _whole,
    }
)
REQUIRED = ("rank", "ttft_ms", "tbt_ms")


def new_tier(name: str, values: Mapping[str, str]) -> TierRecord:
    """Return a tier of these fields, written as text; what is not named is as in the seeded ones.

    Raises `InvalidValue`, one line, for a field that is missing, unknown or out of bounds.
    """
    missing = [field for field in REQUIRED if field not in values]
    if missing:
        raise InvalidValue(f"a new tier needs {', '.join(f'{field}=...' for field in missing)}")
    plain = TierRecord(
        name=name,
        rank=0,
        ttft_ms=1,
        ttft_ms_per_1k_prompt_tokens=0,
        tbt_ms=1,
        tbt_mode="gap",
        pace_ms=0,
        objective=0.95,
        weight=1.0,
        max_queue=256,
        max_output_tokens=None,
        on_overload=Overload.QUEUE,
        version=0,
    )
    return changed_tier(plain, values)


def changed_tier(tier: TierRecord, values: Mapping[str, str]) -> TierRecord:
    """Return the next version of a tier, with these fields, written as text; raises InvalidValue.

    Fields are checked together, so that two that belong together are changed in one go.
    """
    read: dict[str, Any] = {}
    for field, text in values.items():
        parse = FIELDS.get(field)
        if parse is None:
            raise InvalidValue(f"a tier has no field {field!r} to set; it has: {', '.join(FIELDS)}")
        try:
            read[field] = parse(text.strip())
        except ValueError as error:
            raise InvalidValue(f"{field} must be {error}, not {text!r}") from None
    tier = dataclasses.replace(tier, **read, version=tier.version + 1)
    check_tier(tier)
    return tier


def check_tier(tier: TierRecord) -> None:
    """Raise `InvalidValue` for a tier that promises what makes no sense."""
    _within("rank", tier.rank, 0, 1000)
    _within("ttft_ms", tier.ttft_ms, 1, MOST_MS)
    _within("ttft_ms_per_1k_prompt_tokens", tier.ttft_ms_per_1k_prompt_tokens, 0, MOST_MS)
    _within("tbt_ms", tier.tbt_ms, 1, MOST_MS)
    if tier.tbt_mode not in ("gap", "stream"):
        raise InvalidValue(f"tbt_mode must be gap or stream, not {tier.tbt_mode!r}")
    slowest_ms = tier.tbt_ms * 9 // 10  # the way to the client takes time as well
    if not 0 <= tier.pace_ms <= slowest_ms:
        raise InvalidValue(
            f"pace_ms must be 0 (tokens leave at once) to {slowest_ms}, nine "
            f"tenths of tbt_ms {tier.tbt_ms}, not {tier.pace_ms}: a token held back until it is "
            "due comes late"
        )
    if not 0 < tier.objective <= 1:
        raise InvalidValue(f"objective must be above 0 and at most 1, not {tier.objective:g}")
    if not 0 < tier.weight <= MOST:
        raise InvalidValue(f"weight must be above 0, not {tier.weight:g}")
    for field in PRICES:
        _within(field, getattr(tier, field), 0, MOST_PRICE_NANO)
    for field in ("max_queue", "max_output_tokens"):
        value = getattr(tier, field)
        if value is not None:
            _within(field, value, 1, MOST)


def _within(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidValue(f"{field} must be {least} to {most}, not {value}")
