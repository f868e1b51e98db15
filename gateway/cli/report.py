"""`tiergate report`: folders of compare and replay on one page; the work is engine.sim's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import sim_options as opt
from gateway.cli.output import CommandError, note
from gateway.cli.sim_options import sim_flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.sim.stored import StoredRun


def report(
    folders: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="Folders of compare and replay.")
    ],
    out: Annotated[str, sim_flag("out", "Folder to write.", "DIR")],
    criterion: opt.Criterion = "slo",
    title: Annotated[
        str, sim_flag("title", "Heading of the report.", "TEXT")
    ] = "Measured and simulated",
    replace: Annotated[
        bool, sim_flag("replace", "Replace an earlier report in the folder.")
    ] = False,
) -> None:
    """Lay simulated and measured points of one workload side by side, in one report.

    Takes the folders that `tiergate compare` and `tiergate replay --out` wrote; trace, lengths,
    requests, arrivals, tenants and tiers must be the same in all of them.

    \b
    Example:
      tiergate report simulated measured --out both
    """
    import shutil

    from engine.sim.capacity import capacities_of, parse_criterion
    from engine.sim.report import write_report
    from engine.sim.report_page import Report
    from engine.sim.safe_output import new_folder
    from engine.sim.stored import load_run, side_by_side
    from gateway.cli.sim_output import show_comparison

    with opt.refusals():
        judged_by = parse_criterion(criterion)
        runs = [load_run(Path(folder)) for folder in folders]
        tallies = side_by_side(runs)
        facts, fields = _readable(runs)
        made = Report(
            title=title,
            facts=facts,
            tiers=runs[0].tiers,
            tallies=tallies,
            capacities=capacities_of(tallies, judged_by),
            criterion=judged_by,
            capacity_is_searched=False,
        )
        with new_folder(Path(out), replace=replace) as folder:
            (folder / "records").mkdir()
            for run in runs:
                for row in run.tallies:
                    shutil.copyfile(
                        run.records_of(row), folder / "records" / run.records_of(row).name
                    )
            write_report(folder, made, fields)
    show_comparison(made)
    note(f"written: {Path(out) / 'report.html'}")


def _readable(runs: Sequence[StoredRun]) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Return head and fields; CommandError for fields that hold what no command writes there."""
    try:
        return _facts(runs), _run_fields(runs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = ", ".join(str(run.path) for run in runs)
        raise CommandError(
            f"{where}: a run.json is not as compare and replay write it: "
            f"{type(error).__name__} {error}"
        ) from error


def _facts(runs: Sequence[StoredRun]) -> list[tuple[str, str]]:
    """Return the head of the page: the workload, then each folder's own."""
    from engine.sim.comparison import promise
    from gateway.replay.folder import server_facts

    run = runs[0].run
    trace = run["trace"]
    facts = [
        ("trace", f"{trace['name']}, {trace['rows']:,} rows, sha256 {trace['sha256'][:16]}"),
        ("requests a point", f"{run['requests']:,}"),
        ("arrivals", str(run["arrivals"])),
    ]
    for one in runs:
        labels = ", ".join(dict.fromkeys(row.label for row in one.tallies))
        if not one.measured:
            facts.append(
                ("simulated", f"{labels}; profile {one.run['profile']}, predictor "
                 f"{one.run['predictor']}, {one.run['version']}")
            )  # fmt: skip
        for label, measured in one.measured.items():
            facts.append(("measured", label))
            facts += server_facts(measured, run["requests"])
    return [*facts, *[(f"tier {tier.name}", promise(tier)) for tier in runs[0].tiers]]


def _run_fields(runs: Sequence[StoredRun]) -> dict[str, Any]:
    """Return the fields of `run.json`: the workload, and all that the folders say of themselves."""
    from engine.sim.stored import WORKLOAD

    keys = [(row.label, row.rate, row.seed) for run in runs for row in run.tallies]
    measured: dict[str, Any] = {}
    for run in runs:
        for label, found in run.measured.items():
            if label in measured and measured[label] != found:
                # Several rates of one server: each point says for itself how it was measured.
                continue
            measured[label] = found
    first = runs[0].run
    return {
        **{field: first[field] for field in WORKLOAD},
        "version": first["version"],
        "profile": None,
        "predictor": None,
        "policies": [policy for run in runs for policy in run.run["policies"]],
        "rates": sorted({rate for _, rate, _ in keys}),
        "seeds": sorted({seed for _, _, seed in keys}),
        "measured": measured,
        "sources": [run.run for run in runs],
    }
