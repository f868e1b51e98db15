"""`tiergate capacity`: the largest rate at which every tier meets its objective, by bisection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from gateway.cli import sim_options as opt
from gateway.cli.output import CommandError
from gateway.cli.sim_options import sim_flag


def capacity(
    trace: opt.Trace,
    policy: Annotated[
        str,
        sim_flag("policy", "Policies, with commas: NAME or NAME[key=value;key=value].", "LIST"),
    ],
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
    check_laws: opt.CheckLaws = False,
    criterion: opt.Criterion = "slo",
    tolerance: opt.Tolerance = 0.02,
    start: Annotated[
        float, sim_flag("start", "Rate to begin the search at; default 1.", "R")
    ] = 1.0,
    lowest: Annotated[float, sim_flag("lowest", "Lowest rate to try; default 0.01.", "R")] = 0.01,
    highest: Annotated[
        float, sim_flag("highest", "Highest rate to try; default 1000.", "R")
    ] = 1000.0,
    jobs: opt.Jobs = None,
    json_out: Annotated[
        str | None, sim_flag("json", "Write the result as JSON; - for stdout.", "FILE")
    ] = None,
) -> None:
    """Find the largest rate at which every tier meets its objective.

    Bisects on a grid of rates a tolerance apart, judging the mean over all seeds; then for every
    seed alone, which gives the interval.

    \b
    Examples:
      tiergate capacity --trace chat.csv --policy sarathi,slai
      tiergate capacity --trace chat.csv --policy sarathi --criterion ttft-p50:500 --json -
    """
    import contextlib

    from engine.sim import comparison as sim
    from engine.sim.capacity import parse_criterion
    from engine.sim.choices import parse_choices
    from engine.sim.safe_output import check_apart, new_file
    from gateway.cli.sim_output import progress_bar, show_capacities, version_text

    if not 1e-3 <= lowest <= start <= highest <= 1e5:
        raise CommandError("--lowest, --start, --highest: must ascend, within 0.001 to 100000")
    with opt.refusals(), contextlib.ExitStack() as outputs:
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
                check_laws=check_laws,
            ),
            choices=parse_choices(policy),
            rates=[start],
            seeds=opt.read_seeds(seeds),
            criterion=parse_criterion(criterion),
            tolerance=opt.read_tolerance(tolerance),
            jobs=jobs,
            version=version_text(),
        )
        rows = sim.check_all(asked.base, asked.choices, asked.rates, asked.seeds)
        check_apart(trace, tiers, json_out)
        target = None
        if json_out not in (None, "-"):
            target = outputs.enter_context(new_file(Path(json_out)))
        with progress_bar("points") as progress:
            found = sim.search(asked, progress, start=start, lowest=lowest, highest=highest)
        text = json.dumps(sim.capacity_report(asked, rows, found), indent=2) + "\n"
        if target is not None:
            target.write_text(text, encoding="utf-8")
    if json_out == "-":
        print(text, end="")
    else:
        show_capacities(found, asked.criterion.text)
