"""The command `tiergate`: names its sub-commands and turns every failure into one line.

Nothing heavy is imported before a command runs, so `tiergate --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from engine.core.errors import EngineError
from gateway.cli import (
    audit,
    budget,
    capacity,
    chat,
    compare,
    doctor,
    key,
    limit,
    migrate,
    org,
    predict_eval,
    profile,
    replay,
    report,
    serve_command,
    settings_command,
    simulate,
    slo,
    tenant,
    tier,
    usage,
    user,
)
from gateway.cli.output import CommandError, complain
from tenants.errors import LedgerError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C

HELP = """\
A multi-tenant, SLO-aware gateway for large language models.

\b
A first run:
  tiergate doctor                                  is this machine ready?
  tiergate serve --demo                            start, with two demo keys
  tiergate chat --key tgk_live_...                 talk to it from another terminal

\b
Tenants and keys of your own:
  tiergate tenant add acme --tier premium
  tiergate key create --tenant acme --expires-in 90d
  tiergate key rotate tgk_live_...x7Qa --overlap 24h
  tiergate key revoke tgk_live_...x7Qa
  tiergate limit set --tenant acme --rpm 600 --tpm 200000
  tiergate budget set --tenant acme tokens=5000000/month --alert 80

\b
What was used, and who changed what:
  tiergate usage export --since 2026-11-01 --out november.csv
  tiergate usage verify november.csv
  tiergate audit list

\b
Try scheduling policies without a model:
  tiergate simulate --trace lengths.csv --policy sarathi --rate 1.2
  tiergate compare --trace lengths.csv --policies fcfs,sarathi --rates 0.8:2:0.2 --out report
  tiergate capacity --trace lengths.csv --policy sarathi

\b
Play the same load against a real server:
  tiergate replay --trace lengths.csv --url http://... --keys-file keys --rate 1.2 --out measured

Every flag can also be set as a variable; `tiergate COMMAND --help` shows which, and `tiergate
settings` lists them all. Errors are one line on stderr, with exit code 2.
"""


def build_app() -> typer.Typer:
    """Return the command with all its sub-commands."""
    app = typer.Typer(
        help=HELP,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 100},
    )
    app.callback(invoke_without_command=True)(root)
    app.command("serve", short_help="Start the gateway and its engine.")(serve_command.serve)
    app.command("chat", short_help="Talk to a running gateway.")(chat.chat)
    app.command("doctor", short_help="Check that all is well here.")(doctor.doctor)
    app.command("migrate", short_help="Create or update the database.")(migrate.migrate)
    app.command("settings", short_help="List every setting and its value here.")(
        settings_command.settings
    )
    app.command("profile", short_help="Measure what steps take here.")(profile.profile)
    app.command("predict-eval", short_help="Score the length predictor on a file.")(
        predict_eval.predict_eval
    )
    app.command("simulate", short_help="Run one policy in virtual time.")(simulate.simulate)
    app.command("compare", short_help="Compare policies, into a report.")(compare.compare)
    app.command("capacity", short_help="Find the rate a policy can take.")(capacity.capacity)
    app.add_typer(tier.build_app(), name="tier")
    app.command("replay", short_help="Play a workload against a server.")(replay.replay)
    app.command("report", short_help="Lay measured beside simulated.")(report.report)
    app.add_typer(tenant.build_app(), name="tenant")
    app.add_typer(key.build_app(), name="key")
    for name, room in (
        *(("org", org), ("limit", limit), ("budget", budget)),
        *(("usage", usage), ("slo", slo), ("user", user), ("audit", audit)),
    ):
        app.add_typer(room.build_app(), name=name)
    return app


def root(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.")
    ] = False,
) -> None:
    """Say what there is when nothing was asked for."""
    if show_version:
        print(f"tiergate {installed_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def installed_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("tiergate")
    except PackageNotFoundError:
        return "(not installed)"


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    command = typer.main.get_command(build_app())
    try:
        result = command.main(args=list(arguments), prog_name="tiergate", standalone_mode=False)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        complain(error.format_message().rstrip(".") + hint)
        return EXIT_ERROR
    except (CommandError, LedgerError, EngineError) as error:
        complain(str(error))
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader of our output has left, as `head` does; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except (Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
