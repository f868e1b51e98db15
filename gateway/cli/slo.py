"""`tiergate slo ...`: what was promised and kept, as a report that anyone can check."""

from __future__ import annotations

import typer

from gateway.cli import slo_rules


def build_app() -> typer.Typer:
    """Return the sub-command `slo`."""
    app = typer.Typer(help="What was promised, and what was kept.", rich_markup_mode=None)
    app.command("rules")(slo_rules.rules)
    app.command("openslo")(slo_rules.openslo)
    return app
