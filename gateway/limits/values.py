"""What is asked of the limiter and what it answers: frozen values; they decide nothing.

Times are microseconds (`_us`), moments those since 1970 UTC by the clock of the store that decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from gateway.limits.rules import MAX_ALLOWANCES, MOST, Allowance, Dimension, Rule, check_name

US_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Spend:
    """What one request takes, or has taken; `cost_nano` in nano-units of the currency."""

    requests: int = 1
    prompt_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0

    def __post_init__(self) -> None:
        for amount in (self.requests, self.prompt_tokens, self.output_tokens, self.cost_nano):
            if not 0 <= amount <= MOST // 2:
                raise ValueError(f"an amount must be 0 to {MOST // 2}, not {amount}")

    @property
    def tokens(self) -> int:
        """Prompt and answer together; a cached prompt token counts like any other."""
        return self.prompt_tokens + self.output_tokens

    def amounts(self, *, seats: int) -> tuple[int, ...]:
        """Return the amount of each `Counted`; `seats` is 1 while the request runs, 0 after it."""
        return (
            self.requests,
            self.tokens,
            self.prompt_tokens,
            self.output_tokens,
            self.cost_nano,
            seats,
        )


NOTHING = Spend(requests=0)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request before it is let in. All of its rules hold together, or it is refused.

    `id` is never used twice. `group` is the organisation: whatever its requests share is kept
    together, and an allowance is of one group. `most` is what the request can take at most:
    the prompt, and all the tokens it may be answered with.
    """

    id: str
    group: str
    allowances: tuple[Allowance, ...]
    most: Spend
    rules: tuple[Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_name("a request's id", self.id)
        check_name("an organisation's id", self.group)
        names = {allowance.name for allowance in self.allowances}
        if len(self.allowances) > MAX_ALLOWANCES or len(names) < len(self.allowances):
            raise ValueError(f"a request has at most {MAX_ALLOWANCES} allowances, each once")
        rules = tuple(rule for allowance in self.allowances for rule in allowance.rules)
        object.__setattr__(self, "rules", rules)

    def costs(self) -> tuple[int, ...]:
        """Return what each rule is to reserve."""
        amounts = self.most.amounts(seats=1)
        return tuple(amounts[rule.counted] for rule in self.rules)

    def taken(self, spent: Spend) -> tuple[int, ...]:
        """Return what each rule keeps of it once the request is over and has taken `spent`."""
        amounts = spent.amounts(seats=0)
        return tuple(amounts[rule.counted] for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rule stands: `used` of its limit, and when all of that has left.

    `wait_us` is when the ask it was read for fits: 0 now, None never as things are.
    """

    rule: Rule
    used: int
    reset_us: int
    wait_us: int | None

    @property
    def remaining(self) -> int:
        """What is left of the limit; a limit lowered below what is used has nothing left."""
        return max(self.rule.limit - self.used, 0)


# Of each rule: used, microseconds until the ask fits (0 now, NEVER), microseconds until empty.
Reading: TypeAlias = tuple[int, int, int]
NEVER = -1


@dataclass(frozen=True, slots=True)
class _Verdict:
    ask: Ask
    readings: tuple[Reading, ...]
    at_us: int
    # Where a worker counts by itself: the limits it counts against, else None.
    limits: tuple[int, ...] | None = None

    @property
    def is_local(self) -> bool:
        """True where this worker decided by itself, its store being away."""
        return self.limits is not None

    def standings(self) -> Iterator[Standing]:
        """Yield where every rule stands, this ask included where it was let in."""
        for index, (rule, reading) in enumerate(zip(self.ask.rules, self.readings, strict=True)):
            used, wait_us, reset_us = reading
            shown = rule if self.limits is None else replace(rule, limit=self.limits[index])
            yield Standing(shown, used, reset_us, None if wait_us == NEVER else wait_us)


@dataclass(frozen=True, slots=True)
class Grant(_Verdict):
    """The request is let in; `Limiter.settle` or `Limiter.release` must follow, once."""


@dataclass(frozen=True, slots=True)
class Denial(_Verdict):
    """The request is refused, and nothing was reserved."""

    def blocked_by(self) -> Standing:
        """Return the rule that holds it up longest; among equals the first one's."""
        held = [standing for standing in self.standings() if standing.wait_us != 0]
        return max(held, key=lambda s: float("inf") if s.wait_us is None else s.wait_us)

    @property
    def wait_us(self) -> int | None:
        """When the very same ask would fit if nobody else came; None for never.

        Of a seat that is an estimate: it becomes free when someone is done.
        """
        return self.blocked_by().wait_us

    @property
    def is_budget(self) -> bool:
        """True where a budget is spent: coming back soon does not help."""
        return self.blocked_by().rule.dimension is Dimension.BUDGET


@dataclass(frozen=True, slots=True)
class Away:
    """Neither let in nor refused by a limit: the store is away, and the tier refuses then."""

    ask: Ask
    retry_after_ms: int


Verdict: TypeAlias = Grant | Denial | Away


@dataclass(frozen=True, slots=True)
class Alert:
    """A budget of which the share to tell of is spent; told once per window by one worker."""

    group: str
    rule: Rule


@dataclass(frozen=True, slots=True)
class Sum:
    """Requests, tokens and cost of many asks together."""

    requests: int = 0
    tokens: int = 0
    cost_nano: int = 0

    def __add__(self, other: Sum) -> Sum:
        return Sum(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.cost_nano + other.cost_nano,
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """What a group ever reserved and what became of it (law L47).

    reserved = settled + released + open, in requests, in tokens and in cost, at any time. `lapsed`
    is the part of `settled` that nobody settled: its worker died, and it was taken in full.
    """

    reserved: Sum
    settled: Sum
    released: Sum
    open: Sum
    lapsed: Sum

    @property
    def balanced(self) -> bool:
        """True where the law holds."""
        return self.reserved == self.settled + self.released + self.open
