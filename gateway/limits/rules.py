"""What is counted for whom, made of the ledger's limits and budgets; it counts nothing itself.

The limits of one owner (a key, a tenant, an organisation, each for one model or for all) are an
`Allowance`, which is one `Rule` for each number that is kept. Allowances are made once per
principal and reused: making one checks it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from urllib.parse import quote

from tenants.limits import MOST_AMOUNT, check_budget, check_limits
from tenants.values import Budget, ScopeLimits, Unit

# Lua's numbers are doubles: whole numbers are exact up to here.
MOST = MOST_AMOUNT
MAX_ALLOWANCES = 8
# Part of a key in Redis: a brace would move the hash tag, a space would end a field.
_NAME = re.compile(r"[A-Za-z0-9_.:/@%+~-]{1,300}")


class Dimension(StrEnum):
    """What can be limited; closed list, safe as a metric's label."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    INPUT_TOKENS_PER_MINUTE = "input_tokens_per_minute"
    OUTPUT_TOKENS_PER_MINUTE = "output_tokens_per_minute"
    REQUESTS_PER_DAY = "requests_per_day"
    TOKENS_PER_DAY = "tokens_per_day"
    CONCURRENT_REQUESTS = "concurrent_requests"
    BUDGET = "budget"


class Kind(StrEnum):
    """How a number is kept: over the last minute, per calendar window, or by who holds a seat."""

    SLIDING = "s"
    DAY = "d"
    WEEK = "w"
    MONTH = "m"
    SEATS = "l"


class Counted(IntEnum):
    """What of a request a rule counts: the index of it in `Spend.amounts`."""

    REQUESTS = 0
    TOKENS = 1
    INPUT = 2
    OUTPUT = 3
    COST = 4
    SEATS = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """One number that is kept and its bound. `key` names it within the organisation.

    `alert_at` is the amount spent that is told of: 0 for none, and -1 where spending is not
    tracked apart from reservations. `is_calendar`: it begins and ends by the calendar.
    """

    owner: ScopeLimits
    dimension: Dimension
    kind: Kind
    counted: Counted
    limit: int
    key: str
    alert_at: int = -1
    is_calendar: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_calendar", self.kind in (Kind.DAY, Kind.WEEK, Kind.MONTH))


_PLAIN = (
    (Dimension.REQUESTS_PER_MINUTE, "rpm", Kind.SLIDING, Counted.REQUESTS),
    (Dimension.TOKENS_PER_MINUTE, "tpm", Kind.SLIDING, Counted.TOKENS),
    (Dimension.INPUT_TOKENS_PER_MINUTE, "ipm", Kind.SLIDING, Counted.INPUT),
    (Dimension.OUTPUT_TOKENS_PER_MINUTE, "opm", Kind.SLIDING, Counted.OUTPUT),
    (Dimension.REQUESTS_PER_DAY, "rpd", Kind.DAY, Counted.REQUESTS),
    (Dimension.TOKENS_PER_DAY, "tpd", Kind.DAY, Counted.TOKENS),
    (Dimension.CONCURRENT_REQUESTS, "con", Kind.SEATS, Counted.SEATS),
)


@dataclass(frozen=True, slots=True)
class Allowance:
    """The limits of one owner as rules. Raises InvalidValue or ValueError for what makes no sense.

    `name` is `key:ID`, `tenant:ID` or `organisation:ID`, with `/MODEL` behind it for one model.
    """

    source: ScopeLimits
    name: str = field(init=False)
    rules: tuple[Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        source = self.source
        name = f"{source.scope}:{source.target_id}"
        if source.model:
            name += f"/{quote(source.model, safe='/:@+~')}"
        check_name("the owner of limits", name)
        check_limits(source.limits)
        for budget in source.budgets:
            check_budget(budget)
        rules = [
            Rule(source, dimension, kind, counted, limit, f"{short}:{name}")
            for dimension, short, kind, counted in _PLAIN
            if (limit := getattr(source.limits, dimension.value)) is not None
        ]
        rules.extend(_budget_rule(source, name, budget) for budget in source.budgets)
        if len({rule.key for rule in rules}) < len(rules):
            raise ValueError("an owner has at most one budget for each period and unit")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "rules", tuple(rules))


def most_output(
    rules: Iterable[Rule], prompt_tokens: int, price_prompt_nano: int, price_output_nano: int
) -> int | None:
    """Return how many tokens of answer the rules could grant at most; None where none counts them.

    That is what is left of each whole limit beside the prompt, used or not; it may be below zero.
    """
    room: list[int] = []
    for rule in rules:
        if rule.counted is Counted.TOKENS:
            room.append(rule.limit - prompt_tokens)
        elif rule.counted is Counted.OUTPUT:
            room.append(rule.limit)
        elif rule.counted is Counted.COST and price_output_nano:
            room.append((rule.limit - prompt_tokens * price_prompt_nano) // price_output_nano)
    return min(room, default=None)


def _budget_rule(owner: ScopeLimits, name: str, budget: Budget) -> Rule:
    kind = Kind[budget.period.name]
    counted = Counted.TOKENS if budget.unit is Unit.TOKENS else Counted.COST
    alert_at = 0
    if budget.alert_percent is not None:
        alert_at = max(-(-budget.amount * budget.alert_percent // 100), 1)
    key = f"b{kind.value}{budget.unit.value[0]}:{name}"
    return Rule(owner, Dimension.BUDGET, kind, counted, budget.amount, key, alert_at)


def check_name(what: str, name: str) -> None:
    """Raise ValueError for a name that cannot be part of a key."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{what} must be 1 to 300 of A-Z a-z 0-9 _ . : / @ % + ~ -, not {name!r}")
