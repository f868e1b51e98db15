"""From a name to a runner ready to serve: checks first, loads once, verifies, then sizes the pool.

Whatever is wrong with a model, a flag or the machine comes out as a ModelLoadError of one line. It
knows every part of this room and how they fit together; none of them knows the loader.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from engine.core.errors import ModelLoadError
from engine.core.executor import Capacity
from engine.model.attention import PagedAttention, TorchAttention, select_attention
from engine.model.checkpoint import LIBRARY_ERRORS, Checkpoint, one_line, open_checkpoint
from engine.model.hf_model import HFModel, PagedModel, kv_shape_of
from engine.model.kv_cache import KVCache
from engine.model.memory import available_bytes, check_weights_fit, plan_kv
from engine.model.model_runner import ModelRunner, RunnerInfo
from engine.model.sampler import Sampler
from engine.model.self_check import MakeAttention, expected_of, passes, relative_error

Progress = Callable[[str, float], None]
RUNNERS = ("auto", "generic", "lean")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens a step, requests at once: beyond these a step only becomes longer, not more efficient
# (docs/performance.md).
CPU_BATCH, CUDA_BATCH = (512, 64), (8192, 256)

_LAYER = re.compile(r"(^|\.)(layers|h|blocks|block)\.\d+\.")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Limits:
    """The sizes an operator may set; None is left to the loader."""

    max_model_len: int | None
    max_batch_tokens: int
    max_batch_requests: int
    block_size: int
    kv_cache_bytes: int | None


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
    runner: str = "auto",
    progress: Progress | None = None,
) -> ModelRunner:
    """Load `model` ("builtin", a folder or a hub id) and return a warm runner.

    `device`: "auto", "cpu", "cuda" or "cuda:N". `dtype`: "auto" (the checkpoint's own, where the
    device computes it well) or a key of DTYPES. None means: choose. `progress(stage, fraction)` is
    called as loading goes on. Raises ModelLoadError, one line.
    """
    report = progress or _say_nothing
    report("checking the model", 0.0)
    where = pick_device(device)
    if runner not in RUNNERS:
        raise ModelLoadError(f"--runner {runner} is unknown: choose from {', '.join(RUNNERS)}")
    limits = _limits(
        where, max_model_len, max_batch_tokens, max_batch_requests, block_size, kv_cache_bytes
    )
    checkpoint = open_checkpoint(model)
    kind = pick_dtype(dtype, checkpoint, where)
    num_bytes = checkpoint.num_weights * kind.itemsize
    check_weights_fit(num_bytes, available_bytes(where), checkpoint.name)

    report("loading the weights", 0.05)
    hf_model = load_hf_model(checkpoint, where, kind, max_model_len)
    report("comparing with transformers", 0.6)
    found = verify(hf_model, block_size, runner)

    report("making the KV cache", 0.8)
    cache, capacity = _make_pool(found.model, limits)
    attention = found.make_attention(cache)
    info = RunnerInfo(
        model=checkpoint.name,
        model_path=str(checkpoint.path),
        runner=found.runner,
        attention=attention.name,
        device=str(where),
        dtype=str(kind).removeprefix("torch."),
        kv_cache_bytes=cache.num_bytes,
        self_check_error=found.error,
    )
    sampler = Sampler(found.model.vocab_size)
    made = ModelRunner(found.model, attention, sampler, capacity, info)
    report("warming up", 0.9)
    made.warm_up()
    report("ready", 1.0)
    return made


def _limits(
    device: torch.device,
    max_model_len: int | None,
    max_batch_tokens: int | None,
    max_batch_requests: int | None,
    block_size: int,
    kv_cache_bytes: int | None,
) -> _Limits:
    """Fill in what the operator left open; ModelLoadError names a flag that makes no sense."""
    tokens, requests = CUDA_BATCH if device.type == "cuda" else CPU_BATCH
    limits = _Limits(
        max_model_len,
        tokens if max_batch_tokens is None else max_batch_tokens,
        requests if max_batch_requests is None else max_batch_requests,
        block_size,
        kv_cache_bytes,
    )
    flags = {
        "--max-model-len": limits.max_model_len,
        "--max-batch-tokens": limits.max_batch_tokens,
        "--max-batch-requests": limits.max_batch_requests,
        "--block-size": limits.block_size,
        "--kv-cache-memory": limits.kv_cache_bytes,
    }
    for flag, value in flags.items():
        if value is not None and value < 1:
            raise ModelLoadError(f"{flag} {value} makes no sense: it has to be at least 1")
    return limits


def _make_pool(model: PagedModel, limits: _Limits) -> tuple[KVCache, Capacity]:
    """Return the pool that the device's memory allows, and what it can hold."""
    shape = kv_shape_of(model.needs)
    plan = plan_kv(
        shape,
        block_size=limits.block_size,
        max_model_len=model.max_model_len,
        is_len_fixed=limits.max_model_len is not None,
        max_batch_requests=limits.max_batch_requests,
        wanted_bytes=limits.kv_cache_bytes,
        available=available_bytes(model.device),
        device=model.device,
    )
    cache = KVCache(shape, plan.num_blocks, limits.block_size, model.device)
    capacity = Capacity(
        num_blocks=plan.num_blocks,
        block_size=limits.block_size,
        max_model_len=plan.max_model_len,
        max_batch_tokens=limits.max_batch_tokens,
        max_batch_requests=limits.max_batch_requests,
    )
    return cache, capacity


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


def load_hf_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, max_model_len: int | None
) -> HFModel:
    """Load the weights and put the model on paged attention; ModelLoadError in one line."""
    try:
        with _quiet_transformers():
            module, report = AutoModelForCausalLM.from_pretrained(
                checkpoint.path,
                config=checkpoint.config,
                dtype=dtype,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
            module = module.to(device)
    except (*LIBRARY_ERRORS, SafetensorError) as error:
        raise ModelLoadError(
            f"{checkpoint.name} cannot be loaded by transformers {transformers.__version__}:"
            f" {one_line(error)}"
        ) from error
    _check_names(checkpoint, set(report["missing_keys"]), set(report["unexpected_keys"]))
    return HFModel(module, max_model_len)


def _check_names(checkpoint: Checkpoint, missing: set[str], unexpected: set[str]) -> None:
    """Refuse weights that were made up, and layers that were left out; both load without error."""
    if missing:
        raise ModelLoadError(
            f"{checkpoint.name} lacks {len(missing)} of its weights, {min(missing)} for one"
        )
    layers = {name for name in unexpected if _LAYER.search(name)}
    if layers:
        raise ModelLoadError(
            f"{checkpoint.name} has {len(layers)} weights that its config has no place for,"
            f" {min(layers)} for one"
        )
    if unexpected:
        _logger.warning("%s: %d weights are not used", checkpoint.name, len(unexpected))


def verify(hf_model: HFModel, block_size: int, runner: str) -> Verified:
    """Return the fastest way to run the model that agrees with transformers' own forward."""
    expected = expected_of(hf_model)
    if not all(bool(torch.isfinite(logits).all()) for logits in expected.logits):
        raise ModelLoadError(
            f"{hf_model.family}: transformers itself computes NaN or infinity from these weights"
        )

    def fastest(cache: KVCache) -> PagedAttention:
        return select_attention(cache, hf_model.needs)

    error = float("nan")
    for make_attention in (fastest, TorchAttention):
        error = relative_error(hf_model, expected, make_attention, block_size)
        if passes(error, hf_model.dtype):
            return Verified(hf_model, make_attention, "generic", error)
        _logger.warning("%s: %s is off by %.1e", hf_model.family, make_attention, error)
    raise ModelLoadError(
        f"{hf_model.family} computes something else when it is paged (relative error {error:.2g}),"
        " so its answers would be wrong"
    )


def _cpu_multiplies_bfloat16() -> bool:
    """True if the CPU has instructions for it; without them bfloat16 is slower than float32."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


def _say_nothing(_stage: str, _fraction: float) -> None:
    """The progress report of a caller who wants none."""


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' load report off the terminal: what matters of it is raised in one line."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()
