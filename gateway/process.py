"""Fits a gateway's process to its work: descriptors and threads; it knows no setting."""

from __future__ import annotations

import contextlib
import resource
import sys

OPEN_FILES = 65_536
SWITCH_INTERVAL_S = 0.0005


def prepare_process() -> None:
    """Fit this process to its work: many connections, and threads that tokenise beside a busy loop.

    A thread that comes back from tokenising waits a switch interval for the interpreter while the
    event loop is busy; Python's own 5 ms would be the larger part of the door's added latency.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, OPEN_FILES) if hard != resource.RLIM_INFINITY else OPEN_FILES
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
