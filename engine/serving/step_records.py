"""Recorded steps of an engine, and what becomes of them: observations, and of those a profile.

It knows lines and times, starts nothing and reads no file.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from engine.core.clock import utc_now
from engine.core.latency_fit import Observation, fit_errors, fit_profile, round_to_digits
from engine.core.latency_profile import LatencyProfile
from engine.serving.client import EngineInfo

FEWEST_SAMPLES = 3
MOST_OUT = 2.0
MOST_OUT_IN_SERVICE = 4.0
KNEES = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384)
TILES = (0, 64, 128, 256)
LINK_PRICES = (
    "link_ns",
    "link_out_ns_per_token",
    "link_in_ns_per_token",
    "int8_out_ns_per_token",
    "int8_in_ns_per_token",
)
HOST_SHARE = 2  # host blocks for each of the device, in simulations


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of the recorder (see engine/model/profiler.py), times in nanoseconds."""

    began_ns: int
    ended_ns: int
    writing_ns: int
    continues: int
    num_decodes: int
    num_prefills: int
    num_tokens: int
    kv_tokens: int
    pairs: float
    prompt_kv: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What an engine showed: its steps, and what it said of itself.

    `loop_share` is the median share of a step in which the executor was not computing;
    `facts` are bytes of KV a token, and the link's prices; `neighbours` is how many cores others
    kept busy meanwhile, where that is known.
    """

    info: EngineInfo
    observations: tuple[Observation, ...]
    facts: dict[str, float]
    loop_share: float
    num_steps: int
    rounds: float
    neighbours: float | None = None


def summarise(
    info: EngineInfo,
    facts: dict[str, float],
    steps: Sequence[StepRecord],
    windows: Sequence[tuple[int, int]],
    *,
    num_scenarios: int,
) -> Measured:
    """Turn recorded steps into observations: equal steps of one scenario are one of them.

    Equal means: as many decodes, prompt chunks, tokens and cached prompt tokens; contexts grow by
    a token a step, and their mean is taken. Windows numbered from `num_scenarios` on hold traffic,
    where no two steps are equal: those alike are one observation (see `in_service`).
    """
    traffic: dict[Any, list[tuple[StepRecord, int]]] = defaultdict(list)
    groups: dict[Any, dict[int, list[tuple[StepRecord, int]]]] = {}
    idle_shares: list[float] = []
    for place, step, step_ns in timed_steps(steps, windows):
        index = windows[place][1]
        if index >= num_scenarios:
            traffic[_kind(step)].append((step, step_ns))
            continue
        key = (index, step.num_decodes, step.num_prefills, step.num_tokens, step.prompt_kv)
        groups.setdefault(key, defaultdict(list))[place].append((step, step_ns))
        idle_shares.append(1 - (step.ended_ns - step.began_ns) / step_ns)
    swept = [index for _, index in windows if 0 <= index < num_scenarios]
    rounds = len(swept) / max(1, len(set(swept)))
    fewest = min(FEWEST_SAMPLES, int(rounds))
    observations = []
    for by_round in groups.values():
        group = [step for timed in by_round.values() for step, _ in timed]
        if len(group) < fewest:
            continue
        times_ns = [[step_ns for _, step_ns in timed] for timed in by_round.values()]
        observations.append(
            Observation(
                num_decodes=group[0].num_decodes,
                num_prefills=group[0].num_prefills,
                num_tokens=group[0].num_tokens,
                kv_tokens=statistics.fmean([step.kv_tokens for step in group]),
                pairs=statistics.fmean([step.pairs for step in group]),
                prompt_kv=group[0].prompt_kv,
                ns=typical_ns(times_ns),
                samples=len(group),
            )
        )
    observations += [
        _in_service(alike) for alike in traffic.values() if len(alike) >= FEWEST_SAMPLES
    ]
    loop_share = statistics.median(idle_shares) if idle_shares else 0.0
    return Measured(info, tuple(observations), facts, loop_share, len(idle_shares), rounds)


def _kind(step: StepRecord) -> tuple[int, ...]:
    """Return what steps of traffic that are alike have in common: their sizes within a factor 2."""
    sizes = (step.num_decodes, step.num_tokens, step.prompt_kv)
    return (min(step.num_prefills, 3), *(size.bit_length() for size in sizes))


def _in_service(alike: Sequence[tuple[StepRecord, int]]) -> Observation:
    """Return the mean of steps that are alike, outliers bounded: in service they take their time.

    The form is affine in what a step holds, so means may stand for the steps.
    """
    steps = [step for step, _ in alike]
    most_ns = MOST_OUT_IN_SERVICE * statistics.median([step_ns for _, step_ns in alike])
    return Observation(
        num_decodes=statistics.fmean([step.num_decodes for step in steps]),
        num_prefills=statistics.fmean([step.num_prefills for step in steps]),
        num_tokens=statistics.fmean([step.num_tokens for step in steps]),
        kv_tokens=statistics.fmean([step.kv_tokens for step in steps]),
        pairs=statistics.fmean([step.pairs for step in steps]),
        prompt_kv=statistics.fmean([step.prompt_kv for step in steps]),
        ns=statistics.fmean([min(step_ns, most_ns) for _, step_ns in alike]),
        samples=len(steps),
        in_service=True,
    )


def typical_ns(rounds: Sequence[Sequence[int]]) -> float:
    """Return the median over rounds of the mean within a round.

    Means, because times add up over many steps; a single step counts as MOST_OUT times its round's
    median at most, and a round that was disturbed as a whole loses against the others.
    """
    means = []
    for times_ns in rounds:
        most_ns = MOST_OUT * statistics.median(times_ns)
        means.append(statistics.fmean([min(time_ns, most_ns) for time_ns in times_ns]))
    return statistics.median(means)


def timed_steps(
    steps: Sequence[StepRecord], windows: Sequence[tuple[int, int]]
) -> Iterable[tuple[int, StepRecord, int]]:
    """Yield (window, step, nanoseconds until the next batch) where the engine cannot have idled.

    The time that the recorder took for its own line is taken off.
    """
    place = 0
    for step, following in pairwise(steps):
        while place + 1 < len(windows) and windows[place + 1][0] <= step.began_ns:
            place += 1
        is_inside = windows and windows[place][0] <= step.began_ns and windows[place][1] >= 0
        if is_inside and following.continues:
            yield place, step, following.began_ns - step.began_ns - following.writing_ns


def make_profile(measured: Measured, name: str, machine: str) -> LatencyProfile:
    """Return the profile of what was measured; its `fit` says on which machine, and how well."""
    info = measured.info
    device_tokens = info.num_blocks * info.block_size
    link: dict[str, Any] = {name: round_to_digits(measured.facts[name]) for name in LINK_PRICES}
    rest = LatencyProfile(
        name,
        base_ns=1.0,
        **link,
        kv_bytes_per_token=int(measured.facts["kv_bytes_per_token"]),
        int8_kv_bytes_per_token=math.ceil(measured.facts["int8_kv_bytes_per_token"]),
        num_kv_tokens=device_tokens,
        num_host_kv_tokens=HOST_SHARE * device_tokens,
        block_size=info.block_size,
        max_model_len=info.max_model_len,
        max_batch_tokens=info.max_batch_tokens,
        max_batch_requests=info.max_batch_requests,
    )
    found = fit_profile(rest, measured.observations, knees=KNEES, tiles=TILES)
    errors = fit_errors(found, measured.observations)
    fit = {
        "source": f"measured by `tiergate profile` on {machine}",
        "measured": utc_now().date().isoformat(),
        "method": "from batch to batch of the engine in service, its own work between steps"
        " included; equal steps by their mean in a round, the median"
        " of the rounds; non-negative least squares on relative errors,"
        " the regimes weighted alike; half of the weight to random traffic",
        "model": f"{info.model}, {info.runner} runner, {info.dtype} on {info.device}",
        "points": len(measured.observations),
        "steps": measured.num_steps,
        "rounds": round(measured.rounds, 1),
        "error": {regime: error.as_dict() for regime, error in errors.items()},
        "link_error": {
            name: round(value, 3) for name, value in measured.facts.items() if "error" in name
        },
        "loop_share": round(measured.loop_share, 3),
        "busy_neighbour_cores": (
            None if measured.neighbours is None else round(measured.neighbours, 2)
        ),
        "assumed": [
            "the machine is as busy as when it was measured, with one reader for all streams",
            "tokens are drawn at temperature 1 without filters",
            f"host pool {HOST_SHARE} x the device's; copies are those of service, one at a time"
            " while nothing computes (on a CPU: memory to memory)",
        ],
    }
    return replace(found, fit=fit)
