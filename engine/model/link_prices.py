"""What carrying a context to the host and back costs on this machine; it knows no request.

The copies are those of service: the same blocks, kernels, streams and slices, one at a time, while
nothing else computes. Prices are straight lines, ns = per copy + per token * tokens, with one price
per copy for all of them, fitted to relative errors.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.core.batch import Copy
from engine.core.clock import Clock
from engine.model.host_cache import FORMATS, HostCache, HostFormat
from engine.model.host_side import make_swap
from engine.model.kernels.native import NativeKernels
from engine.model.kv_cache import KVCache
from engine.model.swap import SwapEngine

COUNTS = (1, 4, 16, 64, 128)  # blocks of one context
REPEATS = 15


@dataclass(frozen=True, slots=True)
class LinkPrices:
    """Prices in nanoseconds and what a token takes on the host, by format ("raw", "int8").

    `errors` are relative, (mean, largest) for each way, "raw out" to "int8 in".
    """

    copy_ns: float
    out_ns_per_token: dict[str, float]
    in_ns_per_token: dict[str, float]
    bytes_per_token: dict[str, float]
    errors: dict[str, tuple[float, float]]

    def as_facts(self) -> dict[str, float]:
        """Return the numbers under the names of engine.core.latency_profile's fields."""
        facts = {
            "link_ns": self.copy_ns,
            "link_out_ns_per_token": self.out_ns_per_token["raw"],
            "link_in_ns_per_token": self.in_ns_per_token["raw"],
            "int8_out_ns_per_token": self.out_ns_per_token["int8"],
            "int8_in_ns_per_token": self.in_ns_per_token["int8"],
            "int8_kv_bytes_per_token": self.bytes_per_token["int8"],
        }
        for way, (mean, largest) in self.errors.items():
            facts[f"{way}: mean error"] = mean
            facts[f"{way}: largest error"] = largest
        return facts


@torch.inference_mode()
def measure_link(cache: KVCache, native: NativeKernels | None, clock: Clock) -> LinkPrices:
    """Carry contexts of several lengths out and back in every format, and price it.

    Call it before serving: blocks are overwritten meanwhile, and hold what they held afterwards.
    """
    counts = sorted({min(count, cache.num_blocks) for count in COUNTS})
    used = cache.data[:, :, : counts[-1] + 1].clone()
    cache.data[:, :, 1 : counts[-1] + 1].normal_()
    series: dict[str, list[tuple[int, float]]] = {}
    num_bytes = {}
    for name in FORMATS:
        host = HostCache(
            cache.shape,
            counts[-1],
            cache.block_size,
            HostFormat(name, cache.block_size),
            pinned=cache.device.type == "cuda",
        )
        host.data.zero_()  # as in service after a while: the memory is there
        num_bytes[name] = host.bytes_per_token
        swap = make_swap(cache, host, native)
        for count in counts:
            out_ns, in_ns = _round_trips(swap, count, clock)
            tokens = count * cache.block_size
            series.setdefault(f"{name} out", []).append((tokens, out_ns))
            series.setdefault(f"{name} in", []).append((tokens, in_ns))
        swap.close()
    cache.data[:, :, : counts[-1] + 1] = used
    return fit_link(series, num_bytes)


def fit_link(
    series: dict[str, list[tuple[int, float]]], bytes_per_token: dict[str, float]
) -> LinkPrices:
    """Return the prices of (tokens, ns) measured each way: one per copy, one per token and way."""
    copy_ns = max(0.0, statistics.median([_line(points)[0] for points in series.values()]))
    slopes, errors = {}, {}
    for way, points in series.items():
        # Least squares of (copy + slope * n - ns) / ns.
        weights = [(tokens / ns, 1 - copy_ns / ns) for tokens, ns in points]
        slope = sum(a * b for a, b in weights) / sum(a * a for a, _ in weights)
        slopes[way] = max(slope, 0.0)
        off = [abs(copy_ns + slopes[way] * tokens - ns) / ns for tokens, ns in points]
        errors[way] = (statistics.fmean(off), max(off))
    return LinkPrices(
        copy_ns,
        {name: slopes[f"{name} out"] for name in FORMATS},
        {name: slopes[f"{name} in"] for name in FORMATS},
        bytes_per_token,
        errors,
    )


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return (a, b) of a + b n that is nearest to the points, errors counted relative to them."""
    if len({tokens for tokens, _ in points}) < 2:
        return 0.0, points[0][1] / points[0][0]
    w = [1 / ns for _, ns in points]
    x = [tokens / ns for tokens, ns in points]
    ww, wx, xx = (
        sum(p * q for p, q in zip(s, t, strict=True)) for s, t in ((w, w), (w, x), (x, x))
    )
    determinant = ww * xx - wx * wx
    return (sum(w) * xx - sum(x) * wx) / determinant, (sum(x) * ww - sum(w) * wx) / determinant


def _round_trips(swap: SwapEngine, count: int, clock: Clock) -> tuple[float, float]:
    """Return the median times of a copy out and of one back; block i goes home to block i."""
    blocks = tuple(range(1, count + 1))
    copies = [Copy("link", blocks, blocks, number) for number in range(1, 2 * REPEATS + 1)]
    out = [_timed(swap, [copy], [], clock) for copy in copies[::2]]
    back = [_timed(swap, [], [copy], clock) for copy in copies[1::2]]
    return statistics.median(out), statistics.median(back)


def _timed(swap: SwapEngine, parks: Sequence[Copy], returns: Sequence[Copy], clock: Clock) -> float:
    began_ns = clock.now_ns()
    swap.begin(parks, returns)
    finished = swap.wait_any()
    assert finished.copied, "the context could not be kept"
    return float(clock.now_ns() - began_ns)
