"""`tiergate settings`: every setting with its value in force here; secrets are not shown."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from gateway.cli.options import AsJson, load_settings
from gateway.cli.output import print_json, print_table


def settings(as_json: AsJson = False) -> None:
    """List every setting: its variable, its value in this environment, and what it is for.

    Flags of `tiergate serve` outrank what is shown here. `-` means: chosen at start-up, or off.

    \b
    Example:
      TIERGATE_MAX_QUEUE=100 tiergate settings
    """
    from gateway.push_settings import PushSettings
    from gateway.settings import ENV_PREFIX, Settings
    from tenants.database import display_name, parse_url

    current = load_settings()
    rows = []
    for name in own_first(Settings.model_fields, PushSettings.model_fields):
        field = Settings.model_fields[name]
        value: Any = getattr(current, name)
        if name == "database_url":
            # As the ledger names itself in messages: without the password.
            value = display_name(parse_url(value))
        rows.append([ENV_PREFIX + name.upper(), _shown(value), field.description or ""])
    if as_json:
        keys = ("variable", "value", "description")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    print_table(["variable", "value", "what it is"], rows)


def own_first(names: Iterable[str], inherited: Container[str]) -> list[str]:
    """Return settings in the order of their groups: inherited ones come last."""
    return sorted(names, key=lambda name: name in inherited)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)  # a secret's text is asterisks
