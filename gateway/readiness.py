"""Could a request that is sent now be answered? Each check by itself, and what follows from all.

A check is `ok`, `degraded` (it hurts, requests are answered) or `failed` (they are not, or what
they use would be lost). A ledger that is away only degrades: known keys are served on, and usage
waits on disk until that is full. Nothing here says anything of any tenant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gateway.limits.breaker import BreakerState
from tenants.values import LimiterAway

if TYPE_CHECKING:
    from gateway.services import Services


class State(StrEnum):
    """Closed list, the worst last."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: `code` says why it is not ok, for machines, and `said` for people."""

    name: str
    state: State = State.OK
    code: str = ""
    said: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the check as JSON has it."""
        why = {} if self.state is State.OK else {"code": self.code}
        return {"state": self.state.value, **why, **self.detail}


def all_checks(services: Services) -> list[Check]:
    """Return every check, whatever its state."""
    return [
        _draining(services),
        _engine(services),
        _database(services),
        _schema(services),
        _usage(services),
        _limits(services),
        _tasks(services),
    ]


def readiness(services: Services) -> dict[str, Any]:
    """Return the answer of `/readyz`: `missing` keeps requests out, `degraded` merely hurts."""
    checks = all_checks(services)
    missing, degraded = summary(checks)
    return {
        "status": "not ready" if missing else "ready",
        "missing": missing,
        "degraded": degraded,
        "checks": {check.name: check.as_dict() for check in checks},
    }


def summary(checks: Sequence[Check]) -> tuple[list[str], list[str]]:
    """Return what keeps the gateway from serving, and what merely hurts, in words."""
    failed = [check.said for check in checks if check.state is State.FAILED]
    return failed, [check.said for check in checks if check.state is State.DEGRADED]


def judge(services: Services) -> tuple[list[str], list[str]]:
    """Return what keeps the gateway from serving, and what merely hurts."""
    return summary(all_checks(services))


def _draining(services: Services) -> Check:
    running = {"open_answers": len(services.live)}
    if services.admission.draining:
        return Check("draining", State.FAILED, "draining", "draining", running)
    return Check("draining", detail=running)


def _engine(services: Services) -> Check:
    host = services.host
    detail = {"restarts": host.restarts}
    if host.is_ready:
        return Check("engine", detail=detail)
    code = "engine_down" if host.started.is_set() else "engine_loading"
    return Check("engine", State.FAILED, code, "engine", detail)


def _database(services: Services) -> Check:
    away_ms = services.ledger_watch.away_ms
    if away_ms is None and services.meter.state.database_ok:
        return Check("database")
    detail = {} if away_ms is None else {"away_ms": away_ms}
    return Check("database", State.DEGRADED, "database_away", "database", detail)


def _schema(services: Services) -> Check:
    if services.ledger_watch.is_other_schema:
        said = "the database has another schema"
        return Check("schema", State.FAILED, "schema_changed", said)
    return Check("schema")


def _usage(services: Services) -> Check:
    meter = services.meter.state
    detail = {
        "buffered": meter.buffered,
        "spooled_bytes": meter.spooled_bytes,
        "lost": meter.lost,
    }
    if not meter.database_ok and meter.nearly_full:
        return Check("usage", State.FAILED, "spool_full", "usage spool is full", detail)
    if meter.lost:
        return Check("usage", State.DEGRADED, "usage_lost", "usage records were lost", detail)
    return Check("usage", detail=detail)


def _limits(services: Services) -> Check:
    if services.desk.limiter.state.state == BreakerState.CLOSED:
        return Check("limits")
    # Where every tier would rather refuse than count by itself, nobody is served.
    refuse = [t.on_limiter_away is LimiterAway.REFUSE for t in services.tiers.current]
    state = State.FAILED if refuse and all(refuse) else State.DEGRADED
    return Check("limits", state, "limiter_away", "limits", {"tiers_refused": sum(refuse)})


def _tasks(services: Services) -> Check:
    failed = services.background.failed
    if not failed:
        return Check("tasks")
    said = ", ".join(f"task {name} failed" for name in failed)
    return Check("tasks", State.FAILED, "task_failed", said, {"failed": failed})
