"""The baselines with options and times as small as the random loads they are put under."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import test_random_load
from core_policies import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from test_random_load import FEW, run_load, tell

from engine.core.latency_model import LatencyModel
from engine.core.policies import make_policy
from engine.core.policy import SchedulingPolicy

# A step takes 7 ns here, so quanta and waits of nanoseconds make every rule happen.
CASES: dict[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "fcfs": ("fcfs", (("token_budget", 5), ("max_running", 3))),
    "vllm0": ("vllm0", (("token_budget", 20), ("max_running", 4))),
    "orca": ("orca", (("max_running", 3),)),
    "sarathi-spf": ("sarathi-spf", (("token_budget", 5), ("max_running", 5))),
    "slai": ("slai", (("token_budget", 6), ("theta", 0.5), ("theta_high", 1))),
    "slai-eager": ("slai", (("dynamic", 0), ("theta", 0), ("decode_limit", 2), ("spf", 0))),
    "rad": ("rad", (("b_col", 3), ("b_lcm", 4))),
    "rad-cycle": ("rad", (("b_col", 4), ("cycle", 2))),
    "alise": ("alise", (("quantum_ms", 1e-5), ("min_steps", 1), ("ageing_s", 3e-7))),
    "alise-whole": ("alise", (("quantum_ms", 1e-5), ("min_steps", 0), ("whole", 1))),
    "alise-defer": ("alise", (("quantum_ms", 1e-5), ("defer", 1))),
    "alise-recompute": ("alise", (("quantum_ms", 1e-5), ("min_steps", 0), ("swap", 0))),
    "fastserve": ("fastserve", (("quantum_ms", 5e-6), ("starvation_s", 1e-7), ("period", 4))),
    "fastserve-chunk": ("fastserve", (("quantum_ms", 5e-6), ("chunk", 1), ("token_budget", 6))),
}


def named_case(case: str, seed: int, model: LatencyModel | None) -> SchedulingPolicy:
    name, options = CASES[case]
    return make_policy(name, options, model or tiny_model())


@pytest.mark.parametrize("case", CASES)
@FEW
@given(seed=st.integers(0, 2**32), calm=st.booleans(), is_busy=st.booleans())
def test_every_rule_keeps_the_laws(case: str, seed: int, calm: bool, is_busy: bool) -> None:
    """Whatever a policy decides in a hurry, everyone gets the answer of their own history."""
    with patch.object(test_random_load, "named_policy", named_case):
        world = run_load(seed, case, calm=calm, is_busy=is_busy)
    tell(world)
    if calm:
        ends = [truth.end for truth in world.ended]
        assert all(end is not None and end.finish_reason in ("stop", "length") for end in ends)
