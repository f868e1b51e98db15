"""How much memory there is and how much of it the KV cache gets; it allocates nothing itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.core.errors import ModelLoadError
from engine.model.kv_cache import KVShape

GIB = 1 << 30
# Shares of what is free once the weights are in. A CPU's memory belongs to everyone on the
# machine, a GPU's to whoever serves from it.
CPU_SHARE, CPU_CAP = 0.25, 2 * GIB
CUDA_SHARE = 0.9
# The same for parked contexts in host memory. A CPU's blocks cost nothing until they are used,
# pinned memory is gone at once.
HOST_SHARE, HOST_CAP = 0.1, 2 * GIB
PINNED_SHARE, PINNED_CAP = 0.25, 8 * GIB
HOST_PER_DEVICE = 2  # host blocks for each of the device: more has never been of use


@dataclass(frozen=True, slots=True)
class KVPlan:
    """The pool that was decided on, and the context length that it can hold."""

    num_blocks: int
    max_model_len: int


def available_bytes(device: torch.device) -> int:
    """Return the memory that can still be used on `device`, this process's cgroup respected."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free)
    limits = [_meminfo(Path("/proc/meminfo")), _cgroup(Path("/sys/fs/cgroup"))]
    known = [limit for limit in limits if limit is not None]
    if known:
        return min(known)
    # Not Linux: all of the memory is the best that the standard library can tell.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_weights_fit(num_bytes: int, available: int, name: str) -> None:
    """Raise ModelLoadError if the weights alone do not fit."""
    if num_bytes > available:
        raise ModelLoadError(
            f"{name} needs {num_bytes / GIB:.1f} GiB for its weights, the device has"
            f" {available / GIB:.1f} GiB free"
        )


def plan_kv(
    shape: KVShape,
    *,
    block_size: int,
    max_model_len: int,
    is_len_fixed: bool,
    max_batch_requests: int,
    wanted_bytes: int | None,
    available: int,
    device: torch.device,
) -> KVPlan:
    """Decide how many blocks the pool has.

    Never more than every request at full length could use. Without `wanted_bytes` a share of what
    is available. A pool too small for one request of `max_model_len` shortens that length, or,
    where the operator fixed it, raises ModelLoadError; so does a pool that the device cannot hold.
    """
    blocks_per_request = -(-max_model_len // block_size)
    useful = blocks_per_request * max_batch_requests
    if wanted_bytes is None:
        share = CUDA_SHARE if device.type == "cuda" else CPU_SHARE
        num_bytes = int(available * share)
        num_bytes = num_bytes if device.type == "cuda" else min(num_bytes, CPU_CAP)
    else:
        num_bytes = wanted_bytes
    num_blocks = min(shape.blocks_in(num_bytes, block_size), useful)
    needed = (num_blocks + 1) * block_size * shape.bytes_per_token
    if wanted_bytes is not None and num_blocks > 0 and needed > available:
        raise ModelLoadError(
            f"the KV cache needs {needed / GIB:.2f} GiB, the device has"
            f" {available / GIB:.2f} GiB free"
        )
    one_request = (blocks_per_request + 1) * block_size * shape.bytes_per_token
    if num_blocks < 1 or (num_blocks < blocks_per_request and is_len_fixed):
        raise ModelLoadError(
            f"{num_bytes / GIB:.3f} GiB of KV cache cannot hold one request of {max_model_len}"
            f" tokens, which needs {one_request / GIB:.3f} GiB: raise --kv-cache-gib or lower"
            " --max-model-len"
        )
    return KVPlan(num_blocks, min(max_model_len, num_blocks * block_size))


def plan_host(
    block_bytes: int,
    *,
    num_device_blocks: int,
    wanted_bytes: int | None,
    available: int,
    is_pinned: bool,
) -> int:
    """Return how many blocks parked contexts get on the host; 0 where nothing can be parked.

    Without `wanted_bytes` a share of the `available` host memory, and never more than
    HOST_PER_DEVICE times the device's blocks. Raises ModelLoadError where what is wanted does not
    fit, or holds nothing.
    """
    if wanted_bytes is None:
        share, cap = (PINNED_SHARE, PINNED_CAP) if is_pinned else (HOST_SHARE, HOST_CAP)
        num_bytes = min(int(available * share), cap)
        if is_pinned and num_bytes:
            num_bytes = 1 << num_bytes.bit_length() - 1  # torch pins powers of two
        return max(0, min(num_bytes // block_bytes - 1, HOST_PER_DEVICE * num_device_blocks))
    if wanted_bytes == 0:
        return 0
    if wanted_bytes > available:
        raise ModelLoadError(
            f"--host-kv-gib asks for {wanted_bytes / GIB:.2f} GiB, the host has"
            f" {available / GIB:.2f} GiB free"
        )
    num_blocks = wanted_bytes // block_bytes - 1  # beside the row that is nobody's
    if num_blocks < 1:
        raise ModelLoadError(
            f"--host-kv-gib: {wanted_bytes} bytes do not hold two blocks of {block_bytes}:"
            " raise it, or set it to 0"
        )
    return num_blocks


def _meminfo(path: Path) -> int | None:
    """Return MemAvailable in bytes, None where the file does not tell."""
    if not path.is_file():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup(folder: Path) -> int | None:
    """Return what a cgroup v2 memory limit leaves, None without a limit.

    Page cache that the kernel may drop (inactive_file) counts as free, as `docker stats` counts it.
    """
    limit, current, stat = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and current.is_file() and stat.is_file()):
        return None
    text = limit.read_text().strip()
    if text == "max":
        return None
    droppable = 0
    for line in stat.read_text().splitlines():
        if line.startswith("inactive_file "):
            droppable = int(line.split()[1])
    return max(0, int(text) - int(current.read_text()) + droppable)
