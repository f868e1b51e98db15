"""Makes a trace of many tenants from ServeGen's production clients, as uneven and bursty as they.

    python -m benchmarks.scheduling.servegen --pool mlarge --clients 12 --out mix.csv.gz

The data (https://arxiv.org/abs/2505.09999) tells of each client and each window of 600 s: a rate,
the distribution of the gaps between its requests (Gamma or Weibull with a shape), and for every six
hours 25 quantiles of its prompt and answer lengths. Here the largest clients whose lengths are
known are taken, beginning at `--start-s`; all rates are scaled by one factor to the asked mean, so
that who dominates stays as it is; a recorded window lasts `--window-s`, so that a short run still
sees rates and lengths drift. Gaps are drawn with the window's shape and the scaled mean. Lengths
are drawn between the quantiles on a logarithmic scale (the last 1 % reaches to the longest ever
seen); prompt and answer are drawn apart, since how they go together is not in the data. A pair
longer than `--context` is cut: the answer first, to 1/4 of the context, then the prompt.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scheduling import points
from benchmarks.scheduling.made_traces import write_trace
from engine.sim.trace import TraceRow

RECORDED_WINDOW_S = 600
SHARES = (0.0, 0.01, 0.02, *[i / 20 for i in range(1, 20)], 0.98, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Window:
    """One client in one window: requests a second, and how their gaps are distributed."""

    rate: float
    pattern: str
    shape: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Quantiles (at SHARES) of a client's prompts and answers from a time on."""

    since_s: float
    prompts: tuple[float, ...]
    outputs: tuple[float, ...]


def draw_length(quantiles: Sequence[float], share: float) -> int:
    """Return the length at a share in [0, 1), between two quantiles on a logarithmic scale."""
    place = bisect_right(SHARES, share) - 1
    low, high = max(1.0, quantiles[place]), max(1.0, quantiles[place + 1])
    part = (share - SHARES[place]) / (SHARES[place + 1] - SHARES[place])
    length: float = low * (high / low) ** part
    return max(1, round(length))


def draw_gap(window: Window, rate: float, rng: random.Random) -> float:
    """Return seconds to the next request: the window's kind and shape, and a mean of 1 / rate."""
    if window.pattern == "Weibull" and window.shape > 0:
        scale = 1.0 / (rate * math.gamma(1.0 + 1.0 / window.shape))
        return rng.weibullvariate(scale, window.shape)
    if window.pattern == "Gamma" and window.shape > 0:
        return rng.gammavariate(window.shape, 1.0 / (rate * window.shape))
    return rng.expovariate(rate)


def load_windows(path: Path) -> dict[str, dict[int, Window]]:
    """Return each client's windows by their start in seconds; idle ones are not there."""
    found: dict[str, dict[int, Window]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            shape = float(row["shape"] or 0)
            window = Window(float(row["rate_rps"]), row["pattern"], shape)
            found.setdefault(row["client"], {})[int(float(row["t_s"]))] = window
    return found


def load_lengths(path: Path) -> dict[str, list[Lengths]]:
    """Return each client's lengths in order of time."""
    found: dict[str, list[Lengths]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for text in lines:
            row = json.loads(text)
            one = Lengths(row["t_s"], tuple(row["in_q"]), tuple(row["out_q"]))
            found.setdefault(str(row["client"]), []).append(one)
    return {client: sorted(some, key=lambda one: one.since_s) for client, some in found.items()}


def largest(
    windows: dict[str, dict[int, Window]],
    lengths: dict[str, list[Lengths]],
    times: Sequence[int],
    count: int,
) -> list[str]:
    """Return the clients with most requests in these windows among those with known lengths."""
    load = {
        client: sum(some[t].rate for t in times if t in some)
        for client, some in windows.items()
        if client in lengths
    }
    active = [client for client, total in load.items() if total > 0]
    return sorted(active, key=lambda client: (-load[client], client))[:count]


def times_of(
    windows: dict[int, Window], times: Sequence[int], factor: float, window_s: float, seed: str
) -> Iterator[tuple[float, int]]:
    """Yield one client's arrivals (seconds in the made trace, recorded window), scaled."""
    rng = random.Random(seed)
    for place, recorded in enumerate(times):
        window = windows.get(recorded)
        if window is None or window.rate <= 0:
            continue
        rate, end = window.rate * factor, (place + 1) * window_s
        # A first gap of a random age: windows do not all begin with a request.
        at = place * window_s + rng.random() * draw_gap(window, rate, rng)
        while at < end:
            yield at, recorded
            at += draw_gap(window, rate, rng)


def make(
    data: Path,
    pool: str,
    *,
    clients: int,
    rate: float,
    requests: int,
    seed: int,
    start_s: int = 0,
    window_s: float = 120.0,
    context: int = 16_384,
) -> list[TraceRow]:
    """Return about `requests` rows at `rate` a second in the mean, each with its tenant."""
    windows = load_windows(points.data_file(data, f"traces/servegen_{pool}_rates.csv.gz"))
    lengths = load_lengths(points.data_file(data, f"traces/servegen_{pool}_lengths.jsonl.gz"))
    count = max(1, math.ceil(requests / rate / window_s))
    times = [start_s + i * RECORDED_WINDOW_S for i in range(count)]
    chosen = largest(windows, lengths, times, clients)
    total = sum(windows[c][t].rate for c in chosen for t in times if t in windows[c])
    factor = rate * count / total
    rows = []
    for client in chosen:
        rng = random.Random(f"{seed}/{client}/lengths")
        since = [one.since_s for one in lengths[client]]
        arrivals = times_of(windows[client], times, factor, window_s, f"{seed}/{client}/gaps")
        for at, recorded in arrivals:
            one = lengths[client][max(0, bisect_right(since, recorded) - 1)]
            prompt, output = (draw_length(q, rng.random()) for q in (one.prompts, one.outputs))
            output = min(output, max(context // 4, context - prompt))
            prompt = min(prompt, context - output)
            rows.append(TraceRow(prompt, output, arrival_s=at, tenant=f"client-{client}"))
    return sorted(rows, key=lambda row: (row.arrival_s or 0.0, row.tenant))


def shares(rows: Sequence[TraceRow]) -> list[tuple[str, float]]:
    """Return each tenant's share of the requests, the largest first."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.tenant] = counts.get(row.tenant, 0) + 1
    return sorted(((name, n / len(rows)) for name, n in counts.items()), key=lambda x: -x[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=points.DATA)
    parser.add_argument("--pool", default="mlarge", choices=("mlarge", "mmid", "msmall", "r1"))
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start-s", type=int, default=0, help="of the recording, whole windows")
    parser.add_argument("--window-s", type=float, default=120.0, help="what 600 s become")
    parser.add_argument("--context", type=int, default=16_384)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows = make(
        asked.data,
        asked.pool,
        clients=asked.clients,
        rate=asked.rate,
        requests=asked.requests,
        seed=asked.seed,
        start_s=asked.start_s,
        window_s=asked.window_s,
        context=asked.context,
    )
    write_trace(asked.out, rows)
    print(f"{len(rows)} requests in {rows[-1].arrival_s:.0f} s")
    points.print_table(("tenant", "share"), shares(rows))


if __name__ == "__main__":
    main()
