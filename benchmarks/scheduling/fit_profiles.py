"""The latency profiles of GPUs, from public measurements to `engine/core/profiles/*.json`.

    python -m benchmarks.scheduling.fit_profiles [--data FOLDER] [--write]

Reads the calibration tables (see `Sources` below; they lie in `../shared/data/calibration` beside
the repository and are no part of it), fits each profile, prints its error regime by regime and,
with --write, writes the profiles. Nothing is copied from the tables but the fitted prices. A
table's iteration is put together from its parts: 32 x (layers at n tokens + attention) + embedding
+ last norm + (LM head and sampler at one row a request).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.latency_fit import (
    FitError,
    Observation,
    fit_errors,
    fit_profile,
    predicted_ns,
    round_to_digits,
)
from engine.core.latency_profile import LatencyProfile, dump_profile

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "calibration"
PROFILES = ROOT / "engine" / "core" / "profiles"

NUM_LAYERS = 32
LLAMA_KV_BYTES = 131_072  # a token of Llama-3.1-8B or Mistral-7B: 2 x 32 layers x 8 heads x 128 x 2
LLAMA_WEIGHT_BYTES = 16.06e9
# The best tile of (none, 64, 128, 256) was found once. In sums of kernels a step with a prompt has
# no cost of its own.
FIT: dict[str, Any] = {"knees": tuple(range(64, 513, 16)), "without": ("prompt_ns",)}

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """A quantity over a grid of whole numbers; between its points it is linear."""

    at: list[int]
    values: list[float]

    def __call__(self, x: int) -> float:
        if x <= self.at[0]:
            return self.values[0]
        if x >= self.at[-1]:
            assert x == self.at[-1], "outside what was measured"
            return self.values[-1]
        i = bisect_left(self.at, x)
        share = (x - self.at[i - 1]) / (self.at[i] - self.at[i - 1])
        return self.values[i - 1] + share * (self.values[i] - self.values[i - 1])


def read(data: Path, name: str) -> list[Row]:
    with gzip.open(data / f"{name}.csv.gz", "rt", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def tables(rows: list[Row], key: str) -> dict[str, Table]:
    """Return microseconds of each layer over `key`."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        found[row["layer"]][int(row[key])] = float(row["time_us"])
    return {
        layer: Table(sorted(points), [points[x] for x in sorted(points)])
        for layer, points in found.items()
    }


def observe(chunk: int, start: int, decodes: int, context: int, microseconds: float) -> Observation:
    """One step: a chunk (or none) behind `start` tokens, and decodes that read `context` each."""
    return Observation(
        num_decodes=decodes,
        num_prefills=int(chunk > 0),
        num_tokens=chunk + decodes,
        kv_tokens=decodes * context,
        pairs=chunk * (start + chunk / 2),
        prompt_kv=start if chunk else 0,
        ns=microseconds * 1000,
    )


# What was measured, as steps


def vllm_steps(data: Path, device: str, rest: LatencyProfile) -> list[Observation]:
    """Steps of vLLM 0.19's kernels that fit into the device's memory and context window."""
    dense = tables(read(data, f"{device}_dense"), "tokens")
    per_request = tables(read(data, f"{device}_per_sequence"), "sequences")
    once = ("embedding", "final_layernorm")
    every_layer = [name for name in dense if name not in once]
    steps = []
    for row in read(data, f"{device}_attention"):
        chunk, start = int(row["prefill_chunk"]), int(row["kv_prefill"])
        decodes, context = int(row["n_decode"]), int(row["kv_decode"])
        num_tokens, num_rows = chunk + decodes, decodes + (chunk > 0)
        held = decodes * context + start + chunk
        longest = max(start + chunk, context)
        if (
            num_tokens > rest.max_batch_tokens
            or held > rest.num_kv_tokens
            or longest > rest.max_model_len
        ):
            continue
        layer_us = float(row["time_us"])
        layer_us += sum(dense[name](num_tokens) for name in every_layer)
        layer_us += dense["layernorm"](num_tokens)  # two a layer, one in the table
        step_us = NUM_LAYERS * layer_us + sum(dense[name](num_tokens) for name in once)
        step_us += sum(table(num_rows) for table in per_request.values())
        steps.append(observe(chunk, start, decodes, context, step_us))
    return steps


def eager_layers(data: Path, device: str) -> Callable[[int, int], float]:
    """Return microseconds of everything but attention, over (tokens, requests)."""
    layers = tables(read(data, f"{device}_layers_v0"), "tokens")
    once = ("embedding", "final_layernorm", "lm_head", "attn")
    every_layer = [name for name in layers if name not in once]

    def microseconds(num_tokens: int, num_rows: int) -> float:
        step_us = NUM_LAYERS * sum(layers[name](num_tokens) for name in every_layer)
        step_us += sum(layers[name](num_tokens) for name in ("embedding", "final_layernorm"))
        return step_us + layers["lm_head"](num_rows)

    return microseconds


def whole_prompts(data: Path, device: str) -> list[Observation]:
    """Steps of one whole prompt each: the layer tables hold its attention as well."""
    rest_us = eager_layers(data, device)
    attention = [row for row in read(data, f"{device}_layers_v0") if row["layer"] == "attn"]
    return [
        observe(n, 0, 0, 0, rest_us(n, 1) + NUM_LAYERS * float(row["time_us"]))
        for row in attention
        for n in [int(row["tokens"])]
    ]


def a6000_steps(data: Path, rest: LatencyProfile) -> list[Observation]:
    """Decodes alone and prompts alone. `kv_cache_size` counts the keys of the whole batch."""
    rest_us = eager_layers(data, "a6000_llama31_8b")
    steps = whole_prompts(data, "a6000_llama31_8b")
    for row in read(data, "a6000_llama31_8b_attention_v0"):
        attention_us = NUM_LAYERS * float(row["time_us"])
        keys = int(row["kv_cache_size"])
        if row["phase"] == "prefill":
            chunk = int(row["prefill_chunk"])
            if keys > chunk:
                step_us = rest_us(chunk, 1) + attention_us
                steps.append(observe(chunk, keys - chunk, 0, 0, step_us))
            continue
        decodes = int(row["batch_size"])
        context = keys // decodes
        if keys <= rest.num_kv_tokens and context <= rest.max_model_len:
            step_us = rest_us(decodes, decodes) + attention_us
            steps.append(observe(0, 0, decodes, context, step_us))
    return steps


def h100_steps(data: Path, rest: LatencyProfile) -> list[Observation]:
    """Whole prompts with and without their attention, so that tokens and pairs can be told apart.

    Decodes come without their attention, which nobody measured.
    """
    rest_us = eager_layers(data, "h100_llama31_8b")
    decodes = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
    prompts = whole_prompts(data, "h100_llama31_8b")
    bare = [
        dataclasses.replace(step, pairs=0.0, ns=rest_us(step.num_tokens, 1) * 1000)
        for step in prompts
    ]
    return [
        *prompts,
        *bare,
        *(observe(0, 0, n, 0, rest_us(n, n)) for n in decodes),
    ]


def slai_chunks(data: Path, rest: LatencyProfile) -> list[Observation]:
    """Full chunks of one 2,048-token prompt; a short last chunk is taken off by its own time."""
    rows = read(data, "slai_rtx6000ada_mistral7b_token_budget")
    ttft_ms = {int(row["token_budget"]): float(row["median_ttft_ms_2048_prompt"]) for row in rows}
    steps = []
    for budget, total_ms in ttft_ms.items():
        full, short = divmod(2048, budget)
        if short:
            total_ms -= ttft_ms[short] / (2048 // short)
        # The authors' attention is in the price of a token: no separate pairs.
        steps.append(Observation(0, 1, budget, 0, 0, 0, total_ms / full * 1e6))
    return steps


# The profiles


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a profile is made: what is fixed, what is fitted, and what has to be said about it."""

    rest: LatencyProfile
    source: str
    method: str
    assumed: Sequence[str]
    steps: Callable[[Path, LatencyProfile], list[Observation]] | None = None
    fit: dict[str, Any] | None = None  # what `fit_profile` is told; None: the prices are given
    after: Callable[[LatencyProfile], LatencyProfile] = lambda profile: profile

    def make(self, data: Path) -> LatencyProfile:
        """Fit, judge and describe."""
        said: dict[str, Any] = {"source": self.source, "method": self.method}
        profile, steps = self.rest, []
        if self.steps is not None:
            steps = self.steps(data, profile)
            if self.fit is not None:
                profile = fit_profile(profile, steps, **self.fit)
            profile = self.after(profile)
            errors = fit_errors(profile, steps)
            said["points"] = len(steps)
            said["error"] = {regime: error.as_dict() for regime, error in errors.items()}
            if len(steps) < 10:
                said["error_by_point"] = {
                    f"{step.num_tokens} tokens": round(predicted_ns(profile, step) / step.ns - 1, 3)
                    for step in steps
                }
        said["assumed"] = list(self.assumed)
        return dataclasses.replace(profile, fit=said)


LINK_NOTE = "link_ns 30 us: one copy's launch and its event; host pool twice the device's"


def link(bytes_per_token: int, bytes_per_s: float) -> dict[str, float]:
    """Prices of a host link that reaches this rate in each direction."""
    price = round_to_digits(bytes_per_token / bytes_per_s * 1e9)
    return {
        "link_ns": 30_000.0,
        "link_out_ns_per_token": price,
        "link_in_ns_per_token": price,
    }


def llama(name: str, num_kv_tokens: int, link_bytes_per_s: float) -> LatencyProfile:
    """Return what Llama-3.1-8B holds on a device; its prices are to be fitted."""
    return LatencyProfile(
        name,
        base_ns=1.0,
        kv_bytes_per_token=LLAMA_KV_BYTES,
        num_kv_tokens=num_kv_tokens,
        num_host_kv_tokens=2 * num_kv_tokens,
        max_model_len=16_384,
        max_batch_tokens=2048,
        max_batch_requests=256,
        **link(LLAMA_KV_BYTES, link_bytes_per_s),
    )


def kv_tokens_left(memory_mib: int) -> int:
    """Return the KV tokens beside the weights, in whole blocks of 16.

    vLLM's share of the memory (0.9) less the weights and 1.7 GB of activations, which is what
    vLLM 0.19 left out on the RTX 4090 (41,408 tokens there).
    """
    left = 0.9 * memory_mib * 2**20 - LLAMA_WEIGHT_BYTES - 1.7e9
    return int(left / LLAMA_KV_BYTES) // 16 * 16


VLLM_SOURCE = (
    "LLMServingSim's layer, per-sequence and attention tables of vLLM 0.19 kernels, bf16"
    " (github.com/casys-kaist/LLMServingSim @ 5daddb2, MIT)"
)
V0_SOURCE = (
    "LLMServingSim's older tables of separate PyTorch layers and FlashAttention-2"
    " (github.com/casys-kaist/LLMServingSim @ 5daddb2, MIT)"
)
SUM_METHOD = (
    "iteration = 32 x (layers + attention) + embedding + last norm + LM head and sampler a row;"
    " non-negative least squares on relative errors, the regimes weighted alike"
)
KERNELS_ONLY = "kernel times only: an engine's own work between steps is not in the tables"
FIT_RANGE = (
    "fitted to steps of at most 2,048 tokens whose contexts fit the device, none over 16,384;"
    " all decodes of a measured step have the same context"
)


def recipes() -> list[Recipe]:
    """Return every profile that does not come from this machine."""
    return [mistral(), rtx4090(), rtxpro6000(), a6000(), h100(), opt13b()]


def mistral() -> Recipe:
    rest = LatencyProfile(
        "mistral-7b-rtx6000ada",
        base_ns=22.8e6,
        knee_tokens=179,
        knee_token_ns=92_000.0,
        decode_kv_ns=150.0,
        kv_bytes_per_token=LLAMA_KV_BYTES,
        num_kv_tokens=230_000,
        num_host_kv_tokens=460_000,
        max_model_len=16_384,
        max_batch_tokens=8192,
        max_batch_requests=256,
        **link(LLAMA_KV_BYTES, 25e9),
    )
    return Recipe(
        rest,
        source="the SLAI authors' Figure 5a: TTFT of one 2,048-token prompt at seven token budgets"
        " (github.com/agrimUT/SLAI @ 5098a7a, Apache-2.0)",
        method="max(22.8, 6.3 + 0.092 n) ms, the round line through the seven chunk times; least"
        " squares gives 23.3 + 0.0910 max(0, n - 178), nowhere more than 2.4 % away from it",
        assumed=[
            "chunk time = (TTFT less the measured time of a short last chunk) / full chunks",
            "a decode reads 128 KiB a cached token at the card's 960 GB/s: 0.15 us, rounded up"
            " from 0.137; not measured",
            "a prompt's attention is in its price of a token, as measured over 2,048 tokens;"
            " longer prompts cost more in truth",
            "mixed_kv_factor 1: the authors' engine runs prompts and decodes through separate"
            " attention kernels; not measured",
            "230,000 KV tokens: their pool is 14,733 blocks of 16",
            "link 25 GB/s each way (PCIe 4 x16, as measured elsewhere)",
            LINK_NOTE,
        ],
        steps=slai_chunks,
    )


def rtx4090() -> Recipe:
    return Recipe(
        llama("llama31-8b-rtx4090", 41_408, 25e9),
        source=VLLM_SOURCE + ", RTX 4090",
        method=SUM_METHOD + "; knee and tile chosen by error",
        assumed=[
            FIT_RANGE,
            "the worst points are one long decode beside a short chunk, whose kernel does not"
            " split a context: up to 0.31 too low; over the whole sweep, past what the card"
            " holds, the factor would be 2.2",
            KERNELS_ONLY,
            "41,408 KV tokens: what vLLM 0.19 had on this card",
            "link 25 GB/s each way (PCIe 4 x16)",
            LINK_NOTE,
        ],
        steps=lambda data, rest: vllm_steps(data, "rtx4090_llama31_8b", rest),
        fit=FIT | {"tiles": (256,)},
    )


def rtxpro6000() -> Recipe:
    return Recipe(
        llama("llama31-8b-rtxpro6000", kv_tokens_left(97_887), 50e9),
        source=VLLM_SOURCE + ", RTX PRO 6000 Blackwell",
        method=SUM_METHOD + "; knee and tile chosen by error",
        assumed=[
            FIT_RANGE,
            KERNELS_ONLY,
            "KV tokens: 0.9 x 97,887 MiB less 16.06 GB of weights and 1.7 GB of activations",
            "link 50 GB/s each way (PCIe 5 x16)",
            LINK_NOTE,
        ],
        steps=lambda data, rest: vllm_steps(data, "rtxpro6000_llama31_8b", rest),
        fit=FIT | {"tiles": (128,)},
    )


def a6000() -> Recipe:
    return Recipe(
        llama("llama31-8b-a6000", kv_tokens_left(49_140), 25e9),
        source=V0_SOURCE + ", RTX A6000",
        method=SUM_METHOD,
        assumed=[
            FIT_RANGE,
            "eager layers (norms and rotary embedding unfused) and a decode kernel that neither"
            " pages nor splits a context: slower than a serving engine on this card",
            "mixed_kv_factor 1: prompts and decodes in separate kernels; nothing mixed measured",
            "KV tokens: 0.9 x 49,140 MiB less 16.06 GB of weights and 1.7 GB of activations",
            "link 25 GB/s each way (PCIe 4 x16)",
            LINK_NOTE,
        ],
        steps=a6000_steps,
        fit=FIT,
    )


def h100() -> Recipe:
    # 83 % of 3,350 GB/s: the share of its bandwidth that the RTX PRO 6000 reaches in decodes.
    kv_ns = round_to_digits(LLAMA_KV_BYTES / (0.83 * 3350))
    return Recipe(
        llama("llama31-8b-h100", kv_tokens_left(81_559), 50e9),
        source=V0_SOURCE + ", H100 (its GEMM rates are those of the SXM card)",
        method=SUM_METHOD + "; decodes without attention, whose price is scaled (see assumed)",
        assumed=[
            "scaled, not measured: a decode reads 128 KiB a cached token at 83 % of 3,350 GB/s,"
            " the share that the RTX PRO 6000 reaches of its own bandwidth",
            "scaled, not measured: a chunk reads the context before it once at the same rate",
            "scaled, not measured: mixed_kv_factor as fitted on the RTX PRO 6000 (1.7)",
            "prompts measured whole, with and without attention, none behind a context; eager"
            " layers, slower than a serving engine's",
            "KV tokens: 0.9 x 81,559 MiB less 16.06 GB of weights and 1.7 GB of activations",
            "link 50 GB/s each way (PCIe 5 x16)",
            LINK_NOTE,
        ],
        steps=h100_steps,
        fit=FIT,
        after=lambda profile: dataclasses.replace(
            profile, decode_kv_ns=kv_ns, prompt_kv_ns=kv_ns, mixed_kv_factor=1.7
        ),
    )


def opt13b() -> Recipe:
    kv_bytes = 819_200  # 2 x 40 layers x 5,120 x 2 bytes: 800 KiB
    weights, bandwidth, flops = 25.7e9, 900e9, 0.625 * 112e12
    token_ns = round_to_digits(weights / flops * 1e9)  # two flops a weight, two bytes a weight
    base_ns = 29e6
    num_kv_tokens = 5120
    rest = LatencyProfile(
        "opt-13b-v100",
        base_ns=base_ns,
        knee_tokens=round(base_ns / token_ns),
        knee_token_ns=token_ns,
        decode_kv_ns=round_to_digits(kv_bytes / bandwidth * 1e9),
        pair_ns=round_to_digits(kv_bytes / flops * 1e9),  # 4 x 5,120 x 40 flops a pair
        kv_bytes_per_token=kv_bytes,
        num_kv_tokens=num_kv_tokens,
        num_host_kv_tokens=8 * num_kv_tokens,
        max_model_len=2048,
        max_batch_tokens=2560,
        max_batch_requests=256,
        **link(kv_bytes, 12e9),
    )
    return Recipe(
        rest,
        source="no measurement exists: scaled from data sheets (V100 PCIe 32 GB: 900 GB/s, 112"
        " TFLOP/s in half precision)",
        method="a step takes max(weights / bandwidth, 2 x weights x n / compute): 25.7 GB at 900"
        " GB/s is 29 ms, 25.7 GFLOP a token at 70 TFLOP/s is 0.37 ms",
        assumed=[
            "62.5 % of the half-precision peak, which is what Llama-3-8B's layers reach on an"
            " A100 at 2,048 tokens (Vidur's tables)",
            "decodes read 800 KiB a cached token at 900 GB/s; attention computes 4 x 5,120 x 40"
            " flops a pair at the same 70 TFLOP/s; mixed_kv_factor 1 (separate kernels)",
            "5,120 KV tokens: 0.9 x 34.4 GB less 25.7 GB of weights and about 1 GB of activations"
            " leaves 4.2 GB; two and a half contexts of 2,048",
            "link 12 GB/s each way (PCIe 3 x16); link_ns 30 us; 40,960 host tokens (34 GB)",
            "2,560 tokens a step: vLLM 0.x's default for a 2,048-token model",
            "an engine's own work between steps is not in it",
        ],
    )


def table_line(name: str, regime: str, error: FitError) -> str:
    return (
        f"{name:24} {regime:8} {error.points:6} points  mean {error.mean:6.1%}"
        f"  p95 {error.p95:6.1%}  max {error.max:6.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", action="store_true")
    told = parser.parse_args()
    for recipe in recipes():
        profile = recipe.make(told.data)
        steps = recipe.steps(told.data, recipe.rest) if recipe.steps else []
        for regime, error in fit_errors(profile, steps).items():
            print(table_line(profile.name, regime, error))
        if not steps:
            print(f"{profile.name:24} nothing measured")
        if told.write:
            (PROFILES / f"{profile.name}.json").write_text(dump_profile(profile))


if __name__ == "__main__":
    main()
