"""`tiergate slo rules` and `slo openslo`: the tiers' promises for other tools, as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gateway.cli.options import DatabaseUrl, DataDir, flag, with_ledger
from gateway.cli.output import CommandError, note

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from gateway.slo_rules import RuleOptions
    from tenants.values import TierRecord

RULES_FILE, OPENSLO_FILE = "tiergate.rules.yml", "tiergate.openslo.yml"

Out = Annotated[
    str | None,
    flag(
        "out", "Folder to write the file to; default: standard output.", "DIR", "TIERGATE_SLO_OUT"
    ),
]
Force = Annotated[
    bool, flag("force", "Replace a file that is there already.", None, "TIERGATE_SLO_FORCE")
]
Job = Annotated[
    str,
    flag("job", "The gateway's job in Prometheus' scrape configuration.", "NAME",
         "TIERGATE_SLO_JOB"),
]  # fmt: skip
DocsUrl = Annotated[
    str,
    flag("docs-url", "Where alerts.md is to be read, for the links of alerts.", "URL",
         "TIERGATE_SLO_DOCS_URL"),
]  # fmt: skip


def rules(
    out: Out = None,
    force: Force = False,
    job: Job = "tiergate",
    docs_url: DocsUrl = "docs/alerts.md",
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Make Prometheus rules of the tiers: shares, budgets, burns and alerts, in Sloth's names.

    \b
    What each alert means: docs/alerts.md. Run it again when a tier has changed.
    Examples:
      tiergate slo rules --out /etc/prometheus/rules
      tiergate slo rules --job llm-gateway | promtool check rules
    """
    from gateway.slo_rules_text import rules_text

    text = rules_text(_tiers(database_url, data_dir), _options(job, docs_url))
    _hand_out(text, RULES_FILE, out, force)


def openslo(
    out: Out = None,
    force: Force = False,
    job: Job = "tiergate",
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Write the tiers' promises as OpenSLO v1: one SLO for each tier and objective.

    \b
    Example:
      tiergate slo openslo --out slos
    """
    from gateway.slo_rules_openslo import left_out, openslo_text

    tiers = _tiers(database_url, data_dir)
    for name in left_out(tiers):
        note(f"tier {name} is left out: its objective is 1, and OpenSLO's targets are below it")
    _hand_out(openslo_text(tiers, _options(job, "")), OPENSLO_FILE, out, force)


def _tiers(database_url: str | None, data_dir: str | None) -> list[TierRecord]:
    async def work(ledger: Ledger) -> list[TierRecord]:
        return await ledger.repository.list_tiers()

    return with_ledger(database_url, data_dir, work)


def _options(job: str, docs_url: str) -> RuleOptions:
    from gateway.slo_rules import RuleOptions

    if not job:
        raise CommandError("--job is empty: name the job that scrapes the gateway")
    return RuleOptions(job=job, docs_url=docs_url)


def _hand_out(text: str, name: str, out: str | None, force: bool) -> None:
    """Print the text, or put it into a file that is there whole or not; raises CommandError."""
    from engine.sim.safe_output import OutputError, new_file

    if out is None:
        print(text, end="")
        return
    file = Path(out) / name
    if file.exists() and not force:
        raise CommandError(f"{file} is there already; --force replaces it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as draft:
            draft.write_text(text, encoding="utf-8")
    except OutputError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}") from None
    note(f"written: {file}")
