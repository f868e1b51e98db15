"""What the ledger is asked, in one object made of its parts; values in, values out, no rows.

Every change writes who made it into the audit, in the same transaction. Every change that a cache
of keys must notice also raises one counter there, so that a gateway learns of it with one cheap
read (`keys_version`), on SQLite as on Postgres.
"""

from __future__ import annotations

from tenants.repository.allowances import Allowances
from tenants.repository.audit import Audits, Change
from tenants.repository.common import CHANNEL, KEYS_COUNTER
from tenants.repository.key_changes import KEEP, Keep
from tenants.repository.keys import TOUCH_INTERVAL, Keys, RevocationPlan, Rotation
from tenants.repository.tenants import Tenants
from tenants.repository.tiers import TierPlan, Tiers, WantedTier
from tenants.repository.users import Users

__all__ = [
    "CHANNEL",
    "KEEP",
    "KEYS_COUNTER",
    "TOUCH_INTERVAL",
    "Change",
    "Keep",
    "Repository",
    "RevocationPlan",
    "Rotation",
    "TierPlan",
    "WantedTier",
]


class Repository(Tiers, Tenants, Keys, Allowances, Users, Audits):
    """Reads and changes everything in the ledger of one database but the usage."""
