"""From a name to a runner ready to serve: checks first, loads once, verifies, then sizes the pool.

Whatever is wrong with a model, a flag or the machine comes out as a ModelLoadError of one line. It
knows every part of this room and how they fit together; none of them knows the loader.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engine.core.errors import ExecutorFault, ModelLoadError
from engine.core.executor import Capacity
from engine.model.attention import PagedAttention, TorchAttention, select_attention
from engine.model.checkpoint import Checkpoint, one_line, open_checkpoint
from engine.model.cuda_graphs import DecodeGraphs, graph_sizes
from engine.model.cuda_swap import DEVICE_BYTES
from engine.model.hf_loading import load_hf_model
from engine.model.hf_model import HFModel, PagedModel, kv_shape_of
from engine.model.host_cache import host_format
from engine.model.host_side import HostOptions, HostSide, make_host_side
from engine.model.kernels.native import NativeKernels, load_native
from engine.model.kv_cache import KVCache
from engine.model.lean_model import LeanModel
from engine.model.linear import optimise
from engine.model.memory import GIB, available_bytes, check_weights_fit, plan_kv
from engine.model.model_runner import (
    ModelRunner,
    RunnerInfo,
    StepFunction,
    is_out_of_memory,
    warm_up_batches,
)
from engine.model.sampler import MaskSource, Sampler
from engine.model.self_check import MakeAttention, expected_of, passes, relative_error
from engine.model.step_input import StepInputBuilder

Progress = Callable[[str, float], None]
RUNNERS = ("auto", "generic", "lean")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens a step, requests at once: beyond these a step only becomes longer, not more efficient
# (docs/performance.md).
CPU_BATCH, CUDA_BATCH = (512, 64), (8192, 256)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Limits:
    """The sizes an operator may set; None is left to the loader."""

    max_model_len: int | None
    max_batch_tokens: int
    max_batch_requests: int
    block_size: int
    kv_cache_bytes: int | None
    host: HostOptions


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """A model that said the same as transformers, and the attention it said it with."""

    model: PagedModel
    make_attention: MakeAttention
    runner: str
    error: float


def load_runner(
    model: str,
    device: str = "auto",
    dtype: str = "auto",
    *,
    max_model_len: int | None = None,
    max_batch_tokens: int | None = None,
    max_batch_requests: int | None = None,
    block_size: int = 16,
    kv_cache_bytes: int | None = None,
    host_kv_bytes: int | None = None,
    host_kv_format: str = "raw",
    host_kv_group: int | None = None,
    host_kv_checksums: bool = False,
    spare_core: bool = False,
    runner: str = "auto",
    progress: Progress | None = None,
) -> ModelRunner:
    """Load `model` ("builtin", a folder or a hub id) and return a warm runner.

    `device`: "auto", "cpu", "cuda" or "cuda:N". `dtype`: "auto" (the checkpoint's own, where the
    device computes it well) or a key of DTYPES. None means: choose. `host_kv_bytes` is for parked
    contexts (0: none), in `host_kv_format` (see host_cache.py); `spare_core` says that a core is
    left to a thread that carries them.
    `progress(stage, fraction)` is called as loading goes on. Raises ModelLoadError, one line.
    """
    report = progress or _say_nothing
    report("checking the model", 0.0)
    where = pick_device(device)
    if runner not in RUNNERS:
        raise ModelLoadError(f"runner {runner} is unknown: choose from {', '.join(RUNNERS)}")
    if block_size < 1:
        raise ModelLoadError(f"block size {block_size} makes no sense: it has to be at least 1")
    group = block_size if host_kv_group is None else host_kv_group
    form = host_format(host_kv_format, group, block_size)
    tokens, requests = CUDA_BATCH if where.type == "cuda" else CPU_BATCH
    limits = _Limits(
        max_model_len,
        tokens if max_batch_tokens is None else max_batch_tokens,
        requests if max_batch_requests is None else max_batch_requests,
        block_size,
        kv_cache_bytes,
        HostOptions(host_kv_bytes, form, host_kv_checksums, spare_core),
    )
    _check(limits)
    checkpoint = open_checkpoint(model)
    kind = pick_dtype(dtype, checkpoint, where)
    num_bytes = checkpoint.num_weights * kind.itemsize
    check_weights_fit(num_bytes, available_bytes(where), checkpoint.name)
    try:
        return _load(checkpoint, where, kind, limits, runner, report)
    except (ExecutorFault, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        raise ModelLoadError(
            f"{model} does not fit: out of memory on {where}, lower --max-batch-tokens or"
            " --kv-cache-gib"
        ) from error


def _load(
    checkpoint: Checkpoint,
    where: torch.device,
    kind: torch.dtype,
    limits: _Limits,
    runner: str,
    report: Progress,
) -> ModelRunner:
    """Load the weights, verify the model, size its pool and warm it up."""
    report("loading the weights", 0.05)

    def load() -> HFModel:
        loaded = load_hf_model(checkpoint, where, kind, limits.max_model_len)
        report("comparing with transformers", 0.6)
        return loaded

    native = load_native() if where.type == "cpu" else None
    found = verify(load, limits.block_size, runner, native)

    report("making the KV cache", 0.8)
    cache, capacity = _make_pool(found, limits)
    host = make_host_side(cache, limits.host, native)
    if host is not None:
        capacity = replace(
            capacity,
            num_host_blocks=host.cache.num_blocks,
            host_is_exact=host.cache.form.is_exact,
        )
    _logger.info("%s", _memory_line(cache, host))
    attention = found.make_attention(cache)
    grammars = _grammars(checkpoint.path, found.model.vocab_size, capacity)
    info = RunnerInfo(
        model=checkpoint.name,
        model_path=str(checkpoint.path),
        runner=found.runner,
        attention=attention.name,
        device=str(where),
        dtype=str(kind).removeprefix("torch."),
        kv_cache_bytes=cache.num_bytes,
        self_check_error=found.error,
        host_kv_bytes=0 if host is None else host.cache.num_bytes,
        host_kv_format=limits.host.form.name,
        has_grammars=grammars is not None,
        embedding_size=found.model.hidden_size,
    )
    sampler = Sampler(found.model.vocab_size, native, grammars)
    report("warming up", 0.9)
    step = _recorded_step(found.model, attention, capacity)
    swap = None if host is None else host.swap
    made = ModelRunner(found.model, attention, sampler, capacity, info, step=step, swap=swap)
    made.warm_up()
    report("ready", 1.0)
    return made


def _check(limits: _Limits) -> None:
    """Raise a ModelLoadError that names a flag which makes no sense."""
    flags = {
        "--max-model-len": limits.max_model_len,
        "--max-batch-tokens": limits.max_batch_tokens,
        "--max-running": limits.max_batch_requests,
        "--kv-cache-gib": limits.kv_cache_bytes,
    }
    for flag, value in flags.items():
        if value is not None and value < 1:
            raise ModelLoadError(f"{flag} {value} makes no sense: it has to be at least 1")
    if limits.host.num_bytes is not None and limits.host.num_bytes < 0:
        raise ModelLoadError(
            f"--host-kv-gib: {limits.host.num_bytes} bytes make no sense: use 0 for none"
        )


def _make_pool(found: Verified, limits: _Limits) -> tuple[KVCache, Capacity]:
    """Return the pool that the device's memory allows, and what it can hold."""
    model = found.model
    shape = kv_shape_of(model.needs)
    step_bytes = _step_bytes(found, limits) if model.device.type == "cuda" else 0
    plan = plan_kv(
        shape,
        block_size=limits.block_size,
        max_model_len=model.max_model_len,
        is_len_fixed=limits.max_model_len is not None,
        max_batch_requests=limits.max_batch_requests,
        wanted_bytes=limits.kv_cache_bytes,
        available=available_bytes(model.device) - step_bytes,
        device=model.device,
    )
    cache = KVCache(shape, plan.num_blocks, limits.block_size, model.device)
    return cache, _capacity(limits, plan.num_blocks, plan.max_model_len)


def _capacity(limits: _Limits, num_blocks: int, max_model_len: int) -> Capacity:
    return Capacity(
        num_blocks=num_blocks,
        block_size=limits.block_size,
        max_model_len=max_model_len,
        max_batch_tokens=limits.max_batch_tokens,
        max_batch_requests=limits.max_batch_requests,
    )


def _memory_line(cache: KVCache, host: HostSide | None) -> str:
    tokens = cache.num_blocks * cache.block_size
    line = f"KV cache: {tokens} tokens in {cache.num_bytes / GIB:.2f} GiB; parked contexts: "
    if host is None:
        return line + "none"
    parked = host.cache.num_blocks * cache.block_size
    size = host.cache.num_bytes / GIB
    return f"{line}{parked} tokens in up to {size:.2f} GiB, {host.cache.form.name}"


def _step_bytes(found: Verified, limits: _Limits) -> int:
    """Measure what the largest steps need on a GPU beside weights and pool, graphs included."""
    model = found.model
    num_blocks = -(-model.max_model_len // limits.block_size)
    cache = KVCache(kv_shape_of(model.needs), num_blocks, limits.block_size, model.device)
    model.bind(found.make_attention(cache))
    builder = StepInputBuilder(limits.block_size, model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    for batch in warm_up_batches(_capacity(limits, num_blocks, model.max_model_len)):
        model.step(builder.build(batch))
    peak = torch.cuda.max_memory_allocated(model.device) - before
    torch.cuda.empty_cache()
    kept_logits = sum(graph_sizes(limits.max_batch_requests)) * model.vocab_size
    swap_bytes = 0 if limits.host.num_bytes == 0 else DEVICE_BYTES
    return peak + kept_logits * model.dtype.itemsize + swap_bytes


def _grammars(folder: Path, vocab_size: int, capacity: Capacity) -> MaskSource | None:
    """Return what holds answers to a grammar; None where library or tokenizer do not allow it."""
    try:
        from engine.model.grammar import GrammarCompiler
        from engine.model.grammar_masks import GrammarMasks
        from engine.model.tokenizer import Tokenizer

        compiler = GrammarCompiler.for_tokenizer(Tokenizer.load(folder))
    except (ImportError, ModelLoadError, ValueError) as error:
        _logger.warning("answers cannot be held to a grammar: %s", one_line(error))
        return None
    return GrammarMasks(compiler, vocab_size, max_states=4 * capacity.max_batch_requests)


def _recorded_step(
    model: PagedModel, attention: PagedAttention, capacity: Capacity
) -> StepFunction | None:
    """Return a step that replays CUDA graphs; None where there are none to record.

    The torch reference plans its gathers on the host, which a graph cannot replay.
    """
    if model.device.type != "cuda" or isinstance(attention, TorchAttention):
        return None
    model.bind(attention)
    max_blocks = -(-capacity.max_model_len // capacity.block_size)
    graphs = DecodeGraphs(
        model.step, capacity.max_batch_requests, max_blocks, capacity.block_size, model.device
    )
    try:
        graphs.record()
    except RuntimeError as error:
        _logger.warning("steps run without CUDA graphs: %s", one_line(error))
        return None
    return graphs.step


def pick_device(name: str) -> torch.device:
    """Return the device meant by `name`; ModelLoadError if there is none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(f"--device {name} is unknown: use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"--device {name} is not supported: use auto, cpu or cuda")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ModelLoadError(f"--device {name} is not there: torch sees {count} CUDA devices")
    return device


def pick_dtype(name: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """Return the dtype meant by `name`; "auto" takes the checkpoint's where it runs well."""
    if name != "auto":
        if name not in DTYPES:
            raise ModelLoadError(f"--dtype {name} is unknown: use auto or {', '.join(DTYPES)}")
        return DTYPES[name]
    own: torch.dtype | None = getattr(checkpoint.config.get_text_config(), "dtype", None)
    if own is None or own not in (torch.bfloat16, torch.float16):
        return torch.float32
    if device.type == "cuda":
        if own == torch.bfloat16 and not torch.cuda.is_bf16_supported():
            return torch.float16
        return own
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def verify(
    load: Callable[[], HFModel],
    block_size: int,
    runner: str = "auto",
    native: NativeKernels | None = None,
) -> Verified:
    """Return the fastest way to run the model that agrees with transformers' own forward.

    Faster ways take a model's weights apart, so each further attempt loads them anew. Raises
    ModelLoadError if no way agrees, or if `runner` names one that does not.
    """
    model = load()
    family, dtype = model.family, model.dtype
    expected = expected_of(model)
    if not all(bool(torch.isfinite(logits).all()) for logits in expected.logits):
        raise ModelLoadError(
            f"{family}: transformers itself computes NaN or infinity from these weights"
        )
    needs = model.needs

    def fastest(cache: KVCache) -> PagedAttention:
        return select_attention(cache, needs, native)

    if runner != "generic" and native is not None and LeanModel.supports(model):
        lean = LeanModel(model, native)
        error = relative_error(lean, expected, fastest, block_size)
        if passes(error, dtype):
            return Verified(lean, fastest, "lean", error)
        _logger.warning("%s: the lean runner is off by %.1e and is not used", family, error)
        model = load()
    if runner == "lean":
        raise ModelLoadError(f"runner lean cannot run {family} in {dtype} on {model.device} here")
    swapped = optimise(model.module, native)
    for make_attention in (fastest, TorchAttention):
        error = relative_error(model, expected, make_attention, block_size)
        if not passes(error, dtype) and swapped:
            _logger.warning("%s: off by %.1e with %s swapped", family, error, ", ".join(swapped))
            model, swapped = load(), []
            error = relative_error(model, expected, make_attention, block_size)
        if passes(error, dtype):
            return Verified(model, make_attention, "generic", error)
        _logger.warning("%s: attention is off by %.1e", family, error)
    raise ModelLoadError(
        f"{family} computes something else when it is paged (relative error {error:.2g}),"
        " so its answers would be wrong"
    )


def _cpu_multiplies_bfloat16() -> bool:
    """True if the CPU has instructions for it; without them bfloat16 is slower than float32."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


def _say_nothing(_stage: str, _fraction: float) -> None:
    """The progress report of a caller who wants none."""
