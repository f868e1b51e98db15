"""The flags that say whose limit is meant: an organisation, a tenant or a key; it looks none up."""

from __future__ import annotations

from typing import Annotated

from gateway.cli.options import flag
from gateway.cli.output import CommandError
from tenants.values import Scope

Org = Annotated[str | None, flag("org", "An organisation, by name or id.", "NAME")]
OfTenant = Annotated[str | None, flag("tenant", "A tenant, by name or id.", "NAME")]
OfKey = Annotated[
    str | None,
    flag(
        "key",
        "A key, by id, as listed (tgk_live_...x7Qa), or whole.",
        "KEY",
        "TIERGATE_LIMIT_KEY",
    ),
]
Model = Annotated[
    str,
    flag("model", "Only what is asked of this model.", "MODEL", "TIERGATE_LIMIT_MODEL"),
]


def target_of(org: str | None, tenant: str | None, key: str | None) -> tuple[Scope, str] | None:
    """Return what the flags name, None where they name nothing; raises CommandError for two."""
    named = {Scope.ORGANISATION: org, Scope.TENANT: tenant, Scope.KEY: key}
    given = [(scope, name) for scope, name in named.items() if name is not None]
    if len(given) > 1:
        raise CommandError("name one of --org, --tenant and --key, not several")
    return given[0] if given else None


def require_target(org: str | None, tenant: str | None, key: str | None) -> tuple[Scope, str]:
    """Return what the flags name; raises CommandError unless it is exactly one."""
    target = target_of(org, tenant, key)
    if target is None:
        raise CommandError("whose? name one of --org, --tenant and --key")
    return target
