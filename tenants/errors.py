"""The ledger's operating errors, drawn as one tree; it knows no HTTP status and no exit code.

LedgerError
├── DatabaseUnavailable    no answer from the database: not reachable, refused, timed out
│   └── DatabaseReadOnly   it answers, but nothing can be written to it
├── SchemaOutdated         the schema's revision is not the one this version of the code expects
├── NotFound               no tenant, tier or key of that name
├── AlreadyExists          a tenant of that name is there already
├── ChangedMeanwhile       it is not at the version that the change was made for
├── InvalidValue           a name, a date or a list that cannot be taken; says why
└── PepperUnusable         the secret that digests are made with is missing, unsafe or the wrong one

Messages are for the operator: one line, what happened and what to do, never a secret. They may
name tables and files, so the door answers its clients in its own words.
"""

from __future__ import annotations


class LedgerError(Exception):
    """Base of every operating error of the ledger."""


class DatabaseUnavailable(LedgerError):
    """The database does not answer; trying again later may help."""


class DatabaseReadOnly(DatabaseUnavailable):
    """The database answers but refuses to be written to."""


class SchemaOutdated(LedgerError):
    """The schema is not at the revision that the code was written for."""


class NotFound(LedgerError):
    """Nothing in the ledger answers to that name."""


class AlreadyExists(LedgerError):
    """The name is taken."""


class ChangedMeanwhile(LedgerError):
    """Someone else has changed it since it was looked at; nothing was changed now."""


class InvalidValue(LedgerError):
    """What was given cannot be stored; nothing was changed."""


class PepperUnusable(LedgerError):
    """The pepper is unreadable, readable by others, or not the one the keys were made with."""
