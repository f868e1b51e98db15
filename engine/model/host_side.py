"""Builds what parking needs: the host's blocks and the engine that carries contexts to them.

It knows which device calls for which way, and neither models nor requests.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from engine.core.clock import Clock
from engine.model.checkpoint import one_line
from engine.model.cuda_swap import CudaSwap
from engine.model.host_cache import HostCache, HostFormat
from engine.model.kernels.native import NativeKernels
from engine.model.kernels.native_swap import NativeMover, supports
from engine.model.kv_cache import KVCache
from engine.model.memory import available_bytes, plan_host
from engine.model.swap import InlineSwap, SwapEngine, ThreadedSwap, TorchMover

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What an operator may say of the host's memory; no bytes: nothing is ever parked there."""

    num_bytes: int | None  # None: a share of what is free
    form: HostFormat
    checksums: bool = False
    spare_core: bool = False  # one is left to carry contexts beside the computing


@dataclass(frozen=True, slots=True, eq=False)
class HostSide:
    """The host's blocks, and who carries contexts there and back."""

    cache: HostCache
    swap: SwapEngine


def make_host_side(
    cache: KVCache,
    options: HostOptions,
    native: NativeKernels | None,
) -> HostSide | None:
    """Return the host's side of `cache`; None where there is no room, or none is wanted.

    With a spare core a CPU's copies get a thread of their own. Raises ModelLoadError, one line.
    """
    on_cuda = cache.device.type == "cuda"
    num_blocks = plan_host(
        options.form.block_bytes(cache.shape, cache.block_size),
        num_device_blocks=cache.num_blocks,
        wanted_bytes=options.num_bytes,
        available=available_bytes(torch.device("cpu")),
        is_pinned=on_cuda,
    )
    if not num_blocks:
        return None
    host = _host_cache(cache, num_blocks, options, pinned=on_cuda)
    return HostSide(host, make_swap(cache, host, native, spare_core=options.spare_core))


def make_swap(
    cache: KVCache,
    host: HostCache,
    native: NativeKernels | None,
    *,
    spare_core: bool = False,
    clock: Clock | None = None,
) -> SwapEngine:
    """Return who carries contexts between these two; see make_host_side."""
    if cache.device.type == "cuda":
        return CudaSwap(cache, host)
    if native is None or not supports(cache, host):
        # torch's operators would start threads of their own beside those that compute.
        return InlineSwap(host, TorchMover(cache, host), clock)
    mover = NativeMover(cache, host, native)
    return ThreadedSwap(host, mover) if spare_core else InlineSwap(host, mover, clock)


def _host_cache(
    cache: KVCache, num_blocks: int, options: HostOptions, *, pinned: bool
) -> HostCache:
    def make(pinned: bool) -> HostCache:
        return HostCache(
            cache.shape,
            num_blocks,
            cache.block_size,
            options.form,
            pinned=pinned,
            checksums=options.checksums,
        )

    try:
        return make(pinned)
    except RuntimeError as error:
        if not pinned:
            raise
        # It still works, only not beside the computing.
        _logger.warning("host memory cannot be pinned, copies will be slow: %s", one_line(error))
        return make(False)
