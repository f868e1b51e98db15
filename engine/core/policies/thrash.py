"""Notices an engine that works for its memory instead of for its users; it moves nobody.

Two signs, over the last forty seconds: the recompute tax (tokens computed again, of all) and how
busy the link is with copies. Either beyond its limit is thrash. While it lasts caution grows,
afterwards it wears off slowly: what is held back by it is the room of newcomers, so a load that
thrashes is served with fewer at once (Denning, "Thrashing: its causes and prevention", 1968).
"""

from __future__ import annotations

from collections import deque

from engine.core.latency_profile import LatencyProfile
from engine.core.policy import View

SAMPLE_NS = 1_000_000_000
NUM_SAMPLES = 40  # in ten, a premium burst that displaces a few contexts looks like thrash
MOST_RECOMPUTED = 0.25  # of all tokens computed
MOST_COPYING = 0.6  # of the time, the busier direction taken as half of all that is carried
MORE, LESS, MOST = 0.05, 0.01, 0.3  # caution: a share of the device, by the second


class ThrashGuard:
    """`caution` is the share of the device that newcomers behind the first class leave free."""

    __slots__ = ("_link_ns", "_samples", "caution", "is_thrashing")

    def __init__(self, profile: LatencyProfile) -> None:
        self._link_ns = (profile.link_out_ns_per_token + profile.link_in_ns_per_token) / 2
        self._samples: deque[tuple[int, int, int, int]] = deque(maxlen=NUM_SAMPLES)
        self.caution = 0.0
        self.is_thrashing = False

    def look(self, view: View) -> None:
        """Take the present in; cheap, because only one look a second counts."""
        if self._samples and view.now_ns - self._samples[-1][0] < SAMPLE_NS:
            return
        now = (view.now_ns, view.computed_total, view.recomputed_total, view.copied_total)
        if self._samples:
            since = self._samples[0]
            lasted_ns, computed, again, copied = (b - a for a, b in zip(since, now, strict=True))
            is_copying = copied / 2 * self._link_ns > MOST_COPYING * lasted_ns
            self.is_thrashing = again > MOST_RECOMPUTED * computed or is_copying
            change = MORE if self.is_thrashing else -LESS
            self.caution = min(max(self.caution + change, 0.0), MOST)
        self._samples.append(now)
