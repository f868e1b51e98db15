"""How many cores the engine may really use: physical ones, within affinity and container quota.

It reads what Linux says under /sys and knows nothing of engines. Elsewhere it counts processors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path

_SYSTEM = Path("/sys")


def usable_cores(system: Path = _SYSTEM, processors: Collection[int] | None = None) -> int:
    """Return the number of physical cores this process may keep busy, at least 1.

    A second hardware thread of a core adds nothing to matrix products and doubles the waiting in
    OpenMP's barriers. A container's quota counts as well: more threads than it allows are all
    stopped in the middle of a step once it is spent. `processors` are the logical processors
    that may be used (this process's affinity), `system` is where /sys is.
    """
    if processors is None:
        processors = _affinity()
    siblings = {_siblings(system, number) for number in processors}
    return max(1, min(len(siblings), _quota(system)))


def _affinity() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _siblings(system: Path, number: int) -> str:
    """Return a name of the physical core that processor `number` is a thread of."""
    path = system / f"devices/system/cpu/cpu{number}/topology/thread_siblings_list"
    try:
        return path.read_text().strip()
    except OSError:
        return f"alone {number}"


def _quota(system: Path) -> int:
    """Return the cores that the control group allows (cgroup v2's cpu.max: microseconds each)."""
    try:
        quota_us, period_us = (system / "fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota_us) / int(period_us))
    except (OSError, ValueError):  # no control group, or "max"
        return 1 << 30
