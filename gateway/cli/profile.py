"""`tiergate profile`: measures the engine on this machine; how is for engine.serving.profiling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gateway.cli.options import flag, load_settings
from gateway.cli.output import CommandError, note, print_table

if TYPE_CHECKING:
    from engine.core.latency_profile import LatencyProfile
    from engine.serving.config import EngineConfig
    from gateway.settings import Settings

BUSY_CORES = 0.2  # beyond these, what was measured is the neighbours' doing as well


def profile(
    model: Annotated[
        str | None,
        flag("model", "builtin, a folder, or a Hugging Face id; default builtin.", "MODEL"),
    ] = None,
    device: Annotated[
        str | None, flag("device", "auto, cpu, cuda or cuda:N; default auto.", "DEVICE")
    ] = None,
    out: Annotated[
        str | None,
        flag(
            "out", "File of the profile; default MODEL-DEVICE.json.", "FILE", "TIERGATE_PROFILE_OUT"
        ),
    ] = None,
    quick: Annotated[
        bool, flag("quick", "Fewer steps: rough, in seconds.", None, "TIERGATE_PROFILE_QUICK")
    ] = False,
) -> None:
    """Measure what the engine's steps take here, and write it down as a latency profile.

    The engine runs as `tiergate serve` would start it, with the same variables. Let nothing else
    run meanwhile. What is printed: how far the fitted profile is from the measured steps, for steps
    of decodes alone, prompts alone and both together, and what a step costs.

    \b
    Examples:
      tiergate profile
      tiergate profile --model ~/models/Qwen2.5-0.5B-Instruct --out qwen.json
      tiergate simulate --profile qwen.json --trace chat.csv --policy hybrid --rate 2
    """
    import contextlib

    from engine.sim.safe_output import OutputError, new_file

    settings = load_settings(model=model, device=device)
    if out is not None and not out.endswith(".json"):
        raise CommandError(f"--out {out}: the name of a profile's file ends in .json")
    with contextlib.ExitStack() as files:
        try:
            # That it can be written is found out before the minute of measuring, where it is known.
            target = None if out is None else files.enter_context(new_file(Path(out)))
            found = measure(settings, None if out is None else Path(out).stem, quick=quick)
            path = Path(out or f"{found.name}.json")
            target = target or files.enter_context(new_file(path))
            target.write_text(dump(found), encoding="utf-8")
        except OutputError as error:
            raise CommandError(str(error)) from None
    show(found)
    busy = found.fit["busy_neighbour_cores"]
    if busy is not None and busy > BUSY_CORES:
        note(f"others kept {busy:.1f} cores busy: this is the profile of a busy machine")
    note(f"written to {path}")


def measure(settings: Settings, name: str | None, *, quick: bool) -> LatencyProfile:
    """Measure and fit; raises EngineError with one line where the engine cannot be had."""
    import asyncio

    from engine.serving.profiling import measure as measure_engine
    from engine.serving.step_records import make_profile
    from gateway.cli.serve import engine_config

    config = engine_config(settings)
    progress = _Progress()
    try:
        measured = asyncio.run(measure_engine(config, progress.show, quick=quick))
    finally:
        progress.end()
    if not measured.observations:
        raise CommandError("the engine ran too few steps to tell anything: is the machine busy?")
    found = name or default_name(measured.info.model, measured.info.device)
    return make_profile(measured, found, machine(config))


def default_name(model: str, device: str) -> str:
    """Return a profile's name made of a model's and a device's: letters, digits, dots, dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{model.rsplit('/', 1)[-1]}-{device}").strip("-").lower()


def machine(config: EngineConfig, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the figures were taken on: processor and threads."""
    import platform

    from engine.serving.cores import usable_cores

    processor = platform.processor() or platform.machine()
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() == "model name":
            processor = " ".join(value.split())
            break
    return f"{processor}, {config.threads or usable_cores()} threads"


def dump(found: LatencyProfile) -> str:
    """Return the profile as its file's text."""
    from engine.core.latency_profile import dump_profile

    return dump_profile(found)


def show(found: LatencyProfile) -> None:
    """Print the errors by regime, and the prices that are not zero."""
    rows = [
        [regime, str(error["points"]), *(f"{error[name]:.1%}" for name in ("mean", "p95", "max"))]
        for regime, error in found.fit["error"].items()
    ]
    print_table(["steps of", "points", "mean error", "p95", "max"], rows)
    prices = [
        (found.base_ns, "a step"),
        (found.token_ns, "a token"),
        (found.knee_token_ns, f"a token beyond {found.knee_tokens}"),
        (found.tile_ns, f"a tile of {found.tile_tokens} tokens"),
        (found.row_ns, "a request"),
        (found.prompt_ns, "a step with prompts"),
        (found.decode_kv_ns, "a cached token that a decode reads"),
        (found.pair_ns, "a query-key pair of a prompt"),
        (found.prompt_kv_ns, "a cached token before a prompt chunk"),
        (found.link_ns, "a context on its way to the host, or back"),
        (found.link_out_ns_per_token, "a token of it on its way there"),
        (found.link_in_ns_per_token, "a token of it on its way back"),
        (found.int8_out_ns_per_token, "a token on its way there as int8"),
        (found.int8_in_ns_per_token, "a token on its way back from int8"),
    ]
    print()
    print_table(
        ["microseconds", "for each"],
        [[f"{price / 1000:.4g}", what] for price, what in prices if price],
    )


class _Progress:
    """A bar on a terminal, a line per stage elsewhere, on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(transient=True, console=console) if console.is_terminal else None
        self._stage = ""

    def show(self, stage: str, fraction: float) -> None:
        """Show that `fraction` (0 to 1) of `stage` is done."""
        if self._bar is None:
            if stage != self._stage:
                note(stage)
        elif not self._bar.task_ids:
            self._bar.start()
            self._bar.add_task(stage, total=1.0)
        else:
            self._bar.update(self._bar.task_ids[0], description=stage, completed=fraction)
        self._stage = stage

    def end(self) -> None:
        """Show nothing any more."""
        if self._bar is not None:
            self._bar.stop()
