"""What an engine has computed so far, and how much of it again; it counts and decides nothing."""

from __future__ import annotations


class Work:
    """Tokens computed since the start; what was lost to a preemption or a fault counts again."""

    __slots__ = ("computed", "recomputed")

    def __init__(self) -> None:
        self.computed = 0
        self.recomputed = 0  # of these
