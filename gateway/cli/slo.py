"""`tiergate slo ...`: what was promised and kept, as a report that anyone can check."""

from __future__ import annotations

import typer


def build_app() -> typer.Typer:
    """Return the sub-command `slo`."""
    return typer.Typer(help="What was promised, and what was kept.", rich_markup_mode=None)
