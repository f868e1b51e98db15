"""`tiergate compare`: policies at rates with seeds, into a folder; the work is engine.sim's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from gateway.cli import sim_options as opt
from gateway.cli.output import note
from gateway.cli.sim_options import sim_flag


def compare(
    trace: opt.Trace,
    policies: Annotated[
        str,
        sim_flag("policies", "Policies, with commas: NAME or NAME[key=value;key=value].", "LIST"),
    ],
    rates: Annotated[str, sim_flag("rates", "0.8,1.2 or FIRST:LAST:STEP.", "LIST")],
    out: Annotated[str, sim_flag("out", "Folder to write.", "DIR")],
    profile: opt.Profile = opt.DEFAULT_PROFILE,
    seeds: opt.Seeds = "5",
    requests: opt.Requests = opt.DEFAULT_REQUESTS,
    tiers: opt.Tiers = None,
    premium_share: opt.PremiumShare = None,
    arrivals: opt.Arrivals = "poisson",
    sigma: opt.Sigma = None,
    predictor: opt.Predictor = None,
    tenants: opt.Tenants = 1,
    scale: opt.Scale = 1.0,
    max_prompt_tokens: opt.MaxPromptTokens = None,
    max_answer_tokens: opt.MaxAnswerTokens = None,
    kv_tokens: opt.KvTokens = None,
    host_tokens: opt.HostTokens = None,
    host_format: opt.HostFormat = "raw",
    context: opt.MaxModelLen = None,
    horizon_s: opt.HorizonS = None,
    check_laws: opt.CheckLaws = False,
    criterion: opt.Criterion = "slo",
    bisect: Annotated[
        bool, sim_flag("bisect", "Find capacities by bisection, not from the rates; slower.")
    ] = False,
    tolerance: opt.Tolerance = 0.02,
    jobs: opt.Jobs = None,
    title: Annotated[
        str, sim_flag("title", "Heading of the report.", "TEXT")
    ] = "Scheduling policies compared",
    replace: Annotated[
        bool, sim_flag("replace", "Replace an earlier comparison in the folder.")
    ] = False,
) -> None:
    """Compare policies on one workload: a grid of rates and seeds on all cores.

    Writes a folder that appears when all is done: report.html to look at, summary.csv and
    intervals.csv to compute with, points.jsonl, run.json and a file of requests for each point.

    \b
    Examples:
      tiergate compare --trace chat.csv --policies fcfs,sarathi,slai --rates 0.8:2.2:0.2 --out cmp
      tiergate compare --trace chat.csv --policies 'slai,slai[dynamic=0]' --rates 1.2 --out cmp

    Fields and columns: docs/simulator.md.
    """
    from engine.sim import comparison as sim
    from engine.sim.capacity import parse_criterion
    from engine.sim.choices import parse_choices
    from engine.sim.safe_output import new_folder
    from gateway.cli.sim_output import progress_bar, show_comparison, version_text

    with opt.refusals():
        asked = sim.Comparison(
            base=opt.base_point(
                trace=trace,
                profile=profile,
                requests=requests,
                tiers=tiers,
                premium_share=premium_share,
                arrivals=arrivals,
                sigma=sigma,
                predictor=predictor,
                tenants=tenants,
                lengths=opt.read_lengths(scale, max_prompt_tokens, max_answer_tokens),
                num_kv_tokens=kv_tokens,
                num_host_kv_tokens=host_tokens,
                host_format=host_format,
                max_model_len=context,
                horizon_s=horizon_s,
                check_laws=check_laws,
            ),
            choices=parse_choices(policies),
            rates=opt.read_rates(rates),
            seeds=opt.read_seeds(seeds),
            criterion=parse_criterion(criterion),
            search=bisect,
            tolerance=opt.read_tolerance(tolerance),
            jobs=jobs,
            title=title,
            version=version_text(),
        )
        rows = sim.check_all(asked.base, asked.choices, asked.rates, asked.seeds)
        with (
            new_folder(Path(out), replace=replace) as folder,
            progress_bar(f"{len(asked.jobs_of())} points") as progress,
        ):
            report = sim.compare(asked, folder, rows, progress)
    show_comparison(report)
    note(f"written: {Path(out) / 'report.html'}")
