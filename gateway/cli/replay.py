"""`tiergate replay`: a workload against a real server, judged as the simulator judges.

The playing is gateway.replay's. Everything that can be wrong is found before the first request.
"""

from __future__ import annotations

import json
import secrets
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import sim_options as opt
from gateway.cli.options import flag
from gateway.cli.output import CommandError, note
from gateway.cli.sim_options import sim_flag

if TYPE_CHECKING:
    from engine.core.clock import Clock
    from engine.sim.trace import TraceRow
    from gateway.replay.dialect import Form, Pin
    from gateway.replay.run import Progress, Replay, ReplaySpec, Stage
    from gateway.replay.trial import Known

DEFAULT_BOUND = 512
DEFAULT_TIMEOUT_S = 600.0
MEASURED = "measured"
DEFAULT_LABEL = MEASURED
EXIT_STOPPED = 130
MOST_CONNECTIONS = 20_000
OTHER_FILES = 64  # beside the connections
MOST_FEW_IDS = 15


def replay_flag(name: str, text: str, metavar: str | None = None) -> Any:
    """Return the option `--name`, also read from TIERGATE_REPLAY_NAME."""
    variable = "TIERGATE_REPLAY_" + name.upper().replace("-", "_")
    return typer.Option(
        f"--{name}", envvar=variable, metavar=metavar, help=text, show_default=False
    )


def replay(
    trace: opt.Trace,
    url: Annotated[str, flag("url", "The server, with or without /v1.", "URL")],
    rate: Annotated[float, sim_flag("rate", "Requests per second.", "R")],
    keys: Annotated[
        str | None,
        replay_flag("keys", "premium=KEY,free=KEY; - for none. Better a file.", "LIST"),
    ] = None,
    keys_file: Annotated[
        str | None,
        replay_flag("keys-file", "The same in a file, or the ready file of serve.", "FILE"),
    ] = None,
    requests: opt.Requests = opt.DEFAULT_REQUESTS,
    seed: Annotated[int, sim_flag("seed", "Random seed; default 1.", "S")] = 1,
    tiers: opt.Tiers = None,
    premium_share: opt.PremiumShare = None,
    arrivals: opt.Arrivals = "poisson",
    tenants: opt.Tenants = 1,
    scale: opt.Scale = 1.0,
    max_prompt_tokens: opt.MaxPromptTokens = None,
    max_answer_tokens: opt.MaxAnswerTokens = None,
    model: Annotated[
        str | None, replay_flag("model", "Default: the first one offered.", "NAME")
    ] = None,
    prompts: Annotated[
        str, replay_flag("prompts", "auto, tokens, text or chat; default auto.", "KIND")
    ] = "auto",
    pin: Annotated[
        str,
        replay_flag(
            "pin",
            "Keeps answers as long as the trace's: auto, both, min_tokens, ignore_eos or none.",
            "HOW",
        ),
    ] = "auto",
    token_ids: Annotated[
        str, replay_flag("token-ids", "Range of token ids in prompts; default 300:1999.", "A:B")
    ] = "300:1999",
    concurrency: Annotated[
        int,
        replay_flag("concurrency", f"Most open connections; default {DEFAULT_BOUND}.", "N"),
    ] = DEFAULT_BOUND,
    timeout_s: Annotated[
        float,
        replay_flag("timeout-s", f"From scheduled to whole; default {DEFAULT_TIMEOUT_S:g}.", "S"),
    ] = DEFAULT_TIMEOUT_S,
    label: Annotated[
        str, replay_flag("label", f"Its name in reports; default {DEFAULT_LABEL}.", "NAME")
    ] = DEFAULT_LABEL,
    out: Annotated[str | None, sim_flag("out", "Folder to write, with report.html.", "DIR")] = None,
    records: Annotated[
        str | None, sim_flag("records", "Write a line for each request, as .csv.gz.", "FILE")
    ] = None,
    json_out: Annotated[
        str | None, sim_flag("json", "Write the point as JSON; - for stdout.", "FILE")
    ] = None,
    replace: Annotated[bool, sim_flag("replace", "Replace an earlier run in the folder.")] = False,
) -> int:
    """Play a workload against an OpenAI-compatible server and measure what its clients see.

    The requests, their lengths, tiers and times are those that `tiergate simulate` makes from the
    same arguments. Every one is sent when it is due, however slow the server is, and all times run
    from then. Ctrl-C ends the run and writes what there is.

    \b
    Examples:
      tiergate replay --trace chat.csv --url http://127.0.0.1:8000 --keys-file keys --rate 2
      tiergate replay --trace chat.csv --url ... --keys-file keys --rate 2 --out measured

    How it measures, and how to lay it beside a simulation: docs/replay.md.
    """
    from engine.core.clock import MonotonicClock
    from engine.sim.safe_output import check_apart
    from gateway.cli.replay_output import progress_line, show_replay

    with opt.refusals(), ExitStack() as outputs:
        spec, rows = _spec(
            trace=trace, url=url, keys=keys, keys_file=keys_file, label=label, prompts=prompts,
            pin=pin, model=model, token_ids=token_ids, concurrency=concurrency,
            timeout_s=timeout_s, rate=rate, seed=seed, requests=requests, tiers=tiers,
            premium_share=premium_share, arrivals=arrivals, tenants=tenants,
            lengths=opt.read_lengths(scale, max_prompt_tokens, max_answer_tokens),
        )  # fmt: skip
        check_apart(trace, tiers, keys_file, records, json_out)
        write = _outputs(outputs, out, records, json_out, replace=replace)
        with progress_line(spec.base.requests) as progress:
            found = _run(_play(spec, rows, MonotonicClock(), progress))
        write(spec, rows, found)
    if json_out == "-":
        print(json.dumps(found.point, indent=2))
    else:
        show_replay(found)
    for doubt in found.doubts:
        note(f"doubt: {doubt}")
    if out is not None:
        note(f"written: {Path(out) / 'report.html'}")
    return EXIT_STOPPED if found.measured["stopped_early"] else 0


async def _play(
    spec: ReplaySpec, rows: Sequence[TraceRow], clock: Clock, progress: Progress
) -> Replay:
    """Try the server, say what is to be known, and play until the end or a signal."""

    from gateway.replay.run import Stage, remarks

    stage = Stage(spec, rows, clock)
    try:
        known = await stage.try_server()
        for line in remarks(spec, known, stage.requests):
            note(line)
        return await _until_signal(stage, known, progress)
    finally:
        await stage.close()


async def _until_signal(stage: Stage, known: Known, progress: Progress) -> Replay:
    import asyncio

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        note("stopping: what is open is cut off and counts as unfinished; Ctrl-C again to give up")
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    signals = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            loop.add_signal_handler(number, on_signal)
    try:
        return await stage.play(known, stop, progress)
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _run(work: Coroutine[Any, Any, Replay]) -> Replay:
    """Run on the faster event loop where there is one."""
    import asyncio

    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _spec(
    *,
    url: str,
    keys: str | None,
    keys_file: str | None,
    label: str,
    prompts: str,
    pin: str,
    model: str | None,
    token_ids: str,
    concurrency: int,
    timeout_s: float,
    rate: float,
    seed: int,
    **workload: Any,
) -> tuple[ReplaySpec, Sequence[TraceRow]]:
    """Return what to play, checked, and the trace's rows."""
    import dataclasses

    from engine.sim.comparison import check
    from engine.sim.trace import load_trace
    from gateway.replay.exchange import parse_address
    from gateway.replay.keys import check_tiers, parse_keys, read_keys
    from gateway.replay.run import ReplaySpec
    from gateway.replay.trial import Wish

    if (keys is None) == (keys_file is None):
        raise CommandError("name the keys of the tiers with --keys or --keys-file, not with both")
    found = parse_keys(keys) if keys is not None else read_keys(keys_file or "")
    base = opt.base_point(sigma=None, predictor=None, **workload)
    base = dataclasses.replace(base, policy="fcfs", rate=rate, seed=seed)
    check_tiers(found, [tier.name for tier in base.tiers if tier.share > 0])
    rows = load_trace(base.trace)
    check(base, rows)
    if not 0 < timeout_s <= 86_400:
        raise CommandError(f"--timeout-s: must be above 0 and at most 86400, not {timeout_s:g}")
    first_id, last_id = _token_ids(token_ids)
    spec = ReplaySpec(
        base=base,
        label=_label(label),
        address=parse_address(url),
        keys=found,
        wish=Wish(model, _form(prompts), _pin(pin)),
        bound=_connections(concurrency),
        timeout_s=timeout_s,
        first_id=first_id,
        last_id=last_id,
        salt=secrets.token_hex(8),
    )
    return spec, rows


def _label(text: str) -> str:
    from engine.sim.choices import MOST_LABEL, PolicyChoice

    if not PolicyChoice(text, text).slug or len(text) > MOST_LABEL or not text.isprintable():
        raise CommandError("--label: must be a short name with letters or digits")
    # In every table and plot it must be plain what was measured and what was simulated.
    return text if MEASURED in text.lower() else f"{text} ({MEASURED})"


def _form(text: str) -> Form | None:
    from gateway.replay.dialect import Form

    if text == "auto":
        return None
    if text not in list(Form):
        raise CommandError(f"--prompts: must be auto, {', '.join(Form)}, not {text!r:.40}")
    return Form(text)


def _pin(text: str) -> Pin | None:
    from gateway.replay.dialect import Pin

    if text == "auto":
        return None
    if text not in list(Pin):
        raise CommandError(f"--pin: must be auto, {', '.join(Pin)}, not {text!r:.40}")
    return Pin(text)


def _token_ids(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and len(text) < 20):
        raise CommandError(f"--token-ids: must be FIRST:LAST, not {text!r:.40}")
    if int(last) - int(first) < MOST_FEW_IDS:
        raise CommandError(f"--token-ids: must be a range of more than {MOST_FEW_IDS} ids")
    return int(first), int(last)


def _connections(wanted: int) -> int:
    """Return the bound on connections; the process may then have so many files open."""
    import resource

    if not 1 <= wanted <= MOST_CONNECTIONS:
        raise CommandError(f"--concurrency: must be 1 to {MOST_CONNECTIONS}, not {wanted}")
    need = wanted + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            raise CommandError(
                f"--concurrency: {wanted} connections need {need} open files, and this shell "
                f"allows {hard}: see `ulimit -n`"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    return wanted


def _outputs(
    outputs: ExitStack, out: str | None, records: str | None, json_out: str | None, *, replace: bool
) -> Callable[[ReplaySpec, Sequence[TraceRow], Replay], None]:
    """Open what is to be written, before the run; return what writes it after."""
    from engine.sim.measured import UNSEEN_COLUMNS
    from engine.sim.record_file import write_records
    from engine.sim.safe_output import new_file, new_folder
    from gateway.cli.sim_output import version_text
    from gateway.replay.folder import write_folder

    folder = None if out is None else outputs.enter_context(new_folder(Path(out), replace=replace))
    lines = None if records is None else outputs.enter_context(new_file(Path(records)))
    point = None
    if json_out not in (None, "-"):
        point = outputs.enter_context(new_file(Path(json_out)))

    def write(spec: ReplaySpec, rows: Sequence[TraceRow], found: Replay) -> None:
        if folder is not None:
            write_folder(folder, spec, rows, found, version_text())
        if lines is not None:
            write_records(lines, found.records, unseen=UNSEEN_COLUMNS)
        if point is not None:
            point.write_text(json.dumps(found.point, indent=2) + "\n", encoding="utf-8")

    return write
