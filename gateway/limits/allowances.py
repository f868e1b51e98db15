"""Between the ledger and the limiter: whose limits a request has, and what they have used."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from gateway.limits.rules import Allowance, Counted, Rule
from tenants.database import Database
from tenants.spent import used_since
from tenants.values import ScopeLimits

MAX_KEPT = 10_000


class Allowances:
    """Makes the allowances of a request, each once: making one checks it and names its rules."""

    def __init__(self) -> None:
        self._made: dict[ScopeLimits, Allowance] = {}

    def of(self, limits: Iterable[ScopeLimits], model: str) -> tuple[Allowance, ...]:
        """Return those that hold for a request of `model`: of all models, and of this one."""
        return tuple(
            self._one(source) for source in limits if not source.model or source.model == model
        )

    def _one(self, source: ScopeLimits) -> Allowance:
        made = self._made.get(source)
        if made is None:
            while len(self._made) >= MAX_KEPT:
                del self._made[next(iter(self._made))]
            made = self._made[source] = Allowance(source)
        return made


class LedgerSpent:
    """Answers what a rule's owner has used since a moment, from the ledger's usage rows.

    A request counts once, however many choices it has. Rows that a meter has not yet written are
    not in it, nor are requests that leave none.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(self, rule: Rule, since: datetime) -> int:
        """Return it in what the rule counts; raises LedgerError."""
        owner = rule.owner
        used = await used_since(
            self._database, owner.scope, owner.target_id, since, model=owner.model
        )
        return {
            Counted.REQUESTS: used.requests,
            Counted.TOKENS: used.prompt_tokens + used.output_tokens,
            Counted.INPUT: used.prompt_tokens,
            Counted.OUTPUT: used.output_tokens,
            Counted.COST: used.cost_nano,
            Counted.SEATS: 0,
        }[rule.counted]
