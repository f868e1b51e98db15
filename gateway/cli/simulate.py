"""`tiergate simulate`: one policy, one rate, one seed in virtual time; the work is engine.sim's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gateway.cli import sim_options as opt
from gateway.cli.output import CommandError
from gateway.cli.sim_options import sim_flag

if TYPE_CHECKING:
    from engine.sim.choices import PolicyChoice
    from engine.sim.faults import Faults

# --fault NAME=VALUE -> field of Faults.
FAULTS = {
    "abort": "abort_share",
    "slow": "slow_share",
    "slow-factor": "slow_factor",
    "error": "error_share",
    "row": "failed_row_share",
    "late-copy": "late_copy_share",
    "late-copy-factor": "late_copy_factor",
    "lost-copy": "lost_copy_share",
    "host-blocks": "num_host_blocks",
}


def simulate(
    trace: opt.Trace,
    policy: Annotated[
        str, sim_flag("policy", "Policy, by name or NAME[key=value;key=value].", "NAME")
    ],
    rate: Annotated[float, sim_flag("rate", "Requests per second.", "R")],
    profile: opt.Profile = opt.DEFAULT_PROFILE,
    requests: opt.Requests = opt.DEFAULT_REQUESTS,
    seed: Annotated[int, sim_flag("seed", "Random seed; default 1.", "S")] = 1,
    tiers: opt.Tiers = None,
    premium_share: opt.PremiumShare = None,
    arrivals: opt.Arrivals = "poisson",
    sigma: opt.Sigma = None,
    predictor: opt.Predictor = None,
    option: Annotated[
        list[str] | None,
        sim_flag("option", "An option of the policy; may be given again.", "KEY=VALUE"),
    ] = None,
    tenants: opt.Tenants = 1,
    scale: opt.Scale = 1.0,
    max_prompt_tokens: opt.MaxPromptTokens = None,
    max_answer_tokens: opt.MaxAnswerTokens = None,
    kv_tokens: opt.KvTokens = None,
    host_tokens: opt.HostTokens = None,
    host_format: opt.HostFormat = "raw",
    context: opt.MaxModelLen = None,
    horizon_s: opt.HorizonS = None,
    fault: Annotated[
        list[str] | None,
        sim_flag("fault", f"{', '.join(FAULTS)}; may be given again.", "NAME=VALUE"),
    ] = None,
    admission: opt.Admission = "off",
    check_laws: opt.CheckLaws = False,
    records: Annotated[
        str | None, sim_flag("records", "Write a line for each request, as .csv.gz.", "FILE")
    ] = None,
    json_out: Annotated[
        str | None, sim_flag("json", "Write the point as JSON; - for stdout.", "FILE")
    ] = None,
) -> None:
    """Simulate one point: the real scheduler in virtual time on a latency profile.

    Prints a table with a line for each tier. Equal arguments give equal results.

    \b
    Examples:
      tiergate simulate --trace chat.csv --policy sarathi --rate 1.2
      tiergate simulate --trace chat.csv --policy 'slai[dynamic=0]' --rate 1.2 --json -
      tiergate simulate --trace chat.csv --policy fcfs --rate 0.8 --fault abort=0.1 --check-laws

    Columns of the trace, fields of the result and all options: docs/simulator.md.
    """
    import contextlib
    import dataclasses

    from engine.sim import comparison
    from engine.sim.safe_output import check_apart, new_file
    from engine.sim.tally import job_of, run_job
    from engine.sim.trace import load_trace
    from gateway.cli.sim_output import show_point

    with opt.refusals(), contextlib.ExitStack() as outputs:
        choice = _choice(policy, option or [])
        base = opt.base_point(
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
            faults=_faults(fault or []),
            admission=admission,
            check_laws=check_laws,
        )
        job = job_of(choice, base, rate, seed)
        comparison.check(job.spec, load_trace(trace))
        check_apart(trace, tiers, records, json_out)
        if records is not None:
            job = dataclasses.replace(job, records=outputs.enter_context(new_file(Path(records))))
        target = None
        if json_out not in (None, "-"):
            target = outputs.enter_context(new_file(Path(json_out)))
        try:
            tally = run_job(job)
        except AssertionError as error:
            raise CommandError(f"a law of the scheduler is broken: {error}") from error
        text = json.dumps(tally.point, indent=2) + "\n"
        if target is not None:
            target.write_text(text, encoding="utf-8")
    if json_out == "-":
        print(text, end="")
    else:
        show_point(tally, job.spec.profile)


def _choice(policy: str, options: list[str]) -> PolicyChoice:
    """Return the policy with the options of the flag added to those in its brackets."""
    from engine.sim.choices import ChoiceError, parse_choice

    choice = parse_choice(policy)
    if not options:
        return choice
    inside = choice.label.removeprefix(choice.name).strip("[]")
    if any(set("[];,") & set(text) for text in options):
        raise ChoiceError("--option: one KEY=VALUE each time")
    return parse_choice(f"{choice.name}[{';'.join([inside, *options])}]")


def _faults(texts: list[str]) -> Faults:
    from engine.sim.choices import parse_option
    from engine.sim.faults import Faults

    values: dict[str, float] = {}
    for text in texts:
        name, value = parse_option(text)
        if name not in FAULTS:
            raise CommandError(f"--fault: {name!r:.40} is none of {', '.join(FAULTS)}")
        try:
            values[FAULTS[name]] = float(value)
        except ValueError:
            raise CommandError(f"--fault: {name} must be a number, not {value!r:.40}") from None
    blocks = values.pop("num_host_blocks", None)
    return Faults(num_host_blocks=None if blocks is None else int(blocks), **values)
