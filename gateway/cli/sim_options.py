"""Flags that the simulator's commands share, and how they become a point; it runs nothing.

The simulator is imported late: `--help` is fast. What is wrong becomes one line that names the
flag, the field or the row.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import CommandError

if TYPE_CHECKING:
    from engine.sim.lengths import Lengths
    from engine.sim.point import PointSpec
    from engine.sim.workload import SimTier

DEFAULT_PROFILE = "mistral-7b-rtx6000ada"
DEFAULT_REQUESTS = 2500
DEFAULT_SIGMA = 0.4
DEFAULT_PREMIUM_SHARE = 0.05
MOST_LIST = 1000


def sim_flag(name: str, text: str, metavar: str | None = None) -> Any:
    """Return the option `--name`, also read from TIERGATE_SIM_NAME."""
    variable = "TIERGATE_SIM_" + name.upper().replace("-", "_")
    # The line of help tells the default itself, in the words of the other commands.
    return typer.Option(
        f"--{name}", envvar=variable, metavar=metavar, help=text, show_default=False
    )


Trace = Annotated[
    str,
    sim_flag("trace", "CSV file, plain or .gz, with input_tokens and output_tokens.", "FILE"),
]
Profile = Annotated[
    str, sim_flag("profile", f"Latency profile, by name or file; default {DEFAULT_PROFILE}.", "P")
]
Requests = Annotated[
    int, sim_flag("requests", f"Requests offered; default {DEFAULT_REQUESTS}.", "N")
]
Tiers = Annotated[
    str | None, sim_flag("tiers", "JSON file of tiers; default: premium and free.", "FILE")
]
PremiumShare = Annotated[
    float | None,
    sim_flag("premium-share", f"Share of premium requests; default {DEFAULT_PREMIUM_SHARE}.", "X"),
]
Arrivals = Annotated[
    str,
    sim_flag(
        "arrivals",
        "poisson, gamma:CV, trace (as recorded) or trace+jitter:SECONDS; default poisson.",
        "KIND",
    ),
]
Sigma = Annotated[
    float | None,
    sim_flag("sigma", f"Log-normal error of predicted lengths; default {DEFAULT_SIGMA}.", "X"),
]
Predictor = Annotated[
    str | None,
    sim_flag(
        "predictor",
        "Instead of --sigma: oracle, noisy:SIGMA, histogram:FILE, liar, constant:N, history, "
        "learned or learned:N.",
        "KIND",
    ),
]
Tenants = Annotated[
    int, sim_flag("tenants", "Tenants, where the trace names none; default 1.", "N")
]
Scale = Annotated[
    float, sim_flag("scale", "Prompts and answers are so many times as long; default 1.", "X")
]
MaxPromptTokens = Annotated[
    int | None, sim_flag("max-prompt-tokens", "Longer prompts are cut.", "N")
]
MaxAnswerTokens = Annotated[
    int | None, sim_flag("max-answer-tokens", "Longer answers are cut.", "N")
]
KvTokens = Annotated[
    int | None, sim_flag("kv-tokens", "KV cache of the device; default: the profile's.", "N")
]
HostTokens = Annotated[
    int | None, sim_flag("host-tokens", "KV cache of the host; default: the profile's.", "N")
]
HostFormat = Annotated[
    str, sim_flag("host-format", "How the host keeps contexts: raw or int8; default raw.", "F")
]
MaxModelLen = Annotated[
    int | None, sim_flag("context", "Longest prompt plus answer; default: the profile's.", "N")
]
HorizonS = Annotated[
    float | None,
    sim_flag("horizon-s", "Stop after so many simulated seconds; default: when all ended.", "S"),
]
CheckLaws = Annotated[
    bool, sim_flag("check-laws", "Assert the scheduler's laws after every step; slower.")
]
Admission = Annotated[
    str,
    sim_flag("admission", "The door in front: off (default), shadow, soft or hard.", "MODE"),
]
Jobs = Annotated[int | None, sim_flag("jobs", "Points to run at once; default: one per core.", "N")]
Criterion = Annotated[
    str,
    sim_flag(
        "criterion",
        "What must hold for a rate to count: slo, ttft-p50:MS or normalised:MS; default slo.",
        "KIND",
    ),
]
Seeds = Annotated[
    str, sim_flag("seeds", "How many (5 means 1 to 5), or which: 1,2,3; default 5.", "N|LIST")
]
Tolerance = Annotated[
    float, sim_flag("tolerance", "How fine the search is, relative; default 0.02.", "X")
]


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the simulator refuses into one line for the operator."""
    from engine.sim.grid import GridError
    from engine.sim.safe_output import OutputError

    try:
        with _stoppable():
            yield
    except (ValueError, GridError, OutputError) as error:
        raise CommandError(str(error)) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM leave as an exception does: workers end, half-written files vanish."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def read_tiers(file: str | None, premium_share: float | None) -> tuple[SimTier, ...]:
    """Return the tiers of the file, or the two seeded ones with this share of premium."""
    import dataclasses

    from engine.sim.tiers import DEFAULT_TIERS, load_tiers

    if file is not None:
        if premium_share is not None:
            raise CommandError("--premium-share: the shares are those of the file of --tiers")
        return load_tiers(file)
    share = DEFAULT_PREMIUM_SHARE if premium_share is None else premium_share
    if not 0 <= share <= 1:
        raise CommandError(f"--premium-share: must be from 0 to 1, not {share:g}")
    premium, free = DEFAULT_TIERS
    return (
        dataclasses.replace(premium, share=share),
        dataclasses.replace(free, share=1 - share),
    )


def read_lengths(scale: float, max_prompt: int | None, max_answer: int | None) -> Lengths:
    """Return how the trace's requests are shortened."""
    from engine.sim.lengths import Lengths

    return Lengths(scale, max_prompt, max_answer)


def read_predictor(sigma: float | None, predictor: str | None) -> str:
    """Return the predictor's description from the two flags that may name it."""
    if predictor is not None:
        if sigma is not None:
            raise CommandError("--sigma and --predictor say the same; give one")
        return predictor
    sigma = DEFAULT_SIGMA if sigma is None else sigma
    if not 0 <= sigma <= 10:
        raise CommandError(f"--sigma: must be from 0 to 10, not {sigma:g}")
    return f"noisy:{sigma:g}" if sigma else "oracle"


def base_point(
    *,
    tiers: str | None,
    premium_share: float | None,
    sigma: float | None,
    predictor: str | None,
    **fields: Any,
) -> PointSpec:
    """Return what all points of a command share; policy, rate and seed are still to be set."""
    from engine.sim.point import PointSpec

    return PointSpec(
        policy="",
        rate=1.0,
        tiers=read_tiers(tiers, premium_share),
        predictor=read_predictor(sigma, predictor),
        **fields,
    )


def read_seeds(text: str) -> list[int]:
    """Return 1 to N for a single number, else the numbers that are listed."""
    parts = [part.strip() for part in text.split(",")]
    listed = len(parts) > 1
    numbers = [part for part in parts if part]
    if not numbers or not all(part.isdecimal() and len(part) < 10 for part in numbers):
        raise CommandError(f"--seeds: must be a number or a list such as 1,2,3, not {text!r:.40}")
    seeds = list(dict.fromkeys(int(part) for part in numbers))
    if not listed:
        seeds = list(range(1, seeds[0] + 1))
    if not 1 <= len(seeds) <= MOST_LIST:
        raise CommandError(f"--seeds: there must be 1 to {MOST_LIST} of them, not {len(seeds)}")
    return seeds


def read_rates(text: str) -> list[float]:
    """Return the rates of a list such as 0.8,1.2 or 0.8:2.2:0.2 (the end included), ascending."""
    rates = set[float]()
    for part in (part.strip() for part in text.split(",")):
        rates.update(_rate_range(part))
        if len(rates) > MOST_LIST:
            raise CommandError(f"--rates: there may be at most {MOST_LIST} of them")
    return sorted(rates)


def _rate_range(part: str) -> Sequence[float]:
    try:
        numbers = [float(number) for number in part.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(0 < number < 1e6 for number in numbers):
        raise CommandError(
            f"--rates: {part!r:.40} must be a rate above 0, or FIRST:LAST:STEP with a step above 0"
        )
    if len(numbers) == 1:
        return [float(f"{numbers[0]:.6g}")]
    first, last, step = numbers
    count = int((last - first) / step + 1e-6) + 1
    if last < first or count > MOST_LIST:
        raise CommandError(f"--rates: {part!r:.40} holds no rate, or more than {MOST_LIST}")
    # Without the noise of binary fractions: 0.8 + 2 * 0.2 is 1.2.
    return [float(f"{first + i * step:.6g}") for i in range(count)]


def read_tolerance(value: float) -> float:
    """Return how far apart the rates of a search lie."""
    if not 0.001 <= value <= 1:
        raise CommandError(f"--tolerance: must be from 0.001 to 1, not {value:g}")
    return value
