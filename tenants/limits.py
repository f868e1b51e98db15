"""What a limit or a budget may be, and how an operator says it; it counts nothing.

Amounts stay below 2**53: up to there every store counts exactly, those with floating point too.
Money is written in units of the currency with up to nine decimals, and kept in billionths.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tenants.errors import InvalidValue
from tenants.values import Budget, Limits, Period, Unit

MOST_AMOUNT = 2**53 - 1
NANO = 1_000_000_000
# What an operator types for each limit.
SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "rpm": "requests_per_minute",
        "tpm": "tokens_per_minute",
        "ipm": "input_tokens_per_minute",
        "opm": "output_tokens_per_minute",
        "rpd": "requests_per_day",
        "tpd": "tokens_per_day",
        "concurrent": "concurrent_requests",
    }
)
DIMENSIONS = tuple(field.name for field in dataclasses.fields(Limits))
_UNIT_NAMES = {"tokens": Unit.TOKENS, "money": Unit.NANO}
_BUDGET = re.compile(r"(tokens|money)=([^/]*)/(.*)")
_MONEY = re.compile(r"([0-9]{1,8})(?:\.([0-9]{1,9}))?")


def parse_amount(name: str, text: str) -> int | None:
    """Return a whole number, None for `none`; raises `InvalidValue`."""
    if text.lower() == "none":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise InvalidValue(f"{name} must be a whole number or none, not {text!r}")
    return int(text)


def parse_money(text: str) -> int:
    """Return billionths of the currency for `12.50`; raises `InvalidValue`."""
    parts = _MONEY.fullmatch(text)
    if parts is None:
        raise InvalidValue(f"money is written like 12.50, with up to nine decimals, not {text!r}")
    return int(parts[1]) * NANO + int((parts[2] or "").ljust(9, "0"))


def money(nano: int) -> str:
    """Return billionths of the currency as people write them, with all decimals that count."""
    whole, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{whole}.{decimals}"


def parse_budget(text: str, alert_percent: int | None = None) -> Budget | tuple[Period, Unit]:
    """Read `tokens=5000000/month` or `money=12.50/day`; with `none` for an amount, what to remove.

    Raises `InvalidValue`.
    """
    parts = _BUDGET.fullmatch(text)
    if parts is None:
        raise InvalidValue(
            f"{text!r} is not a budget such as tokens=5000000/month or money=12.50/day"
        )
    try:
        period = Period(parts[3])
    except ValueError:
        raise InvalidValue(f"a budget is for a {_choice(Period)}, not {parts[3]!r}") from None
    unit, amount = _UNIT_NAMES[parts[1]], parts[2]
    if amount.lower() == "none":
        return period, unit
    if unit is Unit.NANO:
        number = parse_money(amount)
    else:
        whole = parse_amount("tokens", amount)
        assert whole is not None, "none was taken above"
        number = whole
    budget = Budget(period, unit, number, alert_percent)
    check_budget(budget)
    return budget


def budget_text(budget: Budget) -> str:
    """Return a budget as `parse_budget` reads it."""
    if budget.unit is Unit.NANO:
        return f"money={money(budget.amount)}/{budget.period}"
    return f"tokens={budget.amount}/{budget.period}"


def check_limits(limits: Limits) -> None:
    """Raise `InvalidValue` for limits that cannot be counted."""
    for name in DIMENSIONS:
        value = getattr(limits, name)
        if value is not None and not 0 <= value <= MOST_AMOUNT:
            raise InvalidValue(f"{name} must be 0 to {MOST_AMOUNT}, not {value}")


def check_budget(budget: Budget) -> None:
    """Raise `InvalidValue` for a budget that cannot be counted."""
    if not 0 <= budget.amount <= MOST_AMOUNT:
        most = money(MOST_AMOUNT) if budget.unit is Unit.NANO else str(MOST_AMOUNT)
        raise InvalidValue(f"a budget of {budget.unit} must be 0 to {most}")
    if budget.alert_percent is not None and not 1 <= budget.alert_percent <= 100:
        raise InvalidValue(f"an alert is at 1 to 100 percent, not {budget.alert_percent}")


def changed_limits(limits: Limits, changes: Mapping[str, int | None]) -> Limits:
    """Return limits with these dimensions changed; raises `InvalidValue`."""
    unknown = [name for name in changes if name not in DIMENSIONS]
    if unknown:
        raise InvalidValue(f"there is no limit {unknown[0]!r}; there are: {', '.join(DIMENSIONS)}")
    changed = dataclasses.replace(limits, **changes)
    check_limits(changed)
    return changed


def changed_budgets(
    budgets: Sequence[Budget], changes: Sequence[Budget | tuple[Period, Unit]]
) -> tuple[Budget, ...]:
    """Return budgets with these put in the place of their like, or removed; raises InvalidValue."""
    kept = {(budget.period, budget.unit): budget for budget in budgets}
    for change in changes:
        if isinstance(change, Budget):
            check_budget(change)
            kept[change.period, change.unit] = change
        else:
            kept.pop(change, None)
    order = {period: place for place, period in enumerate(Period)}
    return tuple(sorted(kept.values(), key=lambda b: (order[b.period], b.unit)))


def _choice(values: type[Period]) -> str:
    names = list(values)
    return f"{', '.join(names[:-1])} or {names[-1]}"
