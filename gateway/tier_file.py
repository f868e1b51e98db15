"""Reads a file of tiers (TOML or JSON) into what the ledger is asked to apply; it applies nothing.

The file has one table, `tiers`, with a table for each tier. What is not named stays as it is.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from tenants.errors import InvalidValue
from tenants.repository import WantedTier
from tenants.tiers import FIELDS

MOST_BYTES = 1024 * 1024
VERSION = "version"
EXAMPLE = "[tiers.premium] and below it lines such as ttft_ms = 500"


def read_tiers(text: str, name: str = "") -> list[WantedTier]:
    """Return the tiers of a file; raises `InvalidValue`, one line. `name` ending in .json is JSON.

    Values may be numbers or text; `null` (JSON) and "none" leave a bound to the engine. `version`
    of a tier says which version the change was made for.
    """
    try:
        content = json.loads(text) if name.lower().endswith(".json") else tomllib.loads(text)
    # tomllib has errors of its own kind, JSON has; deep nesting is a RecursionError.
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"the file cannot be read: {error}") from None
    if not isinstance(content, dict) or set(content) != {"tiers"}:
        raise InvalidValue(f"the file must have tiers and nothing else: {EXAMPLE}")
    return wanted_tiers(content["tiers"])


def wanted_tiers(tiers: Any) -> list[WantedTier]:
    """Return `{name: {field: value}}` as the ledger takes it; raises `InvalidValue`."""
    if not isinstance(tiers, Mapping):
        raise InvalidValue(f"tiers must be a table of tables: {EXAMPLE}")
    return [_wanted(name, fields) for name, fields in tiers.items()]


def _wanted(name: str, fields: Any) -> WantedTier:
    if not isinstance(fields, Mapping):
        raise InvalidValue(f"tier {name}: it must be a table of fields: {EXAMPLE}")
    version = fields.get(VERSION)
    if version is not None and (not isinstance(version, int) or isinstance(version, bool)):
        raise InvalidValue(f"tier {name}: version must be a whole number")
    values = {field: value for field, value in fields.items() if field != VERSION}
    if not values:
        raise InvalidValue(f"tier {name}: nothing is set")
    return WantedTier(name, {f: text_of(name, f, v) for f, v in values.items()}, version)


def text_of(tier: str, field: str, value: Any) -> str:
    """Return a value as an operator would type it; raises `InvalidValue`."""
    if field not in FIELDS:
        raise InvalidValue(
            f"tier {tier}: there is no field {field!r}; there are {', '.join(FIELDS)}"
        )
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidValue(f"tier {tier}: {field} must be a number or a word")
    return str(value)
